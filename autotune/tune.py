"""Choosing schedules for the tasks of a region."""

from __future__ import annotations

from collections.abc import Mapping

from sparsec.backends.lowering import Lowerer
from sparsec.regions import Region
from sparsec.settings import Settings
from sparsec.spec import Schedule


def choose(region: Region, backend: Lowerer, settings: Settings) -> Mapping[str, Schedule]:
    """Schedules by node name for the tasks where a measured record beats the default."""
    return {}
