"""KernelSpec: one kernel to make, as plain data. Schedule: an ordered tuple of named choices that make it fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.ir.operators import Operator

#: Choice names and values in order, such as (("kernel", "spmm"), ("vectors", 4)). Meaningless without a spec.
Schedule = tuple[tuple[str, str | int], ...]
#: Fields that are not asked for by name: what a kernel family decides on as a whole.
_STRUCTURE = ("op", "inputs", "output", "weights", "residual", "sources", "layout", "attributes", "weight_fact", "dtypes")


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel computes, per sample (the batch axis is the executor's loop).

    ``inputs``/``output``: shapes without the batch axis, of the activations in argument order (one that is read twice comes twice);
    ``residual``: the shape of a value that is added before the activation, which is not among ``inputs`` (None: nothing is added);
    ``weights``: shapes of constant operands in argument order (None: absent);
    ``sources``/``layout``: storage layouts of inputs and output; ``attributes``: sorted pairs (stride, groups, activation, ...);
    ``weight_fact``: the proved fact of the weight that kernels may rely on (plain JSON data);
    ``dtypes``: pairs of a name and a dtype, for each activation and for "output" where it is not ``dtype``. Constants are packed as a
    backend's kernels want them.
    """

    op: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    weights: tuple[tuple[int, ...] | None, ...] = ()
    sources: tuple[str, ...] = ()
    layout: str = "nchw"
    attributes: tuple[tuple[str, Any], ...] = ()
    weight_fact: str = "{}"
    dtype: str = "float32"
    residual: tuple[int, ...] | None = None
    dtypes: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The value of an attribute. KeyError where the op has none of this name."""
        return dict(self.attributes)[name]

    def asked(self) -> tuple[tuple[str, Any], ...]:
        """What a kernel has to honour, by name: all attributes, the dtype, and whatever fields a spec may get."""
        own = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in _STRUCTURE)
        return (*own, *self.attributes)

    def operands(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the operands that are there, by name; one that the operator does not know is named by its place."""
        activations, constants = ([each.name for each in kind] for kind in (self.operator.activations, self.operator.constants))
        read = [*_named(self.inputs, activations, "input"), *_named(self.weights, constants, "weight"), ("residual", self.residual)]
        return {name: shape for name, shape in read if shape is not None}

    def arguments(self, read: Sequence[Any], constants: Sequence[Any], residual: Any = None) -> list[Any]:
        """Operands in the operator's argument order, as ``reference`` takes them: None for those that are not there."""
        room = len(self.operator.activations) - len(read) if constants else 0
        return [*read, *[None] * room, *constants, *([] if residual is None else [residual])]

    def json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        data = {name: value for name, value in self.__dict__.items() if name != "dtypes" or value}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def restored(cls, text: str) -> KernelSpec:
        """The inverse of ``json``. ValueError or TypeError if the text is not a spec."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"a spec is a JSON object, not {type(data).__name__}")
        return cls(**{name: tuples(value) for name, value in data.items()})

    @property
    def key(self) -> str:
        """Short stable digest of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:20]

    def reference(self, *tensors: Tensor | None) -> Tensor:
        """The result in plain torch for batched tensors in the op's argument order: the oracle for every backend."""
        if self.operator.reference is None:
            raise KeyError(f"no specs are made of {self.op}")
        made = self.operator.reference(*tensors, **dict(self.attributes))
        return made.reshape(-1, *self.output) if self.operator.reshapes else made

    @property
    def operator(self) -> Operator:
        """What the compiler knows of the operator. KeyError where it has no record."""
        from sparsec.ir.operators import operator_named  # It brings torch; what only reads schedules does without.

        found = operator_named(self.op)
        if found is None:
            raise KeyError(f"{self.op} is an operator without a record")
        return found


def tuples(value: Any) -> Any:
    """JSON's lists as tuples, at every depth."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _named(shapes: Sequence[tuple[int, ...] | None], names: Sequence[str], kind: str) -> list[tuple[str, tuple[int, ...] | None]]:
    return [(names[i] if i < len(names) else f"{kind} {i}", shape) for i, shape in enumerate(shapes)]
