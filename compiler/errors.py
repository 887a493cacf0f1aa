"""What a user can cause, as exceptions that say what happened, where, why, and what to do next."""

import os


class SparsecError(Exception):
    """Base of every error that a user can cause.

    `what` is one sentence. `where` names the node, file or argument (with the user's source line if known), `why` the
    condition that failed, `hint` what to do next; empty parts are left out of the message.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, where, why, hint
        parts = [what]
        parts += [f"  {label}: {text}" for label, text in (("where", where), ("why", why), ("next", hint)) if text]
        super().__init__("\n".join(parts))


class InvalidInput(SparsecError):
    """An argument or a tensor of the wrong shape, dtype, device or value."""


class UnsupportedModel(SparsecError):
    """A model that no door can turn into a graph."""


class PipelineError(SparsecError):
    """Passes in an order that their forms do not allow, or a pass that does not exist."""


class PassRefused(PipelineError):
    """An edit that would change what a graph means: another shape or dtype, a value still in use."""


class VerificationError(SparsecError):
    """A graph that is not well formed, or not of the form that a pass promised."""


class ArtifactError(SparsecError):
    """An artifact that is missing, incomplete, altered, or made for another machine."""


class MachineError(SparsecError):
    """A machine that lacks an instruction set, a library or a device that was asked for."""


class TuningError(SparsecError):
    """Measurements or records that cannot be made, read or written."""


def unwritten(error: OSError) -> dict[str, str]:
    """Why a place cannot be written and what to do next, as an error's arguments."""
    hint = "Name a place in a folder that exists, has room and that you may write to."
    return {"why": error.strerror or str(error), "hint": hint}


#: What sparsec's own mistakes raise, though they are SparsecErrors.
_OWN = (PassRefused, VerificationError)


def internal(error: Exception) -> str:
    """The line that reports a mistake of sparsec. Raises the error again where a user can cause it, and always with SPARSEC_STRICT=1."""
    if os.environ.get("SPARSEC_STRICT") == "1" or (isinstance(error, SparsecError) and not isinstance(error, _OWN)):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"internal error, please report it: {': '.join([type(error).__name__, *lines[:1]])}"
