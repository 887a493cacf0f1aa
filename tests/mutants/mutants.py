# ruff: noqa: E501
"""The list of mutants. Each is a mistake that somebody could make; none is equivalent to the code it replaces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``old``, which is once in ``file``, becomes ``new``. ``tests``: those to run first, with names of files without ``test_`` and ``.py``."""

    file: str
    old: str
    new: str
    tests: str

    @property
    def name(self) -> str:
        """For people, and for ``--only``."""
        return f"{self.file}: {self.old.strip()} → {self.new.strip()}"


PASSES = (
    Mutant("passes/fold_batchnorm.py", 'variance.double() + named["eps"]', "variance.double()", "passes/fold_batchnorm"),
    Mutant("passes/fold_batchnorm.py", "shift = -mean.double() * factor", "shift = -mean.double()", "passes/fold_batchnorm"),
    Mutant(
        "passes/fold_batchnorm.py", "moved = (bias.double() * factor + shift)", "moved = (bias.double() + shift)", "passes/fold_batchnorm"
    ),
    Mutant("passes/fold_batchnorm.py", "and len(source.users) == 1 else None", "else None", "passes/fold_batchnorm"),
    Mutant("passes/delete_dead_channels.py", "taps @ torch.tensor(", "-taps @ torch.tensor(", "passes/delete_dead_channels"),
    Mutant(
        "passes/delete_dead_channels.py",
        "elif values[index] != 0 and layer.padding != (0, 0):",
        "elif values[index] != 0 and layer.padding == (0, 0):",
        "passes/delete_dead_channels",
    ),
    Mutant(
        "passes/delete_dead_channels.py",
        "if layer.bias is not None or cut.constants:",
        "if layer.bias is not None:",
        "passes/delete_dead_channels",
    ),
    Mutant("passes/fuse_epilogue.py", "    if len(value.users) > 1:", "    if len(value.users) > 2:", "passes/fuse_epilogue"),
    Mutant(
        "passes/fuse_epilogue.py",
        '    if arguments(total)["alpha"] != 1:',
        '    if arguments(total)["alpha"] == 0:',
        "passes/fuse_epilogue",
    ),
    Mutant(
        "passes/fuse_epilogue.py",
        '{dim % 4 for dim in named["dim"]} != {2, 3}',
        '{dim % 4 for dim in named["dim"]} == {1}',
        "passes/fuse_epilogue",
    ),
    Mutant(
        "passes/fuse_depthwise_pointwise.py",
        "    if pointwise.x is not depthwise.node or pointwise.residual is depthwise.node:",
        "    if pointwise.x is not depthwise.node:",
        "passes/fuse_depthwise_pointwise",
    ),
    Mutant(
        "passes/sink_views.py",
        "order = [_axis(dim) for dim in view.dims]\n    if tensor",
        "order = [_axis(dim) for dim in reversed(view.dims)]\n    if tensor",
        "passes/sink_views",
    ),
    Mutant("passes/assign_layouts.py", "capacity=math.inf)", "capacity=0.0)", "passes/assign_layouts"),
    Mutant("passes/assign_layouts.py", "return int(converted), sum(", "return 1, sum(", "passes/assign_layouts"),
    Mutant("passes/group_regions.py", "if nx.has_path(graph, b, a):", "if False:", "passes/group_regions"),
    Mutant("passes/insert_token_pruning.py", 'node.meta["val"][:, :keep]', 'node.meta["val"][:, 1:]', "passes/insert_token_pruning"),
)
FACTS = (
    Mutant("compiler/facts/forward.py", '"hardswish": -0.375', '"hardswish": -0.175', "compiler/transfer"),
    Mutant("compiler/facts/forward.py", '"gelu": -0.1699712', '"gelu": 0.5', "compiler/transfer"),
    Mutant(
        "compiler/facts/forward.py",
        'KEEP_ZERO = frozenset({"none", "tanh", *LEAST})',
        'KEEP_ZERO = frozenset({"none", "tanh", "sigmoid", *LEAST})',
        "compiler/transfer",
    ),
    Mutant(
        "compiler/facts/forward.py", "density=min(1.0, a.density + b.density)", "density=max(a.density, b.density)", "compiler/transfer"
    ),
    Mutant(
        "compiler/facts/forward.py",
        "    dead[[channel for channel, value in values.items() if value == 0]] = True",
        "    dead[[*values]] = True",
        "compiler/transfer",
    ),
    Mutant("compiler/facts/forward.py", "return min((dim % max(rank, 1)", "return max((dim % max(rank, 1)", "compiler/transfer"),
    Mutant(
        "compiler/facts/backward.py",
        "frozenset(c // times for c in wanted)",
        "frozenset(c * times for c in wanted)",
        "passes/delete_dead_channels compiler/transfer",
    ),
    Mutant("compiler/facts/lattice.py", "worst = max(worst, sum(", "worst = min(worst or m, sum(", "compiler/facts"),
    Mutant("compiler/facts/lattice.py", "and a.span[1] <= b.high", "and a.span[1] >= b.high", "compiler/facts"),
    Mutant(
        "compiler/facts/sparsity.py",
        "down, right = -matrix.shape[0] % rows, -matrix.shape[1] % columns",
        "down, right = 0, -matrix.shape[1] % columns",
        "compiler/facts",
    ),
)
PLANNING = (
    Mutant(
        "backends/arena.py",
        "ceil_to(buffer.slot * dtype_of(buffer.storage.dtype).nbytes, LINE_BYTES)",
        "ceil_to(4 * buffer.slot, LINE_BYTES)",
        "backends/arena",
    ),
    Mutant(
        "backends/arena.py",
        "ceil_to(buffer.storage.nbytes, LINE_BYTES)",
        "ceil_to(4 * buffer.storage.elements, LINE_BYTES)",
        "backends/arena",
    ),
    Mutant(
        "backends/arena.py",
        "alive_together = other.first <= tenant.last and tenant.first <= other.last",
        "alive_together = other.first < tenant.last and tenant.first < other.last",
        "backends/arena",
    ),
    Mutant("backends/arena.py", "total = ceil_to(total + size, LINE_BYTES)", "total = ceil_to(size, LINE_BYTES)", "backends/arena"),
    Mutant(
        "backends/assemble.py",
        "row[field + 1 : field + 3] = arena.slot_bytes(buffer), buffer.unit * dtype_of(buffer.storage.dtype).nbytes",
        "row[field + 1 : field + 3] = 4 * buffer.slot, buffer.unit * dtype_of(buffer.storage.dtype).nbytes",
        "backends/assemble",
    ),
    Mutant(
        "backends/assemble.py",
        "return Patch(table, index, count.follows)",
        "return Patch(table, index, count.follows.scaled(2))",
        "backends/assemble backends/lowering_tokens",
    ),
    Mutant("backends/values.py", 'if want.layout == "halo" or want.dtype', "if want.dtype", "backends/values backends/view_chains"),
    Mutant(
        "compiler/run/affine.py",
        "return self.scale * -(-(self.times * size + self.plus) // self.over)",
        "return self.scale * (self.times * size + self.plus) // self.over",
        "compiler/affine",
    ),
    Mutant(
        "compiler/lower/regions.py",
        "known[node] = known[first].moved(spec.output[0] - spec.inputs[0][0])",
        "known[node] = known[first]",
        "compiler/follow compiler/regions",
    ),
    Mutant(
        "backends/cpu/access.py",
        "return max(max(-first, last) for first, last in ends)",
        "return max(-first for first, last in ends)",
        "compiler/regions backends/lowering",
    ),
)
KERNELS = (
    Mutant("backends/cpu/spmm.py", "if part == parts - 1:", "if part == 0:", "backends/cpu/spmm"),
    Mutant(
        "backends/cpu/spmm.py",
        "flat + np.repeat(first - (end - first) * np.arange(len(part)), count)",
        "flat + np.repeat((first - end) * np.arange(len(part)), count)",
        "backends/cpu/spmm",
    ),
    Mutant(
        "backends/cpu/block.py",
        "full_bias[: len(weight)] = 0 if bias is None else bias",
        "full_bias[: len(weight)] = 0",
        "backends/cpu/block",
    ),
    Mutant(
        "backends/cpu/depthwise.py",
        "lanes + j - r, lanes) for j in range(r))",
        "lanes + j - r, lanes) for j in range(r - 1))",
        "backends/cpu/depthwise",
    ),
    Mutant(
        "backends/cpu/expr.py",
        'f(1 / 6) + f(0.5), f(0.0), f(1.0), keeping)\n    if kind == "hardswish"',
        'f(1 / 5) + f(0.5), f(0.0), f(1.0), keeping)\n    if kind == "hardswish"',
        "backends/cpu/expr",
    ),
    Mutant(
        "backends/cpu/expr.py",
        "T.Select(v < lo, lo, v), lambda u: T.Select(hi < u, hi, u)",
        "T.max(v, lo), lambda u: T.min(hi, u)",
        "backends/cpu/expr backends/cpu/pointwise_ops",
    ),
    Mutant(
        "backends/cpu/layer_norm.py",
        "off[v * lanes + e] * off[v * lanes + e] + eps",
        "off[v * lanes + e] * off[v * lanes + e]",
        "backends/cpu/layer_norm",
    ),
    Mutant("backends/cpu/attention.py", "lambda: j <= i0 + e,", "lambda: j < i0 + e,", "backends/cpu/attention"),
    Mutant("backends/cpu/attention.py", "T.Select(peak[e] > T.float32(-_INF), peak[e], T.float32(0))", "peak[e]", "backends/cpu/attention"),
    Mutant(
        "backends/cpu/registers.py", "T.buffer_store(held, x[start + e], [e])", "T.buffer_store(held, x[e], [e])", "backends/cpu/registers"
    ),
    Mutant(
        "backends/cpu/products.py",
        "(taps % step, taps // step)",
        "(taps % step, taps // step + 1)",
        "backends/lowering backends/cpu/families",
    ),
)
TUNER = (
    Mutant(
        "autotune/tune.py",
        "tied = (default.median_ns or 0.0) * (1 - TIE) <= (fastest.median_ns or 0.0)",
        "tied = (default.median_ns or 0.0) <= (fastest.median_ns or 0.0)",
        "autotune/tune",
    ),
    Mutant("autotune/tune.py", "if not entry.emulated:", "if True:", "autotune/tune"),
    Mutant(
        "autotune/tune.py",
        "max(of_task.values(), key=lambda run: (run[0].time, run[0].run))",
        "min(of_task.values(), key=lambda run: (run[0].time, run[0].run))",
        "autotune/tune",
    ),
    Mutant(
        "autotune/tasks.py",
        "digest.update(np.packbits(weight != 0).data)",
        "digest.update(np.packbits(weight > 0).data)",
        "autotune/candidate autotune/tune",
    ),
    Mutant("autotune/candidate.py", "if error > tolerance:", "if error > 1:", "autotune/candidate"),
)
MUTANTS = (*PASSES, *FACTS, *PLANNING, *KERNELS, *TUNER)
