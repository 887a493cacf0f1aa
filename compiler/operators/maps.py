"""Operators on maps and vectors: layers, their epilogues, sums, products, pools."""

from __future__ import annotations

import torch

from sparsec import ops
from sparsec.describe_maps import global_pool, layer, sum_or_product, window_pool
from sparsec.operators import references
from sparsec.operators.record import Operand, Operator, X

aten = torch.ops.aten
WEIGHT, BIAS, RESIDUAL = Operand("weight", "weight"), Operand("bias", "weight"), Operand("residual", "residual")
_PAIR = (Operand("dw_weight", "weight"), Operand("dw_bias", "weight"), WEIGHT, BIAS)
XY = (X, Operand("y"))

MAPS = (
    Operator("conv2d", (ops.conv2d,), (X, WEIGHT, BIAS, RESIDUAL), reference=ops.conv2d, describe=layer, products=("weight",)),
    Operator("linear", (ops.linear,), (X, WEIGHT, BIAS, RESIDUAL), reference=ops.linear, describe=layer, products=("weight",)),
    Operator(
        "depthwise_pointwise",
        (ops.depthwise_pointwise,),
        (X, *_PAIR, RESIDUAL),
        reference=ops.depthwise_pointwise,
        describe=layer,
        products=("dw_weight", "weight"),
    ),
    Operator("activate", (ops.activate,), reference=ops.activate, describe=layer),
    Operator("add", (aten.add.Tensor,), XY, reference=references.add, describe=sum_or_product, becomes=("add_table",)),
    Operator("mul", (aten.mul.Tensor,), XY, reference=references.mul, describe=sum_or_product),
    Operator("max_pool2d", (aten.max_pool2d.default,), reference=references.max_pool2d, describe=window_pool),
    Operator("avg_pool2d", (aten.avg_pool2d.default,), reference=references.avg_pool2d, describe=window_pool),
    Operator("aten.adaptive_avg_pool2d", (aten.adaptive_avg_pool2d.default,), describe=global_pool, becomes=("global_avg_pool", "alias")),
    Operator("global_avg_pool", reference=references.global_avg_pool, reshapes=True),
)
