"""What became of a model, whichever door it went through."""

from __future__ import annotations

import os
from typing import Any

from sparsec.errors import InvalidInput
from sparsec.run.artifact import read_explanation
from sparsec.run.explanation import Explanation


def explain(what: Any) -> Explanation:
    """Layer by layer what was found and chosen, and why what is dense stayed dense.

    Args:
        what: a function or module of ``torch.compile(..., backend="sparse")``, of which all graphs made so far are told; a compiled or
            loaded model; the path of an artifact.

    Returns:
        All layers, refused rewrites and what torch runs: ``print`` shows tables, ``to_json`` gives JSON.

    Raises:
        InvalidInput: something else.
        ArtifactError: no artifact at this path.
    """
    if isinstance(what, str | os.PathLike):
        return read_explanation(os.fspath(what))
    if isinstance(found := getattr(what, "explain", None) and what.explain(), Explanation):
        return found
    from sparsec.doors.torch_compile.notes import combined, notes_of

    notes = notes_of(what)
    if notes is None:
        hint = "Give what torch.compile, sparsec.compile or sparsec.load returned, or the path of an artifact."
        raise InvalidInput(f"There is nothing to explain about a {type(what).__name__}.", hint=hint)
    return combined(notes)
