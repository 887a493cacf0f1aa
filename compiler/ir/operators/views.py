"""Operators that compute nothing: other shapes, other orders of axes, copies."""

from __future__ import annotations

import torch

from sparsec.facts import backward, forward
from sparsec.facts.forward import RESHAPES
from sparsec.ir import ops
from sparsec.ir.arguments import IDENTITIES
from sparsec.ir.operators import references
from sparsec.ir.operators.record import Operator
from sparsec.lower.views import permuted, reshaped
from sparsec.tokens.token_rules import EACH, IF_INACTIVE

aten = torch.ops.aten
_SPLIT_OR_ONE = (aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)

VIEWS = (
    Operator("alias", reference=references.same, reshapes=True, is_view=True, tokens="shape"),
    Operator("permute", reference=references.permute, is_view=True),
    Operator(
        "convert",
        (ops.to_layout,),
        reference=ops.to_layout,
        describe=lambda node, operator: (operator.name, dict(node.kwargs)),
        is_view=True,
        tokens="each",
        by_token=EACH,
    ),
    Operator(
        "aten.reshape",
        tuple(RESHAPES),
        describe=reshaped,
        becomes=("alias",),
        forward=forward.of_reshape,
        backward=backward.of_reshape,
    ),
    Operator("aten.unflatten", _SPLIT_OR_ONE, describe=reshaped, becomes=("alias",)),
    Operator("aten.clone", tuple(IDENTITIES - {ops.to_layout}), describe=reshaped, becomes=("alias",), by_token=EACH),
    Operator("aten.to", (aten.to.dtype, aten._to_copy.default), by_token=EACH),
    Operator("aten.dropout", (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default), by_token=IF_INACTIVE),
    Operator(
        "aten.permute",
        (aten.permute.default, aten.transpose.int),
        describe=permuted,
        becomes=("permute",),
        forward=forward.of_permutation,
    ),
)
