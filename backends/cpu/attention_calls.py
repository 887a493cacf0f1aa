"""An attention task as a call of the attention kernel: which panel, where everything lies, the pair bias in the kernel's order."""

from __future__ import annotations

import numpy as np

from sparsec.backends.base import Machine
from sparsec.backends.cpu.attention import Masks, attention
from sparsec.backends.plan import Buffer, Call, Group, Task
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.run.affine import scaled

_NOTHING = np.zeros((1, 1, 16), np.float32)


def attention_breach(spec: KernelSpec) -> str:
    """What the shapes of attention, or of scores by it, lack for the kernels."""
    heads, shapes = spec["heads"], spec.operands()
    query, key, value = (shapes.get(name, spec.inputs[1]) for name in ("query", "key", "value"))
    pairs = shapes.get("pair_bias", (heads, query[0], key[0]))
    if any(len(shape) != 2 or shape[1] % heads for shape in (query, key, value)) or query[1] != key[1]:
        return f"attention of {heads} heads over {list(spec.inputs)}"
    if shapes.get("key_bias", key[:1]) != key[:1] or pairs[0] not in (1, heads) or pairs[1:] != (query[0], key[0]):
        return f"biases of shapes {shapes.get('key_bias')} and {pairs} on {query[0]} x {key[0]} pairs"
    return ""


def attention_groups(task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
    """softmax(scale * q k^T + masks) v of every head: sources q, k, v tiled (+ the key bias in rows), weights (pair bias) or ().

    Head h is features [h * D, (h + 1) * D). Counts that follow a run-time size do so in the call. ValueError where keys and values
    differ in tiles, or a tile of queries does not hold whole vectors.
    """
    return [Group((attention_call(task, machine),))]


def attention_call(task: Task, machine: Machine) -> Call:
    """The one call of ``attention_groups``."""
    (q, k, v), spec = task.sources[:3], task.spec
    pair_bias = task.weights[0] if task.weights else None
    masks = Masks(len(task.sources) > 3, pair_bias is not None, bool(spec["causal"]))
    rows, vectors = panel_of(q.storage, k.storage, task.target.storage, masks.causal, machine)
    if v.storage.index_space.tile != k.storage.index_space.tile:
        raise ValueError(f"{task.node}: tiles of {k.storage.index_space.tile} keys and of {v.storage.index_space.tile} values")
    width, heads = vectors * lanes_of(machine), int(spec["heads"])
    queries, keys, tile = q.storage.index_space.count, k.storage.index_space.count, k.storage.index_space.tile
    slot = k.storage.index_space.tiles * tile * width
    scores = Buffer(f"{task.node}.scores", Storage("single", slot), slot=slot)
    bias = _NOTHING if pair_bias is None else pack_pair_bias(pair_bias, width)
    return Call(
        source=attention(machine.vector, rows, vectors, tile, masks, machine.panels.unrolled),
        node=task.node,
        kind="attention",
        buffers={"q": q, "k": k, "v": v, "y": task.target, "key_bias": task.sources[-1], "scores": scores},
        writes=("y",),
        constants={"pair_bias": bias},
        scalars={
            "scale": float(spec["scale"]),
            "tiles": q.storage.index_space.tiles,
            "queries": queries,
            "keys": keys,
            "dim": q.storage.channels // heads,
            "value_dim": v.storage.channels // heads,
            "k_tile": k.storage.tile_step,
            "v_tile": v.storage.tile_step,
            "pair_head": bias[0].size if len(bias) > 1 else 0,
            "pair_row": bias.shape[2],
            **_steps("q", q.storage),
            **_steps("y", task.target.storage),
        },
        units=scaled(q.storage.index_space.tiles, heads * (q.storage.index_space.tile // width)),
        flops=2 * _pairs(queries, keys, 1, masks.causal) * (q.storage.channels + v.storage.channels),
        bytes=sum(b.storage.nbytes for b in (*task.sources, task.target)) + bias.nbytes,
        detail={"schedule": {"kernel": "attention", "rows": rows, "vectors": vectors}},
    )


def _steps(name: str, storage: Storage) -> dict[str, int]:
    return {f"{name}_width": storage.index_space.tile, f"{name}_tile": storage.tile_step, f"{name}_channel": storage.channel_step}


def lanes_of(machine: Machine) -> int:
    """Numbers that attention computes at once, in float32 whatever it reads."""
    return machine.vector.of("float32").lanes


def panel_of(q: Storage, k: Storage, y: Storage, causal: bool, machine: Machine) -> tuple[int, int]:
    """Rows and vectors of the panel that wastes least: wide panels compute more queries that are not there, or keys that are masked."""
    lanes = lanes_of(machine)

    def time(panel: tuple[int, int, float]) -> float:
        return panel[2] * _pairs(q.index_space.count, k.index_space.count, panel[1] * lanes, causal)

    fitting = [p for p in machine.panels.attention if not (q.index_space.tile % (p[1] * lanes) or y.index_space.tile % (p[1] * lanes))]
    if not fitting:
        raise ValueError(f"tiles of {q.index_space.tile} and {y.index_space.tile} queries do not hold whole vectors of {lanes}")
    rows, vectors, _ = min(fitting, key=time)
    return rows, vectors


def _pairs(queries: int, keys: int, width: int, causal: bool) -> int:
    """Pairs of a query and a key that are computed with queries in blocks of ``width``."""
    starts = range(0, queries, width)
    return width * (sum(min(keys, i + width) for i in starts) if causal else len(starts) * keys)


def pack_pair_bias(bias: np.ndarray, width: int) -> np.ndarray:
    """[1 or heads, Tq, Tk] -> [1 or heads, Tk, Tq rounded up to whole panels of ``width``], zeros there."""
    heads, queries, keys = bias.shape
    packed = np.zeros((heads, keys, -(-queries // width) * width), np.float32)
    packed[:, :, :queries] = bias.transpose(0, 2, 1)
    return packed
