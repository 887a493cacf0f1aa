"""The kernels for CPUs, family by family: what each honours of a spec. What is not in this table is refused."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from sparsec.backends.base import Machine
from sparsec.backends.cpu import expr
from sparsec.backends.cpu.attention_calls import attention_breach, attention_groups
from sparsec.backends.cpu.matvec_calls import elementwise_breach, elementwise_groups, gemv_groups, gemv_kernels, gemv_schedules, is_vector
from sparsec.backends.cpu.pool_calls import global_pool_breach, global_pool_groups, window_pool_breach, window_pool_groups
from sparsec.backends.cpu.products import product_breach, product_groups, product_kernels, product_schedules
from sparsec.backends.cpu.pruning import pruning_breach, pruning_groups
from sparsec.backends.cpu.stencils import depthwise_breach, depthwise_groups, is_depthwise, pair_breach, pair_groups, pair_kernels
from sparsec.backends.cpu.tokens import token_breach, token_groups
from sparsec.backends.family import ALIKE, ANY, DIMS, NUMBER, PAIR, WHOLE, Family
from sparsec.backends.plan import Group, Task
from sparsec.lower.layouts import LAYOUTS
from sparsec.lower.spec import KernelSpec, Schedule

Honours = dict[str, Container[Any]]
Ranks = Container[tuple[int, ...]]
Dtypes = tuple[tuple[tuple[str, str], ...], ...]

_DTYPE: Honours = {"dtype": ("float32", "float16")}
_ACTIVATION: Honours = {"activation": ("none", *expr.ACTIVATIONS), "lo": NUMBER, "hi": NUMBER}
_FIRST_ACTIVATION: Honours = {f"dw_{name}": values for name, values in _ACTIVATION.items()}
_BOOL = (False, True)
_STENCIL: Honours = {"stride": ((1, 1), (2, 2)), "padding": PAIR}
_SHIFTS: Honours = {"stride": PAIR, "padding": PAIR, "dilation": PAIR, "groups": WHOLE}
_WINDOW: Honours = {"kernel_size": PAIR, "stride": PAIR, "padding": PAIR}
_HEADS: Honours = {"heads": WHOLE, "scale": NUMBER, "causal": _BOOL}
_MASK: Honours = {"on": NUMBER, "off": NUMBER, "affine": _BOOL}
_KEEP: Honours = {"keep": WHOLE, "first": WHOLE}


def _whole(operand: str, *dtypes: str) -> Dtypes:
    """One operand that is not float32."""
    return tuple(((operand, dtype),) for dtype in dtypes)


def _takes_map(spec: KernelSpec) -> bool:
    return not is_vector(spec)


def _moved(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    raise ValueError(f"{task.node}: {task.spec.op} has no kernel of its own, lowering moves the value")


GEMV = Family(
    "product with a vector",
    ("conv2d", "linear"),
    "x weight bias residual",
    ((1, 1), (3, 3)),
    _DTYPE | _SHIFTS | _ACTIVATION,
    gemv_groups,
    gemv_schedules,
    gemv_kernels,
    takes=is_vector,
    fits=product_breach,
)
DEPTHWISE = Family(
    "depthwise stencil",
    ("conv2d",),
    "x weight bias residual",
    ((3, 3),),
    _DTYPE | _STENCIL | {"dilation": ((1, 1),), "groups": WHOLE} | _ACTIVATION,
    depthwise_groups,
    takes=is_depthwise,
    fits=depthwise_breach,
)
PRODUCT = Family(
    "product over a map",
    ("conv2d", "linear"),
    "x weight bias residual",
    ((2, 2), (3, 3)),
    _DTYPE | _SHIFTS | _ACTIVATION,
    product_groups,
    product_schedules,
    product_kernels,
    takes=_takes_map,
    fits=product_breach,
)
JOINED = Family(
    "depthwise and pointwise",
    ("depthwise_pointwise",),
    "x dw_weight dw_bias weight bias residual",
    ((3, 3),),
    _DTYPE | _STENCIL | _FIRST_ACTIVATION | _ACTIVATION,
    pair_groups,
    product_schedules,
    pair_kernels,
    fits=pair_breach,
)


def _pool(op: str, honours: Honours) -> Family:
    return Family(f"{op} of windows", (op,), "x", ((3, 3),), _DTYPE | _WINDOW | honours, window_pool_groups, fits=window_pool_breach)


def _elementwise(op: str, operands: str, honours: Honours) -> Family:
    return Family(f"elementwise {op}", (op,), operands, ALIKE, _DTYPE | honours, elementwise_groups, fits=elementwise_breach)


def _tokens(op: str, ranks: Ranks, operands: str = "x", honours: Honours = _DTYPE, dtypes: Dtypes = ((),)) -> Family:
    return Family(f"{op} of tokens", (op,), operands, ranks, _DTYPE | honours, token_groups, fits=token_breach, dtypes=dtypes)


def _pruning(op: str, ranks: Ranks, operands: str = "x", honours: Honours = _DTYPE, dtypes: Dtypes = ((),)) -> Family:
    return Family(f"{op} of tokens", (op,), operands, ranks, _DTYPE | honours, pruning_groups, fits=pruning_breach, dtypes=dtypes)


#: In order of preference.
FAMILIES = (
    GEMV,
    DEPTHWISE,
    PRODUCT,
    JOINED,
    _pool("max_pool2d", {}),
    _pool("avg_pool2d", {"count_include_pad": _BOOL}),
    Family("pooling of whole maps", ("global_avg_pool",), "x", ((3, 1), (3, 3)), _DTYPE, global_pool_groups, fits=global_pool_breach),
    _elementwise("add", "x y", {}),
    _elementwise("mul", "x y", {"channels": (0, 1)}),
    _elementwise("activate", "x", _ACTIVATION),
    Family(
        "attention",
        ("attention",),
        "query key value key_bias pair_bias",
        ((2, 2, 2, 2), (2, 2, 2, 1, 2)),
        _DTYPE | _HEADS,
        attention_groups,
        fits=attention_breach,
    ),
    _tokens("layer_norm", ((2, 2),), "x weight bias", {"eps": NUMBER}),
    _tokens("embedding", ((1, 2),), "ids table", dtypes=_whole("ids", "int64", "int32")),
    _tokens("add_table", ((2, 2),), "x table"),
    _tokens("prepend", ((2, 2),), "x prefix"),
    _tokens("select_token", ((2, 1),), "x", {"index": WHOLE}),
    _tokens("mean_tokens", ((2, 1),)),
    _tokens("key_bias", ((1, 1),), "x", _MASK, ((), *_whole("x", "int64", "int32", "bool"))),
    _tokens("map_to_tokens", ((3, 2),)),
    _tokens("tokens_to_map", ((2, 3),), "x", {"height": WHOLE, "width": WHOLE}),
    _pruning("token_scores", ((2, 2, 1), (2, 2, 1, 1)), "query key key_bias pair_bias", _HEADS | {"cls": _BOOL}),
    _pruning("keep_tokens", ((1, 1),), "x", _KEEP, _whole("output", "int64")),
    _pruning("gather_tokens", ((2, 1, 2),), "x index", dtypes=_whole("index", "int64")),
    _pruning("gather_keys", ((1, 1, 1),), "x index", dtypes=_whole("index", "int64")),
    _pruning("merge_plan", ((2, 1),), "x", {"heads": WHOLE} | _KEEP, _whole("output", "int64")),
    _pruning("merge_tokens", ((2, 1, 2), (2, 1, 1, 2)), "x plan sizes", {"keep": WHOLE}, _whole("plan", "int64")),
    _pruning("merge_sizes", ((1, 1), (1, 1, 1)), "plan sizes", {"keep": WHOLE}, _whole("plan", "int64")),
    _pruning("log_sizes", ((1, 1),)),
    _pruning("token_sizes", ((1, 1),)),
    _pruning("mean_merged", ((2, 1, 1),), "x sizes"),
    Family("a view", ("alias",), "x", ANY, _DTYPE, _moved),
    Family("a permutation", ("permute",), "x", ALIKE, _DTYPE | {"dims": DIMS}, _moved),
    Family("a change of layout", ("convert",), "x", ALIKE, _DTYPE | {"layout": LAYOUTS}, _moved),
)
