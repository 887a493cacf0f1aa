"""A backend that is none of sparsec's own: what the protocol asks of one, and no more."""
