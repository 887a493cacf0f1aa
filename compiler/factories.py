"""What the command line is given, as objects: "module:factory" as a model with example inputs, "x=1,3,224,224" as shapes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sparsec.errors import InvalidInput

if TYPE_CHECKING:
    import torch


def load_factory(path: str) -> Callable[[], Any]:
    """The function named by ``module:name``; modules in the current directory are found too. InvalidInput if there is none."""
    module, _, name = path.partition(":")
    if not (module and name):
        raise InvalidInput(
            f"{path!r} does not name a factory.", hint="Write module:function, for example sparsec.models.zoo:mobilenet_v1_90."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"The factory {path!r} cannot be imported.", why=why, hint="--debug shows where it fails.") from error
    if not callable(factory):
        raise InvalidInput(f"{path!r} is a {type(factory).__name__}, not a function that makes a model.")
    return factory


def make_model(path: str, shapes: Sequence[str] = ()) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The model of a factory in eval mode, and example inputs: normal numbers of ``shapes`` if given, else the factory's own.

    The random generator is seeded first. InvalidInput where the factory fails or neither gives inputs.
    """
    import torch

    factory = load_factory(path)
    torch.manual_seed(0)
    try:
        made = factory()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"The factory {path!r} failed.", why=why, hint="--debug shows where it fails.") from error
    model, inputs = made if isinstance(made, tuple) else (made, ())
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(f"The factory {path!r} made a {type(model).__name__}, not a torch.nn.Module.")
    if shapes:
        inputs = tuple(torch.randn(shape) for shape in _ordered(model, shapes))
    if not inputs:
        hint = "Return (model, inputs) from the factory, or give --input x=1,3,224,224."
        raise InvalidInput(f"There are no example inputs for {path!r}.", hint=hint)
    return model.eval(), tuple(inputs)


def named(text: str) -> tuple[str, str]:
    """``name=value`` as (name, value); the name is empty where there is none."""
    name, equals, value = text.partition("=")
    return (name, value) if equals else ("", text)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = (-1,)
    if min(shape) < 0:
        raise InvalidInput(f"{text!r} is not a shape.", hint="Write sizes with commas, for example --input x=1,3,224,224.")
    return shape


def _ordered(model: torch.nn.Module, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes in the order of ``forward``'s parameters; unnamed ones come first."""
    given = [(name, _shape(value)) for name, value in map(named, texts)]
    unnamed = [shape for name, shape in given if not name]
    by_name = {name: shape for name, shape in given if name}
    parameters = list(inspect.signature(model.forward).parameters)[len(unnamed) :]
    unknown = [name for name in by_name if name not in parameters]
    if unknown:
        hint = f"The model takes {', '.join(parameters) or 'no more inputs'}."
        raise InvalidInput(f"The model has no input named {', '.join(unknown)}.", hint=hint)
    return [*unnamed, *(by_name[name] for name in parameters if name in by_name)]
