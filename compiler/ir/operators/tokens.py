"""Operators on tokens [N,T,F]."""

from __future__ import annotations

import torch

from sparsec.facts import backward, forward
from sparsec.ir import multiply_adds
from sparsec.ir.operators import references
from sparsec.ir.operators.record import Operand, Operator, X
from sparsec.lower import describe_tokens as describe
from sparsec.tokens import hidden, token_rules
from sparsec.tokens import ops as token_ops

aten = torch.ops.aten
INDICES = (torch.int64, torch.int32)
QUERY, KEY, VALUE = Operand("query"), Operand("key"), Operand("value")
KEY_BIAS, PAIR_BIAS = Operand("key_bias", "row"), Operand("pair_bias", "table")

TOKENS = (
    Operator(
        "attention",
        (token_ops.attention,),
        (QUERY, KEY, VALUE, KEY_BIAS, PAIR_BIAS),
        reference=token_ops.attention,
        describe=describe.attention,
        tokens="each",
        attends=True,
        multiply_adds=multiply_adds.of_attention,
        by_token=token_rules.ATTENTION,
        padding=hidden.by_key_bias,
    ),
    Operator(
        "key_bias",
        (token_ops.key_bias,),
        (Operand("x", "row"),),
        reference=token_ops.key_bias,
        describe=describe.of_activations,
        dtypes=(*INDICES, torch.bool),
        makes_rows=True,
        tokens="each",
    ),
    Operator("map_to_tokens", (token_ops.map_to_tokens,), reference=token_ops.map_to_tokens, describe=describe.of_activations),
    Operator("tokens_to_map", (token_ops.tokens_to_map,), reference=token_ops.tokens_to_map, describe=describe.of_activations),
    Operator(
        "layer_norm",
        (aten.layer_norm.default,),
        (X, Operand("weight", "weight"), Operand("bias", "weight")),
        reference=references.layer_norm,
        describe=describe.layer_norm,
        tokens="each",
        by_token=token_rules.FEATURES,
    ),
    Operator(
        "embedding",
        (aten.embedding.default,),
        (Operand("table", "weight"), Operand("ids", "row")),
        reference=references.embedding,
        describe=describe.embedding,
        dtypes=INDICES,
        tokens="each",
    ),
    Operator("add_table", operands=(X, Operand("table", "table", describe.without_ones)), reference=references.add, tokens="each"),
    Operator(
        "aten.cat",
        (aten.cat.default,),
        describe=describe.prepend,
        becomes=("prepend",),
        forward=forward.of_cat,
        backward=backward.of_cat,
    ),
    Operator("prepend", operands=(X, Operand("prefix", "table", describe.of_a_sample)), reference=references.prepend, tokens="each"),
    Operator("aten.select", (aten.select.int,), describe=describe.select, becomes=("select_token",), by_token=token_rules.SELECTION),
    Operator("aten.slice", (aten.slice.Tensor,), by_token=token_rules.SELECTION),
    Operator("select_token", reference=references.select_token, tokens="ends", padding=hidden.unless_first),
    Operator(
        "aten.mean",
        (aten.mean.dim,),
        describe=describe.mean,
        becomes=("mean_tokens",),
        by_token=token_rules.MEAN,
        forward=forward.of_average,
        backward=backward.of_average,
    ),
    Operator("mean_tokens", reference=references.mean_tokens, tokens="ends", padding=hidden.averages),
)
