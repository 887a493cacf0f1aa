"""One record per operator: what the compiler knows of it. Records stand in the tuple `sparsec.ir.operators.OPERATORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from sparsec.facts.backward import Channels, Reads
from sparsec.facts.lattice import Fact
from sparsec.ir.arguments import tensor_places
from sparsec.ir.miss import Miss
from sparsec.tokens.token_rules import UNKNOWN, ByToken

Shape = tuple[int, ...]
#: The name of an operator of specs and its attributes, or the reason why there is no spec.
Description = tuple[str, Mapping[str, Any]] | Miss
#: "each": a result of tokens has those of the first operand, one by one, and perhaps some before them. "shape": so where its shape is that
#: of the operand. "ends": it takes any number of tokens, and makes none. "fixed": how many there are is known when compiling. "none": the
#: same, it is none of tokens or makes something else of them.
Tokens = Literal["each", "shape", "ends", "fixed", "none"]


def _as_it_is(shape: Shape) -> Shape:
    return shape


@dataclass(frozen=True)
class Operand:
    """An operand of an operator, by the name that specs and kernel families give it.

    role: "value", an activation; "row", one that is a number per token [N,T]; "weight", a constant at its own place, None where it is
    absent; "table", a constant that is left out where it is absent; "residual", what the epilogue adds.
    stored: the shape of which a spec speaks, of that of the constant.
    """

    name: str
    role: Literal["value", "row", "weight", "table", "residual"] = "value"
    stored: Callable[[Shape], Shape] = _as_it_is

    @property
    def is_activation(self) -> bool:
        """Whether specs count it among their inputs."""
        return self.role in ("value", "row")

    @property
    def is_constant(self) -> bool:
        """Whether specs count it among their weights."""
        return self.role in ("weight", "table")


X = Operand("x")


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator of graphs (it has targets), of specs (it has a reference), or of both.

    name: what specs call it. targets: what nodes of it call. operands: one for each parameter of its targets that takes tensors, in their
    order; a spec has activations, then constants, then a residual.
    reference: (*operands, **attributes) -> result in plain torch, the oracle for every backend; TypeError for another attribute.
    reshapes: the result is that of the reference in the shape that the spec says.
    describe: (node, its operator) -> what spec it asks for. becomes: the names that it gives beside the operator's own.
    dtypes: what kernels read and write beside float32. makes_rows: the result is a number per token.
    is_view: it computes nothing. products: the weights with which it multiplies, whose zeros are work that is saved.
    tokens: what becomes of tokens whose number is known at run time. attends: each token of the first operand becomes one of the result,
    by all tokens of the others.
    forward: (node) -> what is proved of its value; None: nothing is. backward: (node, channels of its value that are read) -> which
    channels of its inputs it reads; None: all. Copies need neither.
    multiply_adds: (node) -> how many there are; None: few. by_token: how it treats tokens that a pass may leave out.
    padding: (node) -> the mask that hides trailing tokens from it, why they may not be left out, or None where it needs no mask; None: it
    never does.
    """

    name: str
    targets: tuple[Any, ...] = ()
    operands: tuple[Operand, ...] = (X,)
    reference: Callable[..., Any] | None = None
    reshapes: bool = False
    describe: Callable[[fx.Node, Operator], Description] | None = None
    becomes: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    makes_rows: bool = False
    is_view: bool = False
    products: tuple[str, ...] = ()
    tokens: Tokens = "none"
    attends: bool = False
    forward: Callable[[fx.Node], Fact] | None = None
    backward: Callable[[fx.Node, Channels], Reads] | None = None
    multiply_adds: Callable[[fx.Node], int] | None = None
    by_token: ByToken = UNKNOWN
    padding: Callable[[fx.Node], fx.Node | Miss | None] | None = None

    @property
    def activations(self) -> tuple[Operand, ...]:
        """Those that specs count among their inputs."""
        return tuple(operand for operand in self.operands if operand.is_activation)

    @property
    def constants(self) -> tuple[Operand, ...]:
        """Those that specs count among their weights."""
        return tuple(operand for operand in self.operands if operand.is_constant)

    @property
    def decisive(self) -> int:
        """Which of the constants has the fact that kernels rely on."""
        names = [operand.name for operand in self.constants]
        return names.index("weight") if "weight" in names else 0

    @property
    def keeps_order(self) -> bool:
        """Whether the result has the elements of the operand in their order, in whatever shape."""
        return self.is_view and self.reshapes

    def stored(self, number: int, shape: Shape) -> Shape:
        """The shape of which a spec speaks, of a constant of this shape: the one of this number."""
        return self.constants[number].stored(shape) if number < len(self.constants) else shape

    def places(self, node: fx.Node, *roles: str) -> tuple[int, ...]:
        """The arguments of a node with these roles, by position."""
        return tuple(at for operand, at in zip(self.operands, tensor_places(node.target), strict=True) if operand.role in roles)

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The activations that a node reads in argument order, a residual left out; one that is read twice comes twice."""
        read: Any = node.args[0] if node.args and isinstance(node.args[0], list | tuple) else node.args
        beside = self.places(node, "residual")
        return tuple(a for i, a in enumerate(read) if isinstance(a, fx.Node) and a.op != "get_attr" and i not in beside)

    def weights(self, node: fx.Node) -> tuple[fx.Node | None, ...]:
        """The constant operands in argument order, None where one with a place of its own is absent."""
        places = self.places(node, "weight")
        if places:
            return tuple(node.args[i] if i < len(node.args) else None for i in places)  # type: ignore[misc]
        return tuple(a for a in node.all_input_nodes if a.op == "get_attr")

    def residual(self, node: fx.Node) -> fx.Node | None:
        """The value that a node adds in its epilogue, or None."""
        given = [node.args[at] for at in self.places(node, "residual") if at < len(node.args)]
        return given[0] if given else None  # type: ignore[return-value]

    def computed_weight(self, node: fx.Node) -> bool:
        """Whether a weight of a node is not a constant."""
        return any(w is not None and w.op != "get_attr" for w in self.weights(node))

    def reads_as_row(self, node: fx.Node, value: fx.Node) -> bool:
        """Whether a node reads a value as a number per token."""
        return any(at < len(node.args) and node.args[at] is value for at in self.places(node, "row"))
