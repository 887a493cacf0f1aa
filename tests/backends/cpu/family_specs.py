"""For each family of kernels, cases in which every two values of the attributes that it honours meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.ir.ops import ACTIVATIONS
from sparsec.lower.spec import KernelSpec
from tests.backends.cpu.family_cases import Case, pairwise

#: Clamps of one side, of both and the wrong way round; their limits mean nothing to other activations.
LIMITS = ((0.0, float("inf")), (float("-inf"), 0.5), (-0.7, 0.9), (1.0, -1.0))
_BOTH, _LAYOUTS = (False, True), ("halo", "tiled")
_ACTIVATION = {"activation": ACTIVATIONS, "limits": LIMITS}
_EPILOGUE = _ACTIVATION | {"bias": _BOTH, "residual": (None, "halo", "tiled"), "target": _LAYOUTS}
_MAPS = {"size": ((5, 7), (9, 6), (1, 8)), "stride": (1, 2)}
_POOL = {"kernel": ((2, 2), (3, 2), (5, 3)), "stride": ((1, 1), (2, 2), (3, 1)), "padding": (0, 1), "size": ((9, 7), (8, 11))}
_ELEMENTWISE = {"shape": ((5,), (5, 1, 1), (5, 6), (5, 3, 7)), "source": _LAYOUTS, "target": _LAYOUTS}
_DENSITY = {"density": (0.3, 1.0)}
AXES: dict[str, dict[str, Any]] = {
    "depthwise stencil": _EPILOGUE | _MAPS | {"kernel": (3, 5, 7)},
    "product over a map": {
        **(_EPILOGUE | _MAPS | _DENSITY),
        "layer": ("conv", "conv", "linear"),
        "kernel": ((1, 1), (3, 3), (1, 3), (5, 5)),
        "dilation": (1, 2),
        "groups": (1, 2, 6),
        "source": _LAYOUTS,
    },
    "product with a vector": {
        **(_ACTIVATION | _DENSITY),
        "bias": _BOTH,
        "residual": (None, "halo"),
        "layer": ("conv", "linear"),
        "kernel": ((1, 1), (3, 3)),
        "groups": (1, 2, 6),
    },
    "depthwise and pointwise": {
        **(_EPILOGUE | _MAPS | _DENSITY),
        "kernel": (3, 5, 7),
        "dw_activation": ACTIVATIONS,
        "dw_bias": _BOTH,
    },
    "max_pool2d of windows": _POOL,
    "avg_pool2d of windows": _POOL | {"count_include_pad": _BOTH},
    "elementwise add": _ELEMENTWISE,
    "elementwise mul": _ELEMENTWISE | {"channels": (None, 0, 1)},
    "elementwise activate": _ELEMENTWISE | _ACTIVATION,
    "attention": {
        "heads": (1, 3),
        "scale": (0.5, -1.5),
        "causal": _BOTH,
        "key_bias": _BOTH,
        "pair_bias": (0, 1, "heads"),
        "queries": (5, 17),
        "values": (6, 12),
    },
}


#: Operands of whole numbers.
_WHOLE = {"embedding": "ids", "keep_tokens": "output", "merge_plan": "output"}
_WHOLE |= {"gather_tokens": "index", "gather_keys": "index", "merge_tokens": "plan", "merge_sizes": "plan"}


def spec(op: str, inputs: Any, output: Any, weights: Any = (), residual: Any = None, **attributes: Any) -> KernelSpec:
    made = KernelSpec(op, tuple(inputs), tuple(output), tuple(weights), attributes=tuple(sorted(attributes.items())), residual=residual)
    return replace(made, dtypes=((_WHOLE[op], "int64"),)) if op in _WHOLE else made


def _epilogue(row: dict[str, Any], output: tuple[int, ...], prefix: str = "") -> dict[str, Any]:
    lo, hi = row["limits"]
    return {f"{prefix}activation": row[f"{prefix}activation"], f"{prefix}lo": lo, f"{prefix}hi": hi}


def _places(row: dict[str, Any]) -> dict[str, Any]:
    names = {"source": "halo", "target": "halo", "residual": "halo", "density": 0.3}
    return {name: row.get(name) or default for name, default in names.items()}


def convolution(row: dict[str, Any], inputs: int, outputs: int, size: tuple[int, int]) -> Case:
    """A same-padded convolution."""
    kernel = row["kernel"] if isinstance(row["kernel"], tuple) else (row["kernel"],) * 2
    stride, dilation, groups = row.get("stride", 1), row.get("dilation", 1), row.get("groups", 1)
    output = (outputs, *(-(-n // stride) for n in size))
    shape = {
        "stride": (stride,) * 2,
        "padding": tuple(dilation * (k - 1) // 2 for k in kernel),
        "dilation": (dilation,) * 2,
        "groups": groups,
    }
    weights = ((outputs, inputs // groups, *kernel), (outputs,) if row["bias"] else None)
    made = spec("conv2d", ((inputs, *size),), output, weights, row["residual"] and output, **shape, **_epilogue(row, output))
    places = _places(row)
    # Only an unstrided 1x1 reads tiles of all channels.
    return Case(made, **places | {"source": "halo"} if kernel != (1, 1) or stride > 1 else places)


def linear(row: dict[str, Any], rows: tuple[int, ...], inputs: int = 40, outputs: int = 9) -> Case:
    """A linear layer on a vector, or on tokens."""
    output, weights = (*rows, outputs), ((outputs, inputs), (outputs,) if row["bias"] else None)
    made = spec("linear", ((*rows, inputs),), output, weights, row["residual"] and output, **_epilogue(row, output))
    return Case(made, **_places(row))


def _pair(row: dict[str, Any], c: int) -> Case:
    depthwise = convolution({**row, "bias": row["dw_bias"], "residual": None, "groups": 6 * c}, 6 * c, 6 * c, row["size"])
    output = (9 * c, *depthwise.spec.output[1:])
    attributes = {k: v for k, v in depthwise.spec.attributes if k in ("stride", "padding")}
    weights = (*depthwise.spec.weights, (9 * c, 6 * c, 1, 1), (9 * c,) if row["bias"] else None)
    attributes |= _epilogue(row, output) | _epilogue(row, output, "dw_")
    made = spec("depthwise_pointwise", depthwise.spec.inputs, output, weights, row["residual"] and output, **attributes)
    return Case(made, **_places(row) | {"source": "halo"})


def _pool(op: str, row: dict[str, Any]) -> Case:
    padding = (row["padding"],) * 2
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(row["size"], padding, row["kernel"], row["stride"], strict=True)]
    attributes = {"kernel_size": row["kernel"], "stride": row["stride"], "padding": padding}
    attributes |= {k: row[k] for k in ("count_include_pad",) if k in row}
    return Case(spec(op, ((5, *row["size"]),), (5, *size), **attributes))


def _attention(row: dict[str, Any]) -> Case:
    heads, (q, k) = row["heads"], (row["queries"], 11)
    inputs = [(q, 6), (k, 6), (k, row["values"]), *([(k,)] if row["key_bias"] else [])]
    pairs = {0: (), 1: ((1, q, k),), "heads": ((heads, q, k),)}[row["pair_bias"]]
    return Case(spec("attention", inputs, (q, row["values"]), pairs, **{n: row[n] for n in ("heads", "scale", "causal")}))


def _elementwise(op: str, row: dict[str, Any]) -> Case:
    shape = row["shape"]
    if op == "activate":
        return Case(spec(op, (shape,), shape, **_epilogue(row, shape)), **_places(row))
    inputs, channels = [shape, shape], row.get("channels")
    if channels is not None and len(shape) == 3 and shape[1:] != (1, 1):
        inputs[channels] = (shape[0], 1, 1)
        return Case(spec(op, inputs, shape, channels=channels), **_places(row))
    return Case(spec(op, inputs, shape), **_places(row))


def _made(family: str, row: dict[str, Any], c: int = 1, tokens: int = 7) -> Case:
    """``c``: how many times as many channels as otherwise."""
    if row.get("layer") == "linear":
        return linear(row, () if family == "product with a vector" else (tokens,), 39 + c, 8 + c)
    match family:
        case "depthwise stencil":
            return convolution({**row, "groups": 5 * c}, 5 * c, 5 * c, row["size"])
        case "product over a map":
            return convolution(row, 6 * c, 12 * c, row["size"])
        case "product with a vector":
            return convolution(row, 36 * c, 12 * c, (1, 1))
        case "depthwise and pointwise":
            return _pair(row, c)
        case "attention":
            return _attention(row)
    return _pool(family.split()[0], row) if "pool" in family else _elementwise(family.split()[1], row)


def _few(t: int = 7, f: int = 6, size: tuple[int, int] = (3, 5), heads: int = 2) -> dict[str, list[Case]]:
    """Families whose attributes are few: one case for each value, of ``t`` tokens of ``f`` features, and of maps of a size."""
    pixels = size[0] * size[1]
    return {
        **{f"elementwise {op}": [Case(spec(op, ((5 * t + 2,),) * 2, (5 * t + 2,)), "token_major", "token_major")] for op in ("add", "mul")},
        "pooling of whole maps": [Case(spec("global_avg_pool", ((f, *size),), (f,)), source) for source in ("halo", "tiled")],
        "layer_norm of tokens": [
            Case(spec("layer_norm", ((t, f),), (t, f), weights, eps=eps))
            for eps in (1e-5, 0.1)
            for weights in ((None, None), ((f,), None), ((f,), (f,)))
        ],
        "embedding of tokens": [Case(spec("embedding", ((t,),), (t, f), ((4, f),)))],
        "add_table of tokens": [Case(spec("add_table", ((t, f),), (t, f), (table,))) for table in ((t, f), (f,))],
        "prepend of tokens": [Case(spec("prepend", ((t, f),), (t + n, f), ((n, f),))) for n in (1, 3)],
        "select_token of tokens": [Case(spec("select_token", ((t, f),), (f,), index=i)) for i in (0, 3, t - 1)],
        "mean_tokens of tokens": [Case(spec("mean_tokens", ((t, f),), (f,)))],
        "key_bias of tokens": [
            Case(spec("key_bias", ((t,),), (t,), on=on, off=off, affine=affine), mask=mask)
            for affine in (False, True)
            for on, off in ((0.0, -1e4), (2.0, 0.0), (1.0, -1.0))
            for mask in ("float32", "int64", "int32", "bool")
        ],
        "map_to_tokens of tokens": [Case(spec("map_to_tokens", ((f, *size),), (pixels, f)), layout) for layout in ("halo", "tiled")],
        "tokens_to_map of tokens": [
            Case(spec("tokens_to_map", ((pixels, f),), (f, *size), height=size[0], width=size[1]), target=layout)
            for layout in ("halo", "tiled")
        ],
        "token_scores of tokens": [
            Case(spec("token_scores", ((t, f), (t, f), *bias), (t,), pairs, heads=heads, scale=0.7, causal=causal, cls=cls))
            for bias in ((), ((t,),))
            for pairs in ((), ((1, t, t),), ((heads, t, t),))
            for causal, cls in ((False, True), (True, False))
        ],
        "keep_tokens of tokens": [Case(spec("keep_tokens", ((t,),), (k,), keep=k, first=first)) for k, first in ((3, 0), (4, 1), (t, 2))],
        "gather_tokens of tokens": [Case(spec("gather_tokens", ((t, f), (3,)), (3, f)))],
        "gather_keys of tokens": [Case(spec("gather_keys", ((t,), (3,)), (3,)))],
        "merge_plan of tokens": [
            Case(spec("merge_plan", ((t, f),), (t,), heads=heads, keep=k, first=first)) for k, first in ((t - 2, 0), (t - 1, 1))
        ],
        "merge_tokens of tokens": [Case(spec("merge_tokens", ((t, f), (t,), *sizes), (4, f), keep=4)) for sizes in ((), ((t,),))],
        "merge_sizes of tokens": [Case(spec("merge_sizes", ((t,), *sizes), (4,), keep=4)) for sizes in ((), ((t,),))],
        "log_sizes of tokens": [Case(spec("log_sizes", ((t,),), (t,)))],
        "token_sizes of tokens": [Case(spec("token_sizes", ((t,),), (t,)))],
        "mean_merged of tokens": [Case(spec("mean_merged", ((t, f), (t,)), (f,)))],
    }


def cases(family: str, thorough: bool = True) -> Iterator[Case]:
    """All cases of a family by name; unless ``thorough`` few activations, each of which is code of its own for every other choice."""
    axes = AXES.get(family, {})
    if not thorough:
        axes = {name: _LEAN.get(name, values) for name, values in axes.items()}
    yield from _few().get(family, ())
    yield from (_made(family, row) for row in pairwise(axes))


def drawn(family: str, count: int, seed: int) -> Iterator[Case]:
    """Cases of random shapes and densities, and of any values that the family honours; few activations, see ``cases``."""
    random, axes = np.random.default_rng(seed), {name: _LEAN.get(name, values) for name, values in AXES.get(family, {}).items()}
    for _ in range(count):
        t, size = int(random.integers(5, 80)), (int(random.integers(5, 20)), int(random.integers(5, 20)))
        few = _few(t, 2 * int(random.integers(3, 20)), size).get(family, ())
        if few and (not axes or random.random() < 0.2):
            yield few[random.integers(len(few))]
            continue
        row = {name: values[random.integers(len(values))] for name, values in axes.items()}
        sizes = {name: size for name in ("size",) if name in row} | {name: t for name in ("queries",) if name in row}
        if "shape" in row:
            sizes["shape"] = (int(random.integers(1, 40)), t, *size)[: len(row["shape"])] if len(row["shape"]) < 3 else (t, *size)
        made = _made(family, row | sizes, int(random.integers(1, 4)), t)
        yield replace(made, density=float(random.choice((0.0, 0.05, 0.3, 1.0))))


_LEAN = {"activation": ("none", "clamp"), "dw_activation": ("none", "clamp")}
