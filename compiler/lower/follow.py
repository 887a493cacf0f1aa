"""Which tokens follow a size known at run time, and whether one program serves all values of it.

A graph is made for the largest size. Its kernels may take fewer tokens if only counts of tokens depend on the size: every other number
and every constant must be the same in the graph made for another size, tables of tokens the first rows of the larger table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsec.ir.arguments import operands
from sparsec.ir.forms import constant
from sparsec.ir.miss import Miss
from sparsec.ir.symbols import Dim
from sparsec.lower.regions import Region, covers, extract, returned
from sparsec.run.affine import Affine

if TYPE_CHECKING:
    from sparsec.doors.captured import Captured


def free_sizes(
    captured: Captured, graph_module: fx.GraphModule, simplified: Callable[[Captured], fx.GraphModule]
) -> tuple[dict[str, Affine], list[str]]:
    """Which inputs' tokens follow a run-time size that kernels can take; if there is one that they cannot, a note that says why.

    ``simplified`` gives the graph before facts and layouts, to compare that of two sizes.
    """
    found = followers(captured)
    if not found:
        return {}, []
    if isinstance(found, Miss):
        return {}, [f"compiled for fixed sizes: {found.reason}"]
    reason = _rigid(captured, graph_module, found, simplified)
    return ({}, [f"compiled for fixed sizes: {reason}"]) if reason else (found, [])


def _rigid(
    captured: Captured, graph_module: fx.GraphModule, follows: Mapping[str, Affine], simplified: Callable[[Captured], fx.GraphModule]
) -> str:
    """Why kernels cannot take every size at run time; empty if they can."""
    regions = extract(graph_module, follows)
    if len(regions) != 1 or not covers(regions[0], graph_module):
        return "parts of the graph are not in one region"
    reason = unserved(regions[0], captured, returned(graph_module.graph)) or _forbidden(captured, follows)
    return reason or difference(simplified(captured), simplified(captured.at(smaller(captured, follows))))


def _forbidden(captured: Captured, follows: Mapping[str, Affine]) -> str:
    """A size below the largest for which the program was not made; empty if there is none."""
    symbols = {each.symbol for each in follows.values()}
    others = {name for name in captured.symbols if name not in symbols}
    if guard := captured.signature.related(symbols, others):
        return f"it requires {guard}"
    if stepped := symbols & captured.stepped:
        return f"it computes with {', '.join(sorted(stepped))} in steps"
    for symbol in symbols:
        spec, size = captured.symbols[symbol], captured.sizes[symbol]
        value = captured.signature.forbidden(captured.sizes, [symbol], range(size, spec.least - 1, -1))
        if value is not None:
            return f"the program forbids {symbol} = {value}"
    return ""


def followers(captured: Captured) -> dict[str, Affine] | Miss:
    """For each input by name, the size that its tokens follow; why not, where other axes than those of tokens follow one."""
    found: dict[str, Affine] = {}
    for spec in captured.inputs:
        for position, dim in _free(spec.dims, captured.batches):
            if position != 1 or len(spec.shape) not in (2, 3) or dim.times != 1:
                return Miss(f"axis {position} of {spec.name} follows {dim}, and kernels take a number of tokens at run time only")
            found[spec.name] = dim
    return found


def smaller(captured: Captured, follows: Mapping[str, Affine]) -> dict[str, int]:
    """Other sizes to compare with: about two thirds, and odd."""
    symbols = {each.symbol for each in follows.values()}
    least = {name: spec.least for name, spec in captured.symbols.items()}
    return {name: max(least[name], size * 2 // 3 | 1) if name in symbols else size for name, size in captured.sizes.items()}


def difference(large: fx.GraphModule, small: fx.GraphModule) -> str:
    """Where two graphs of one program differ in more than counts of tokens; empty if nowhere."""
    pairs = list(zip(large.graph.nodes, small.graph.nodes, strict=False))
    if len(large.graph.nodes) != len(small.graph.nodes):
        return "the graph has other nodes for other sizes"
    twin = dict(pairs)
    for a, b in pairs:
        if (a.op, a.op != "get_attr" and a.target) != (b.op, b.op != "get_attr" and b.target):
            return f"{a.name} is {b.name} for other sizes"
        if a.op == "get_attr" and not _same_rows(constant(a), constant(b)):
            return f"the constant {a.target} depends on the size"
        if a.op == "call_function" and not _same_arguments(a, b, twin):
            return f"the arguments of {a.name} depend on the size"
    return ""


def unserved(region: Region, captured: Captured, results: Sequence[Any]) -> str:
    """What a region that is the whole graph cannot follow; empty if nothing."""
    for node, dims in zip(results, captured.output_dims, strict=True):
        for position, dim in _free(dims, captured.batches):
            if position != 1 or dim is None or region.follows.get(node) != dim:
                return f"axis {position} of the result {node.name} follows {dim}"
    return rearranged(region)


def rearranged(region: Region) -> str:
    """Where tokens that follow a run-time size become something else; empty if nowhere."""
    for node, spec in region.specs.items():
        served = node in region.follows or spec.operator.tokens == "ends"
        if not served and any(a in region.follows for a in operands(node)):
            return f"{node.name} makes something else of tokens"
    return ""


def _free(dims: Sequence[Dim | None], batch: Collection[str]) -> Iterator[tuple[int, Any]]:
    """Positions of axes that follow a size other than the batch's; None where it is unknown what they follow."""
    for position, dim in enumerate(dims):
        if not isinstance(dim, int) and (position or not isinstance(dim, Affine) or dim.symbol not in batch):
            yield position, dim


def _same_rows(large: Tensor | None, small: Tensor | None) -> bool:
    """Whether constants are equal, or the smaller one is the beginning of the larger along the dimensions in which they differ."""
    if large is None or small is None or large.dim() != small.dim() or large.dtype != small.dtype:
        return False
    cut = tuple(slice(0, size) for size in small.shape)
    return large.data_ptr() == small.data_ptr() or torch.equal(large[cut], small)


def _same_arguments(a: fx.Node, b: fx.Node, twin: Mapping[fx.Node, fx.Node]) -> bool:
    mine = fx.map_arg((a.args, a.kwargs), lambda node: twin[node])
    return bool(mine == (b.args, b.kwargs))
