"""The processors that one model is compiled for, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.backends import machine_for
from sparsec.errors import InvalidInput
from sparsec.settings import Settings


def for_each_processor(settings: Settings) -> list[Settings]:
    """Settings for each processor that is named, the one that needs the most features first: whoever can run it need not look further.

    InvalidInput for an unknown one, and for two that need the same: an artifact is chosen by what a processor can do.
    """
    if len(settings.processors) == 1:
        return [settings]
    named: dict[frozenset[str], str | None] = {}
    for name in settings.processors:
        needs = frozenset(machine_for(settings.target, name).features)
        if needs in named:
            why = f"Both need {', '.join(sorted(needs))}: what a processor says of itself does not tell which to run."
            raise InvalidInput(f"The processors {named[needs]} and {name} have the same instructions.", why=why, hint="Name one of them.")
        named[needs] = name
    return [replace(settings, cpu=named[needs]) for needs in sorted(named, key=len, reverse=True)]


def first_here(each: Sequence[Settings]) -> int:
    """Which of them comes first whose code this machine can run; 0 where there is none."""
    runs = [not machine_for(settings.target, settings.processor).not_here for settings in each]
    return runs.index(True) if True in runs else 0
