"""That of the toy."""

from tests.toy.machine import machine

__all__ = ["machine"]
