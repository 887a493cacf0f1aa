"""From regions of a graph to programs and libraries of kernels, a room per kind of machine."""
