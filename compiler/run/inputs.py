"""What a call gives a program, checked: number, shapes, dtypes, run-time sizes, indices. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.errors import InvalidInput
from sparsec.run.dtypes import dtype_of
from sparsec.run.program import DTYPES, Program

#: One object per dtype, of arrays that hold such numbers or their bits: arrays of the usual make are recognised by identity.
NUMPY = {name: dtype_of(name).numpy for name in DTYPES}


def check_inputs(program: Program, inputs: Sequence[Any]) -> tuple[int, dict[str, int]]:
    """The common batch size of ``inputs`` (anything with shape and dtype), 1 for a program without inputs; its run-time sizes."""
    if len(inputs) != len(program.inputs):
        names = ", ".join(p.name for p in program.inputs)
        raise InvalidInput(f"The program takes {len(program.inputs)} input(s) ({names}), {len(inputs)} given.")
    if not inputs:
        return 1, {}
    batch = inputs[0].shape[0] if len(inputs[0].shape) else 0
    least, most = program.batches
    if batch < least or (most is not None and batch > most):
        why = "What the model does depends on it, or its file leaves it no choice: the notes of explain() say which."
        raise InvalidInput(f"The program was compiled for {batches_text(least, most)}, the inputs have {batch}.", why=why)
    sizes = sizes_of(program, inputs) if program.sizes else {}
    for port, x in zip(program.inputs, inputs, strict=True):
        dtype = x.dtype
        fits = dtype is NUMPY[port.dtype] or str(dtype).removeprefix("torch.") == port.dtype
        if tuple(x.shape) != (batch, *port.shape_for(sizes)) or not fits:
            want = " × ".join(map(str, ("batch", *port.shape_for(sizes))))
            raise InvalidInput(f"Input {port.name!r} must be {port.dtype} [{want}], it is {x.dtype} {list(x.shape)}.")
    return batch, sizes


def batches_text(least: int, most: int | None) -> str:
    """As in "a batch of 2", "batches of 1 to 3"."""
    if least == most:
        return f"a batch of {least}"
    return f"batches of {least} {'or more' if most is None else f'to {most}'}"


def sizes_of(program: Program, inputs: Sequence[Any]) -> dict[str, int]:
    """The run-time sizes that inputs say. InvalidInput where one is out of range."""
    found: dict[str, int] = {}
    for port, x in zip(program.inputs, inputs, strict=True):
        if port.follows is not None and len(x.shape) == 1 + len(port.shape):
            found.setdefault(port.follows.symbol, int(x.shape[1]) - port.follows.plus)
    for size in program.sizes:
        given = found.get(size.name, 0)
        if not size.least <= given <= size.most:
            raise InvalidInput(
                f"The inputs have {size.name} = {given}.",
                why=f"The program was compiled for {size.least} to {size.most}.",
                hint="Compile for larger inputs, or split this one.",
            )
    return found


def check_indices(program: Program, arrays: Sequence[np.ndarray]) -> None:
    """InvalidInput where an input of indices names a row that its table has not."""
    for port, array in zip(program.inputs, arrays, strict=True):
        if port.limit is not None and array.size and not (array.min() >= 0 and array.max() < port.limit):
            why = f"They go from {array.min()} to {array.max()}, the table has rows 0 to {port.limit - 1}."
            raise InvalidInput(f"Input {port.name!r} holds indices out of range.", why=why)


def valid_tokens(mask: np.ndarray) -> np.ndarray:
    """Tokens up to the last valid one, per row of a padding mask [N, T]; all of them where none is valid."""
    valid = mask != 0
    last = valid.shape[1] - np.argmax(valid[:, ::-1], axis=1)
    return np.where(valid.any(axis=1), last, valid.shape[1])


def example_inputs(program: Program) -> list[np.ndarray]:
    """The fewest samples that it takes, of the largest sizes: random numbers, indices and truths that are all 1 where they may be."""
    random, batch = np.random.default_rng(0), max(program.batches[0], 1)
    return [
        random.random((batch, *port.shape), np.float32).astype(port.dtype, copy=False)
        if port.dtype in ("float32", "float16")
        else np.full((batch, *port.shape), 0 if port.limit == 1 else 1, NUMPY[port.dtype])
        for port in program.inputs
    ]
