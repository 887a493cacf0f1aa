"""What the command line is given, as objects: "module:factory" or "model.pt2" as a model with example inputs, "x=1,3,224,224" as shapes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.tools.needs import lacking

if TYPE_CHECKING:
    import torch


#: Of files that hold a model.
SUFFIXES = (".pt2", ".onnx")


def is_model_file(what: str) -> bool:
    """Whether this names a file that holds a model, existing or not."""
    return what.lower().endswith(SUFFIXES)


def checked_path(given: str | os.PathLike[str]) -> Path:
    """The path of a model file. UnsupportedModel for one of another kind, InvalidInput for one that is not there."""
    path = Path(given)
    if path.suffix.lower() not in SUFFIXES:
        hint = "Give a .pt2 or .onnx file; sparsec.load reads artifacts; the command line takes module:factory as well."
        raise UnsupportedModel(f"{path.name!r} is no model file.", where=str(path), hint=hint)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is a device or a pipe" if path.exists() else "does not exist"
        raise InvalidInput(f"The model file {what}.", where=str(path), hint="Give the path of a .pt2 or .onnx file.")
    return path


def load_factory(path: str) -> Callable[[], Any]:
    """The function named by ``module:name``; modules in the current directory are found too. InvalidInput if there is none."""
    module, _, name = path.partition(":")
    if not (module and name):
        hint = "Write module:function, for example sparsec.models.zoo:mobilenet_v1_90, or the path of a .pt2 or .onnx file."
        raise InvalidInput(f"{path!r} does not name a factory.", hint=hint)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or module == error.name or module.startswith(f"{error.name}."):
            why = f"{type(error).__name__}: {error}"
            raise InvalidInput(
                f"The factory {path!r} cannot be imported.", why=why, hint="Modules are found in this folder too."
            ) from error
        raise lacking(error.name.partition(".")[0]) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"The factory {path!r} cannot be imported.", why=why, hint="--debug shows where it fails.") from error
    if not callable(factory):
        raise InvalidInput(f"{path!r} is no function that makes a model, but {type(factory).__name__}.")
    return factory


def make_model(path: str, shapes: Sequence[str] = ()) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model of a factory in eval mode, with positional and keyword example inputs: normal numbers of ``shapes`` if given.

    The factory returns the model; or it with its inputs: one tensor or array, several in a tuple or list, a dictionary by name; or it with
    positional ones and a dictionary. The random generator is seeded first. InvalidInput where the factory fails or neither gives inputs.
    """
    import torch

    factory = load_factory(path)
    torch.manual_seed(0)
    try:
        made = factory()
    except ModuleNotFoundError as error:
        raise lacking((error.name or str(error)).partition(".")[0]) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"The factory {path!r} failed.", why=why, hint="--debug shows where it fails.") from error
    model, *given = made if isinstance(made, tuple | list) and made else (made,)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(f"The factory {path!r} returned no torch.nn.Module, but {type(model).__name__}.")
    if shapes:
        return model.eval(), tuple(torch.randn(shape) for shape in _ordered(model, shapes)), {}
    args, kwargs = _inputs(path, given)
    if not args and not kwargs:
        hint = "Return (model, inputs) from the factory, or give --input x=1,3,224,224."
        raise InvalidInput(f"There are no example inputs for {path!r}.", hint=hint)
    return model.eval(), args, kwargs


def _inputs(path: str, given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a factory returned beside the model, as positional and keyword inputs."""
    match given:
        case []:
            return (), {}
        case [Mapping() as named]:
            return (), dict(named)
        case [tuple() | list() as several]:
            return tuple(several), {}
        case [tuple() | list() as several, Mapping() as named]:
            return tuple(several), dict(named)
        case [alone] if hasattr(alone, "shape"):
            return (alone,), {}
    kinds = ", ".join(type(value).__name__ for value in given)
    hint = "Return (model, x), (model, (x, y)), (model, {'x': x}) or (model, (x,), {'y': y})."
    raise InvalidInput(f"The factory {path!r} returned a model and {kinds}, which are no example inputs.", hint=hint)


def named(text: str) -> tuple[str, str]:
    """``name=value`` as (name, value); the name is empty where there is none."""
    name, equals, value = text.partition("=")
    return (name, value) if equals else ("", text)


def shapes_by_name(names: Sequence[str], texts: Sequence[str], others: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """The shapes given for inputs of these names; unnamed ones come first. InvalidInput for an unknown name or a bad shape.

    ``others``: names that are given otherwise.
    """
    if wrong := [name for name in others if name not in names]:
        raise InvalidInput(f"The model has no input named {', '.join(wrong)}.", hint=f"The model takes {', '.join(names)}.")
    given = [(name, _shape(value)) for name, value in map(named, texts)]
    unnamed = [shape for name, shape in given if not name]
    by_name = {name: shape for name, shape in given if name}
    rest = names[len(unnamed) :]
    unknown = [name for name in by_name if name not in rest]
    if unknown or len(unnamed) > len(names):
        what = f"The model has no input named {', '.join(unknown)}." if unknown else f"The model has {len(names)} inputs."
        raise InvalidInput(what, hint=f"The model takes {', '.join(rest) or 'no more inputs'}.")
    return dict(zip(names, unnamed, strict=False)) | by_name


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = (-1,)
    if min(shape) < 0:
        raise InvalidInput(f"{text!r} is not a shape.", hint="Write sizes with commas, for example --input x=1,3,224,224.")
    return shape


def _ordered(model: torch.nn.Module, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes in the order of ``forward``'s parameters."""
    names = list(inspect.signature(model.forward).parameters)
    given = shapes_by_name(names, texts)
    return [given[name] for name in names if name in given]
