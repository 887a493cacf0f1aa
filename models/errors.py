"""The error of this package."""

from sparsec.errors import InvalidInput


class InvalidArgument(InvalidInput, ValueError):
    """An argument with which no model can be built, pruned or calibrated."""
