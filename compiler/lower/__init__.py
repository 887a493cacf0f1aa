"""From a graph to what a backend is asked for: specs, layouts, regions, what follows a run-time size, and what goes to Inductor."""
