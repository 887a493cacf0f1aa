"""What the command line names, as models and compiled models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sparsec.errors import InvalidInput


def compile_named(
    model: str, shapes: Sequence[str], tune: str, threads: int | None, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, float]:
    """The compiled model and the seconds that took."""
    given = {**options, "tune": tune, "threads": threads}
    check_options(given)
    opened = opened_model(model, shapes)
    from sparsec import driver

    begin = time.perf_counter()
    return driver.compile(*opened, **given), time.perf_counter() - begin


def check_options(options: Mapping[str, Any]) -> None:
    """InvalidInput for options that a compilation would refuse: before the model is made, which may take long."""
    from sparsec.backends import target_named
    from sparsec.processors import for_each_processor
    from sparsec.settings import Settings

    settings = Settings.from_options(options)
    target_named(settings.target)
    for_each_processor(settings)


def opened_model(model: str, shapes: Sequence[str]) -> tuple[Any, ...]:
    """A model with its example inputs, as ``sparsec.compile`` takes them."""
    from sparsec.doors.factories import checked_path, is_model_file, make_model

    if not is_model_file(model):
        return make_model(model, shapes)
    path = checked_path(model)
    from sparsec.doors.open import with_shapes

    return with_shapes(path, shapes)


def factory_named(model: str, batch: int, shapes: Sequence[str]) -> str:
    """The name of a factory that a benchmark's processes can call, tried once."""
    from sparsec.doors.factories import checked_path, is_model_file, make_model

    if not is_model_file(model):
        make_model(model, shapes)
        return model
    if shapes:
        raise InvalidInput("A model file has its shapes.", where=model, hint="Give --batch instead of --input.")
    path = checked_path(model)
    from sparsec.doors.file_factories import name_of, opened

    opened(path, batch)
    return name_of(path, batch)
