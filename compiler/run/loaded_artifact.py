"""A loaded artifact: numpy arrays in, numpy arrays out, nested as the model's own result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparsec.errors import ArtifactError, InvalidInput
from sparsec.run.explanation import Explanation
from sparsec.run.program import Port, Program
from sparsec.run.runtime import Runner, StepTime


def check_structure(structure: Any, program: Program) -> None:
    """ArtifactError unless ``structure`` is a nesting with one leaf per output of the program."""
    leaves = _leaves(structure)
    if leaves != len(program.outputs):
        raise ArtifactError(f"The result's structure has {leaves} tensors, the program {len(program.outputs)} outputs.")


def _leaves(structure: Any) -> int:
    if structure is None or structure == "leaf":
        return int(structure is not None)
    match structure:
        case {"list": list(parts), **more} | {"tuple": list(parts), **more} if not more:
            return sum(map(_leaves, parts))
        case {"dict": dict(parts), **more} if not more:
            return sum(map(_leaves, parts.values()))
    raise ArtifactError(f"{structure!r} is not a structure of results.")


def _filled(structure: Any, leaves: Iterator[np.ndarray]) -> Any:
    if structure is None or structure == "leaf":
        return None if structure is None else next(leaves)
    ((kind, parts),) = structure.items()
    if kind == "dict":
        return {name: _filled(part, leaves) for name, part in parts.items()}
    made = [_filled(part, leaves) for part in parts]
    return tuple(made) if kind == "tuple" else made


class LoadedModel:
    """A network ready to run on numpy arrays. Safe to call from several threads at once.

    A pickle of it holds the path of the artifact, from which it is loaded again; a copy is the model itself, which never changes.
    """

    def __init__(self, runner: Runner, structure: Any, explanation: Explanation, again: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        """``again``: a function and its arguments that load the same artifact."""
        self._runner, self._structure, self._explanation, self._again = runner, structure, explanation, again

    def __reduce__(self) -> Any:
        return self._again

    def __copy__(self) -> LoadedModel:
        return self

    def __deepcopy__(self, memo: Any) -> LoadedModel:
        return self

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Names and shapes per sample of the inputs."""
        return self._runner.program.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Names and shapes per sample of the outputs, flat."""
        return self._runner.program.outputs

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return self._runner.threads

    def __call__(self, *args: np.ndarray, **kwargs: np.ndarray) -> Any:
        """Run on float32 arrays ``[batch, *shape]``, positional or by input name; any batch size, zero included.

        Returns arrays nested as the model's own result. InvalidInput for a wrong number, name, shape or dtype.
        """
        return _filled(self._structure, iter(self._runner(*self._bound(args, kwargs))))

    def flat(self, *args: np.ndarray, **kwargs: np.ndarray) -> dict[str, np.ndarray]:
        """Run as a call does; the arrays by output name."""
        results = self._runner(*self._bound(args, kwargs))
        return {port.name: array for port, array in zip(self.outputs, results, strict=True)}

    def explain(self) -> Explanation:
        """What the compiler found and chose, layer by layer."""
        return self._explanation

    def profile(self, *args: np.ndarray, repeats: int = 20, **kwargs: np.ndarray) -> list[StepTime]:
        """Time of each kernel: medians over ``repeats`` runs."""
        return self._runner.profile(self._bound(args, kwargs), repeats)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[np.ndarray, ...]:
        if kwargs:
            args = self._ordered(args, kwargs)
        for number, x in enumerate(args):
            if type(x) not in (np.ndarray, np.memmap):
                why = f"Input {number} is a {type(x).__module__}.{type(x).__qualname__}."
                raise InvalidInput("An artifact takes numpy arrays.", why=why, hint="Give numpy.ndarray of float32.")
        return args

    def _ordered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        names = [port.name for port in self.inputs]
        left = names[len(args) :]
        if set(kwargs) != set(left):
            why = f"Missing: {sorted(set(left) - set(kwargs))}; unknown or given twice: {sorted(set(kwargs) - set(left))}."
            raise InvalidInput("The named inputs do not fit.", why=why, hint=f"Inputs: {', '.join(names)}.")
        return (*args, *(kwargs[name] for name in left))

    def __repr__(self) -> str:
        sides = [", ".join(f"{p.name} {list(p.shape)}" for p in side) for side in (self.inputs, self.outputs)]
        return f"LoadedModel({sides[0]} -> {sides[1]}; {len(self._runner.program.steps)} kernels)"
