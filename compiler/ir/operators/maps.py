"""Operators on maps and vectors: layers, their epilogues, sums, products, pools."""

from __future__ import annotations

import operator
from typing import Any

import torch

from sparsec.facts import backward, forward
from sparsec.ir import multiply_adds, ops
from sparsec.ir.arguments import ACTIVATIONS, LIMITS
from sparsec.ir.operators import references
from sparsec.ir.operators.record import Operand, Operator, X
from sparsec.lower.describe_maps import global_pool, layer, multiplied, summed, window_pool
from sparsec.tokens import token_rules

aten = torch.ops.aten
Rules = dict[str, Any]
WEIGHT, BIAS, RESIDUAL = Operand("weight", "weight"), Operand("bias", "weight"), Operand("residual", "residual")
_PAIR = (Operand("dw_weight", "weight"), Operand("dw_bias", "weight"), WEIGHT, BIAS)
XY = (X, Operand("y"))

OTHER_LAYER: Rules = {"forward": forward.of_layer, "backward": backward.of_layer, "multiply_adds": multiply_adds.of_layer}
LAYER: Rules = {"describe": layer, "products": ("weight",), "forward": forward.of_layer, "backward": backward.of_layer}
ACTIVATION: Rules = {"forward": forward.of_activation, "backward": backward.of_activation}
SUM: Rules = {"forward": forward.of_sum, "backward": backward.of_both, "by_token": token_rules.ELEMENTWISE}
PRODUCT: Rules = {"forward": forward.of_product, "backward": backward.of_both, "by_token": token_rules.ELEMENTWISE}
AVERAGE: Rules = {"forward": forward.of_average, "backward": backward.of_average}

MAPS = (
    Operator("conv2d", (ops.conv2d,), (X, WEIGHT, BIAS, RESIDUAL), reference=ops.conv2d, **LAYER),
    Operator("linear", (ops.linear,), (X, WEIGHT, BIAS, RESIDUAL), reference=ops.linear, tokens="each", **LAYER),
    Operator(
        "depthwise_pointwise",
        (ops.depthwise_pointwise,),
        (X, *_PAIR, RESIDUAL),
        reference=ops.depthwise_pointwise,
        describe=layer,
        products=("dw_weight", "weight"),
        forward=forward.of_depthwise_pointwise,
    ),
    Operator("activate", (ops.activate,), reference=ops.activate, describe=layer, tokens="each", **ACTIVATION),
    Operator("add", (aten.add.Tensor,), XY, reference=references.add, describe=summed, becomes=("add_table",), tokens="each", **SUM),
    Operator("mul", (aten.mul.Tensor,), XY, reference=references.mul, describe=multiplied, tokens="each", **PRODUCT),
    Operator(
        "max_pool2d",
        (aten.max_pool2d.default,),
        reference=references.max_pool2d,
        describe=window_pool,
        forward=forward.of_max_pool,
        backward=backward.of_max_pool,
    ),
    Operator("avg_pool2d", (aten.avg_pool2d.default,), reference=references.avg_pool2d, describe=window_pool, **AVERAGE),
    Operator(
        "aten.adaptive_avg_pool2d",
        (aten.adaptive_avg_pool2d.default,),
        describe=global_pool,
        becomes=("global_avg_pool", "alias"),
        **AVERAGE,
    ),
    Operator("global_avg_pool", reference=references.global_avg_pool, reshapes=True),
)
#: What passes turn into the operators above; where one is left, torch runs it.
OF_TORCH = (
    Operator("aten.conv2d", (aten.conv2d.default, aten.conv2d.padding), (X, WEIGHT, BIAS), **OTHER_LAYER),
    Operator("aten.linear", (aten.linear.default,), (X, WEIGHT, BIAS), by_token=token_rules.EACH, **OTHER_LAYER),
    Operator("aten.activation", (*ACTIVATIONS, *LIMITS, aten.gelu.default), by_token=token_rules.EACH, **ACTIVATION),
    Operator("aten.add_", (aten.add_.Tensor,), XY, **SUM),
    Operator("aten.sub", (aten.sub.Tensor,), XY, by_token=token_rules.ELEMENTWISE),
    Operator("aten.div", (aten.div.Tensor,), XY, by_token=token_rules.ELEMENTWISE),
    Operator("aten.mul_", (aten.mul_.Tensor,), XY, **PRODUCT),
    Operator(
        "aten.batch_norm",
        (aten.batch_norm.default,),
        (X, WEIGHT, BIAS, Operand("mean", "weight"), Operand("variance", "weight")),
        forward=forward.of_norm,
        backward=backward.of_first,
    ),
    Operator("getitem", (operator.getitem,), (), forward=forward.of_item),
)
