"""What surrounds a compilation, kept out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch._dynamo.convert_frame import compile_lock
from torch.utils._python_dispatch import _disable_current_modes

from sparsec.run.forks import opened_in_children

# A thread that compiled is not in a forked child to give this back: there it would be waited for for ever.
opened_in_children(compile_lock)


@contextmanager
def compiling() -> Iterator[None]:
    """One thread at a time, Dynamo's own compilations included, as tracing sets global state.

    A program may be made in any call, the first of its sizes. What is on there is no part of the program: gradients, inference mode,
    autocast, a default device, modes that look at operators, another compilation under way.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        compile_lock,
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch._guards.tracing(None),
        _disable_current_modes(),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        yield
