"""From a captured graph to something that runs: passes, kernels for regions, Inductor for the rest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, fx

from sparsec import follow, padding
from sparsec import regions as region_module
from sparsec.autotune import tune
from sparsec.autotune.layout_costs import layout_costs
from sparsec.backends.assemble import assemble
from sparsec.backends.base import Source
from sparsec.backends.lowering import Lowered, lower_region
from sparsec.backends.x86.backend import X86
from sparsec.compiled import CompiledGraph, RegionProgram
from sparsec.doors import open_model
from sparsec.forms import Form, notes
from sparsec.from_torch.capture import Captured
from sparsec.model import CompiledModel
from sparsec.passes import PIPELINE
from sparsec.passes.insert_token_pruning import InsertTokenPruning
from sparsec.pipeline import Context, Result, run
from sparsec.rows import explanation_of
from sparsec.runtime import Runner
from sparsec.settings import Settings

#: The passes that only simplify.
_SIMPLE = tuple(each for each in PIPELINE if each.gives == Form.CAPTURED)


def compile_graph(captured: Captured, settings: Settings, *, keep_dense: bool = False) -> CompiledGraph:
    """Compile a captured graph for this machine.

    ``keep_dense`` makes regions of everything that kernels exist for, sparse or not (an artifact must not need torch).
    Raises SparsecError subclasses for machines and inputs that cannot be served.
    """
    settings = replace(settings, threads=settings.threads or torch.get_num_threads())
    backend = X86()
    context = Context(settings, backend.offers, _costs(backend, settings, keep_dense or settings.token_pruning is not None))
    result = run(captured.graph_module, PIPELINE, context)
    reasons = [*_odd_weights(result.graph_module), *_unpruned(result)]
    follows, rigid = follow.free_sizes(captured, result.graph_module, lambda part: run(part.graph_module, _SIMPLE, context).graph_module)
    mask = None
    if settings.remove_padding:
        mask, follows = padding.removable(result.graph_module, follows)
    found = [backend.with_tiles(r) for r in region_module.extract(result.graph_module, backend.tile, follows)]
    least = {name: spec.least for name, spec in captured.symbols.items()}
    programs = [_compile_region(region, backend, settings, least, mask) for region in found]
    whole = len(programs) == 1 and region_module.covers(programs[0].region, result.graph_module)
    explanation = explanation_of(result, programs, backend, settings)
    explanation = replace(explanation, notes=(*explanation.notes, *rigid))
    kept = captured.graph_module if settings.token_pruning is None else result.graph_module
    compiled = CompiledGraph(programs, result.story, explanation, whole, not programs, reasons, dense=kept)
    if whole:
        compiled.picks, compiled.returns = _ports(programs[0].region, result.graph_module)
    elif programs:
        compiled.run_rest, compiled.rest_bytes = _compile_rest(result.graph_module, programs, captured)
    return compiled


def _costs(backend: X86, settings: Settings, keep_dense: bool) -> dict[str, Any]:
    """What passes may ask of this machine."""
    measured = layout_costs(backend, settings.cache_dir, measuring=settings.tune != "off")
    # Joining a depthwise to its 1x1 convolution gained from four times L2 on (MobileNetV1 and V2, 224 and 448 pixels, 1 MiB of L2): strips
    # break the long streams of the depthwise, which costs more than a map that the next cache level holds.
    joined = {"depthwise_pointwise_bytes": 4 * backend.machine.l2}
    return {"keep_dense": keep_dense, **joined, **(asdict(measured) if measured else {})}


def _compile_region(
    region: region_module.Region, backend: X86, settings: Settings, least: Mapping[str, int], mask: fx.Node | None = None
) -> RegionProgram:
    """Tune if asked to, lower, build the library of every candidate kernel, assemble.

    The library holds all default candidates of each layer, so that another mask, which may make another candidate win, compiles
    nothing.
    """
    chosen = tune.choose(region, backend, settings)
    lowered = lower_region(region, backend, chosen)
    kernels = _kernels(lowered, backend)
    library = backend.build(kernels, settings.cache_dir)
    names = [n.name for n in region.inputs], [n.name for n in region.outputs]
    program = assemble(lowered.plan, kernels, names, max(settings.thread_count, backend.machine.cores), least)
    if mask is not None:
        program = replace(program, padding=region.inputs.index(mask))
    return RegionProgram(region, lowered, program, library, Runner(program, library, settings.thread_count), backend.machine)


def _kernels(lowered: Lowered, backend: X86) -> list[Source]:
    used = {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}
    for task in lowered.tasks:
        for schedule in backend.schedules(task):
            for group in backend.lower(task, schedule):
                used |= {call.source.symbol: call.source for call in group.calls}
    return [used[symbol] for symbol in sorted(used)]


def _ports(region: region_module.Region, graph_module: fx.GraphModule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the region's inputs among the graph's, and of the graph's outputs among the region's."""
    placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
    returned = region_module.returned(graph_module.graph)
    return tuple(placeholders.index(n) for n in region.inputs), tuple(region.outputs.index(n) for n in returned)


def _unpruned(result: Result) -> list[str]:
    """Why tokens stay that the user asked to leave out."""
    misses = [m for chapter in result.story.chapters if chapter.name == InsertTokenPruning.name for m in chapter.misses]
    return [f"No tokens are left out: {miss.reason} ({miss.node})." for miss in misses]


def _odd_weights(graph_module: fx.GraphModule) -> list[str]:
    """Weights with infinities or NaN: their layers get dense kernels, which the user should know."""
    reasons = []
    for node in graph_module.graph.find_nodes(op="get_attr"):
        fact = notes(node).get("fact")
        if fact is not None and fact.reason == "non-finite":
            users = ", ".join(u.name for u in node.users)
            reasons.append(f"The weight {node.target} has infinite or NaN values: {users} is compiled dense.")
    return reasons


def _compile_rest(graph_module: fx.GraphModule, programs: Sequence[RegionProgram], captured: Captured) -> tuple[Any, int]:
    """The graph with each region as one opaque operator, handed to Inductor; bytes of its constants."""
    from sparsec.inductor import RegionOp, compile_dense
    from sparsec.splice import splice

    operators = [RegionOp(p, [(tuple(n.meta["val"].shape), n.meta["val"].dtype) for n in p.region.outputs]) for p in programs]
    spliced = splice(graph_module, [(p.region, op) for p, op in zip(programs, operators, strict=True)])
    examples = [torch.zeros(spec.shape, dtype=spec.dtype) for spec in captured.inputs]
    # Freezing rewrites convolutions for oneDNN, which knows no float64.
    freezing = all(b.dtype == torch.float32 for b in spliced.buffers() if b.is_floating_point())
    nbytes = sum(b.nbytes for b in spliced.buffers())
    compiled = compile_dense(spliced, examples, freezing=freezing)

    def call(inputs: Sequence[Tensor], _keep: Any = operators) -> Any:
        return compiled(*inputs)

    return call, nbytes


def compile(
    model: Any, example_inputs: Any = None, kwargs: Mapping[str, Any] | None = None, *, dynamic_shapes: Any = None, **options: Any
) -> CompiledModel:
    """Compile a model for inputs of the example's shapes, and for every size of the axes that it leaves free.

    Any batch size runs where one region covers everything. Other sizes that kernels cannot take at run time are compiled at first use.

    Args:
        model: ``torch.nn.Module`` in eval mode, ``torch.export.ExportedProgram``, or the path of a ``.pt2`` or ``.onnx`` file.
        example_inputs: tuple of positional inputs (a lone tensor or array stands for a tuple of one); only a module needs them.
        kwargs: keyword inputs.
        dynamic_shapes: the free axes of a module's inputs, as ``torch.export.export`` takes them.
        options: fields of ``Settings`` (tune, threads, cache_dir, ...).

    Raises:
        InvalidInput, UnsupportedModel, MachineError.
    """
    settings = Settings.from_options(options)
    captured = open_model(model, example_inputs, kwargs, dynamic_shapes)

    def build(part: Captured) -> CompiledGraph:
        compiled = compile_graph(part, settings, keep_dense=True)
        if compiled.nothing_sparse:
            compiled.run_rest, compiled.rest_bytes = _compile_rest(compiled.dense, [], part)
        for reason in compiled.reasons:
            warnings.warn(reason, RuntimeWarning, stacklevel=3)
        return compiled

    return CompiledModel(captured, build(captured), settings, build)
