"""All cases by name, and those of today: all of them take more time than a test run has."""

import os

from tests.models.heads import images, pairs, text, timm_models

CASES = {**text.CASES, **images.CASES, **pairs.CASES, **timm_models.CASES}
#: A number that differs from day to day, or is given to repeat a run.
SHARD = int(os.environ["SPARSEC_SHARD"])


def today(share: int) -> list[str]:
    """Names of one case in ``share``, other ones each day; all of them in a sweep."""
    names = list(CASES)
    return names if os.environ.get("SPARSEC_SWEEP") else names[SHARD % share :: share]
