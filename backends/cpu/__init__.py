"""Kernels as TensorIR over vector registers, what calls them and what runs them: for any CPU that LLVM knows."""
