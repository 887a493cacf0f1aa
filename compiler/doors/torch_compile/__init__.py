"""The door of torch.compile: `backend="sparse"`."""

from sparsec.tools.needs import require

# torch imports this by its entry point: without it a missing part of the compiler would be an internal error of some graph.
require()
