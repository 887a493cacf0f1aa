"""What holds of every prefix of the pipeline, whatever passes it has."""

import pytest

from sparsec.passes import PIPELINE
from tests.passes.claims import OF_PREFIXES, OF_THE_WHOLE, Claim, Passes, holds_for_all
from tests.strategies import KINDS

PREFIXES = [pytest.param(PIPELINE[: n + 1], id=step.name) for n, step in enumerate(PIPELINE)]


@pytest.mark.parametrize("passes", PREFIXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", OF_PREFIXES, ids=lambda claim: claim.__name__)
def test_every_prefix(claim: Claim, kind: str, passes: Passes) -> None:
    holds_for_all(claim, kind, passes, OF_PREFIXES[claim])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", OF_THE_WHOLE, ids=lambda claim: claim.__name__)
def test_the_whole_pipeline(claim: Claim, kind: str) -> None:
    holds_for_all(claim, kind, PIPELINE, OF_THE_WHOLE[claim])
