"""From a captured graph to something that runs: passes, kernels for regions, Inductor for the rest."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from sparsec.autotune import tune
from sparsec.autotune.layout_costs import layout_costs
from sparsec.autotune.roofline import roofline
from sparsec.backends import backend_for
from sparsec.backends.assemble import assemble
from sparsec.backends.base import Backend, Source
from sparsec.backends.lowering import Lowered, draft, lower
from sparsec.compiled_graph import CompiledGraph, RegionProgram
from sparsec.compiled_model import CompiledModel
from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.lower import Fixed
from sparsec.doors.open import open_model
from sparsec.errors import MachineError, internal
from sparsec.ir import ops
from sparsec.ir.arguments import layer_of
from sparsec.ir.forms import Form, notes
from sparsec.ir.pipeline import Context, Result, Story, run
from sparsec.lower import follow, padding
from sparsec.lower import regions as region_module
from sparsec.passes import PIPELINE
from sparsec.passes.insert_token_pruning import InsertTokenPruning
from sparsec.processors import first_here, for_each_processor
from sparsec.report.layer_rows import explanation_of
from sparsec.run.affine import Affine
from sparsec.run.explanation import Explanation
from sparsec.run.heap import give_back, older_objects_aside, trim
from sparsec.run.inputs import batches_text
from sparsec.settings import Options, Settings
from sparsec.tools.compiling import compiling
from sparsec.tools.needs import require

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A backend imports TVM when it is asked for: without it every graph would have an internal error.
require()

#: The passes that only simplify.
_SIMPLE = tuple(each for each in PIPELINE if each.gives == Form.CAPTURED)


def compile_graph(captured: Captured, settings: Settings, *, keep_whole: bool = False, rest: bool = True) -> CompiledGraph:
    """Compile a captured graph for this machine.

    ``keep_whole`` makes a region of a graph that kernels exist for as a whole, sparse or not (an artifact must not need torch). Without
    ``rest``, what is in no region is not compiled: a graph that has more than one region covers cannot be called.
    Raises SparsecError subclasses for machines and inputs that cannot be served. An internal error costs the region or the rewrite where it
    happens, at worst makes the graph dense, and is among the reasons; SPARSEC_STRICT=1 raises it.
    """
    settings = replace(settings, threads=settings.thread_count)
    try:
        compiled = _compile_graph(captured, settings, keep_whole, rest)
    except Exception as error:
        compiled = _dense_graph(captured, internal(error))
    values = [node.meta["val"] for node in region_module.returned(captured.graph_module.graph)]
    return replace(compiled, shapes=[(tuple(value.shape), value.dtype) for value in values])


def _compile_graph(captured: Captured, settings: Settings, keep_whole: bool, rest: bool) -> CompiledGraph:
    backend = backend_for(settings.target, settings.processor)
    _check_measurable(backend, settings)
    costs = layout_costs(backend, settings.cache_dir, measuring=settings.tune != "off" and not backend.machine.not_here)
    pruning = settings.token_pruning is not None
    context = Context(settings, backend.offers, backend.layouts, costs, keep_whole=keep_whole, keep_dense=pruning)
    result = run(captured.graph_module, PIPELINE, context, tolerant=True)
    odd = _odd_weights(result.graph_module)
    reasons = [*result.failures, *odd, *_unpruned(result)]
    follows, rigid = _free_sizes(captured, result, context)
    mask = None
    if settings.remove_padding:
        mask, follows = padding.removable(result.graph_module, follows)
    batches = captured.served
    found = [backend.arrange(region) for region in region_module.extract(result.graph_module, follows)]
    least = {name: spec.least for name, spec in captured.symbols.items()}
    # Measured before weights are packed: its buffers are larger than most weights.
    limits = roofline(backend.machine, settings.cache_dir) if found else None
    programs, failed = _programs(found, lambda region: _compile_region(region, backend, settings, least, mask, batches))
    whole = len(programs) == 1 and region_module.covers(programs[0].region, result.graph_module)
    explanation = explanation_of(result, programs, backend, settings, limits, failed)
    explanation = replace(explanation, notes=(*explanation.notes, *rigid, *_one_batch(captured), *_compiled_in(captured)))
    kept = captured.graph_module if settings.token_pruning is None else result.graph_module
    reasons += dict.fromkeys(failed.values())
    compiled = CompiledGraph(programs, result.story, explanation, whole, not programs, reasons, dense=kept, aliasing=captured.aliasing)
    compiled.one_batch, compiled.served = captured.one_batch, batches
    if whole:
        compiled.picks, compiled.returns = _ports(programs[0].region, result.graph_module)
    elif programs and rest:
        compiled.run_rest, compiled.rest_bytes = _compile_rest(result.graph_module, programs, captured, frozen=not odd)
    return compiled


def _check_measurable(backend: Backend, settings: Settings) -> None:
    if settings.tune != "off" and backend.machine.not_here and settings.tracker is None:
        raise MachineError(
            "Tuning measures kernels, which cannot run on this machine.",
            why=backend.machine.not_here,
            hint='Compile with tune="off" (--tune off), or tune on boards of this kind (--tracker HOST:PORT --key KEY).',
        )


def _dense_graph(captured: Captured, reason: str) -> CompiledGraph:
    """The graph as it is, left to the dense compiler."""
    calls = captured.graph_module.graph.nodes
    explanation = Explanation(uncovered=tuple((node.name, reason) for node in calls if node.op == "call_function"))
    return CompiledGraph(
        [], Story(), explanation, False, True, [f"Compiled dense: {reason}"], dense=captured.graph_module, aliasing=captured.aliasing
    )


def _programs(
    found: Sequence[region_module.Region], build: Callable[[region_module.Region], RegionProgram]
) -> tuple[list[RegionProgram], dict[str, str]]:
    """The programs of regions, and for the nodes of those that failed, why."""
    programs: list[RegionProgram] = []
    failed: dict[str, str] = {}
    for region in found:
        try:
            programs.append(build(region))
        except Exception as error:
            names = [node.name for node in region.specs]
            failed |= dict.fromkeys(names, f"{internal(error)}; the {len(names)} nodes from {names[0]} to {names[-1]} stay dense")
    return programs, failed


def _free_sizes(captured: Captured, result: Result, context: Context) -> tuple[dict[str, Affine], list[str]]:
    """See ``follow.free_sizes``."""
    if captured.symbols and captured.shares_results:
        return {}, ["compiled for fixed sizes: results share memory"]
    return follow.free_sizes(
        captured, result.graph_module, lambda part: run(part.graph_module, _SIMPLE, context, tolerant=True).graph_module
    )


def _compile_region(
    region: region_module.Region,
    backend: Backend,
    settings: Settings,
    least: Mapping[str, int],
    mask: fx.Node | None = None,
    batches: tuple[int, int | None] = (0, None),
) -> RegionProgram:
    """Tune if asked to, lower, build the library of every candidate kernel, assemble. ``batches``: the least and the largest served.

    The library holds all default candidates of each layer, so that another mask, which may make another candidate win, compiles
    nothing.
    """
    work = draft(region, backend)
    chosen = tune.choose(work.tasks, backend, settings)
    lowered = lower(work, backend, chosen.schedules)
    kernels = _kernels(lowered, backend)
    library = backend.build(kernels, settings.cache_dir)
    # What building leaves on the heap, before the constants are copied.
    trim()
    names = [n.name for n in region.inputs], [n.name for n in region.outputs]
    program = assemble(lowered.plan, kernels, names, max(settings.thread_count, backend.machine.cores), least, backend.executor)
    program = replace(program, batches=batches, padding=None if mask is None else region.inputs.index(mask))
    runner = backend.runner(program, library, settings.thread_count)
    return RegionProgram(region, lowered, program, library, runner, backend, chosen.times)


def _one_batch(captured: Captured) -> list[str]:
    """What the user should know where other batches are refused."""
    return [f"compiled for {batches_text(*captured.served)} only: {captured.one_batch}"] if captured.one_batch else []


def _compiled_in(captured: Captured) -> list[str]:
    """Inputs that are parts of the program."""
    named = zip(captured.names, captured.in_slots, strict=False)
    return [
        f"input {name!r} is compiled in as {slot.value.tolist()}: calls with another value are refused, an artifact takes none"
        for name, slot in named
        if isinstance(slot, Fixed)
    ]


def _kernels(lowered: Lowered, backend: Backend) -> list[Source]:
    used = {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}
    for task in lowered.tasks:
        for schedule in backend.schedules(task):
            used |= {source.symbol: source for source in backend.kernels(task, schedule)}
    return [used[symbol] for symbol in sorted(used)]


def _ports(region: region_module.Region, graph_module: fx.GraphModule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the region's inputs among the graph's, and of the graph's outputs among the region's."""
    placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
    returned = region_module.returned(graph_module.graph)
    return tuple(placeholders.index(n) for n in region.inputs), tuple(region.outputs.index(n) for n in returned)


def _unpruned(result: Result) -> list[str]:
    """Why tokens stay that the user asked to leave out."""
    misses = [m for chapter in result.story.chapters if chapter.name == InsertTokenPruning.name for m in chapter.misses]
    return [f"No tokens are left out: {miss.reason} ({miss.where})." for miss in misses]


def _odd_weights(graph_module: fx.GraphModule) -> list[str]:
    """Weights of layers with infinities or NaN: their layers get dense kernels, which the user should know."""
    reasons = []
    for node in graph_module.graph.find_nodes(op="get_attr"):
        fact = notes(node).get("fact")
        if fact is not None and fact.reason == "non-finite":
            layers = ", ".join(user.name for user in node.users if _weighs(node, user))
            if layers:
                reasons.append(f"The weight {node.target} has infinite or NaN values: {layers} is compiled dense.")
    return reasons


def _weighs(constant: fx.Node, user: fx.Node) -> bool:
    """Whether a constant is the weight of a layer, and not a mask or a table."""
    layer = layer_of(user)
    return layer.weight is constant if layer is not None else user.target is ops.depthwise_pointwise


def _compile_rest(graph_module: fx.GraphModule, programs: Sequence[RegionProgram], captured: Captured, *, frozen: bool) -> tuple[Any, int]:
    """The graph with each region as one opaque operator, handed to Inductor; bytes of its constants.

    ``frozen``: weights may become part of its code.
    """
    from sparsec.lower.inductor import compile_dense
    from sparsec.lower.outline import splice
    from sparsec.lower.region_op import RegionOp

    operators = [RegionOp(p, p.allocate) for p in programs]
    spliced = splice(graph_module, [(p.region, op) for p, op in zip(programs, operators, strict=True)])
    if captured.borrowed is not None:
        _own_constants(spliced)
    examples = [torch.zeros(spec.shape, dtype=spec.dtype, device="cpu") for spec in captured.inputs]
    # Freezing rewrites convolutions for oneDNN, which knows no float64 and loses the NaN that weights with NaN make.
    freezing = frozen and all(b.dtype == torch.float32 for b in spliced.buffers() if b.is_floating_point())
    fixed = _constant_results(spliced.graph)
    nbytes = sum(b.nbytes for b in spliced.buffers())
    compiled = compile_dense(spliced, examples, freezing=freezing)

    def call(inputs: Sequence[Tensor], _keep: Any = operators) -> Any:
        return _apart(compiled(*inputs), inputs, fixed)

    return call, nbytes


def _own_constants(graph_module: fx.GraphModule) -> None:
    """Gives a graph copies of its constants."""
    copies: dict[int, Tensor] = {}
    for name, tensor in [*graph_module.named_buffers(remove_duplicate=False)]:
        graph_module.register_buffer(name, copies.setdefault(id(tensor), tensor.clone()))


def _constant_results(graph: fx.Graph) -> frozenset[int]:
    """Positions of the results that depend on no input: the compiled graph may return the same tensor in every call."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or varying.intersection(node.all_input_nodes):
            varying.add(node)
    return frozenset(i for i, node in enumerate(region_module.returned(graph)) if node not in varying)


def _apart(results: Sequence[Tensor], inputs: Sequence[Tensor], fixed: Collection[int]) -> list[Tensor]:
    """The results, cloned where they share memory with inputs, constants or each other: what shares memory in eager mode is made later."""
    taken = {x.untyped_storage().data_ptr() for x in inputs}
    apart = []
    for position, result in enumerate(results):
        shared = position in fixed
        if result.layout == torch.strided:
            pointer = result.untyped_storage().data_ptr()
            shared |= pointer in taken
            taken.add(pointer)
        apart.append(result.clone() if shared else result)
    return apart


def _left_to_torch(explanation: Explanation) -> str:
    """What the user should know of a model of which nothing is compiled."""
    reasons = Counter(reason for _, reason in explanation.uncovered)
    why = f" Most often: {reasons.most_common(1)[0][0]}." if reasons else ""
    return f"No kernel of sparsec covers anything of this model: the dense compiler runs it.{why}"


def compile(
    model: Any,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    **options: Unpack[Options],
) -> CompiledModel:
    """Compile a model for inputs of the example's shapes, and for every size of the axes that it leaves free.

    The object has the weights of one moment of this call: later changes of the model are not seen. Where weights are written to meanwhile
    it is compiled again, of copies. No other thread may call a module meanwhile.
    Any batch size runs where one region covers everything. Other sizes that kernels cannot take at run time are compiled at first use.

    Args:
        model: ``torch.nn.Module`` in eval mode, ``torch.export.ExportedProgram``, or the path of a ``.pt2`` or ``.onnx`` file.
        example_inputs: tuple of positional inputs (a lone tensor or array stands for a tuple of one); only a module needs them.
        kwargs: keyword inputs.
        dynamic_shapes: the free axes of a module's inputs, as ``torch.export.export`` takes them.
        options: see ``Options``; what they mean, and what they are where left out, stands in ``Settings``.

    Returns:
        A model to be called like ``model``, with float32 tensors on the CPU or numpy arrays, which gives what ``model`` gives, in the same
        nesting, without gradients. ``explain()`` says what became of each layer, ``save(path)`` writes an artifact, ``profile(*inputs)``
        times the layers.

    Raises:
        InvalidInput: an unknown option or a value out of range, inputs that do not fit the model, processors that no flag tells apart.
        UnsupportedModel: a model that cannot be captured, or whose meaning a compiled object cannot keep.
        MachineError: no AVX2, no compiler that links the kernels, or a package that is missing.
    """
    each = for_each_processor(Settings.from_options(options))
    opened = partial(open_model, model, example_inputs, kwargs, dynamic_shapes)
    with older_objects_aside():
        captured = opened("borrowed")
        variants = _of_one_moment(captured, each)
        if variants is None:
            captured = opened("copied")
            variants = [_complete(captured, settings) for settings in each]
    _warn(*variants)
    here = first_here(each)

    def build(part: Captured) -> CompiledGraph:
        further = _complete(part, each[here])
        _warn(further)
        return further

    # Without the graph, which holds weights; for other sizes it is made again.
    kept = replace(captured, graph_module=fx.GraphModule(nn.Module(), fx.Graph()), borrowed=None)
    return CompiledModel(kept, variants[here], each[here], build, variants)


def _of_one_moment(captured: Captured, each: Sequence[Settings]) -> list[CompiledGraph] | None:
    """What a graph becomes by these settings; None where weights that it borrows were written to meanwhile, whatever came of that."""
    try:
        compiled = [_complete(captured, settings) for settings in each]
    except Exception:
        if captured.borrowed is None or captured.borrowed.unchanged():
            raise
        return None
    return compiled if captured.borrowed is None or captured.borrowed.unchanged() else None


def _complete(captured: Captured, settings: Settings) -> CompiledGraph:
    """What a graph becomes, with everything that it needs to run. Nothing of it is the model's any more."""
    with compiling():
        compiled = compile_graph(captured, settings, keep_whole=True)
        if compiled.nothing_sparse:
            given = compiled.reasons
            compiled.reasons = given or [_left_to_torch(compiled.explanation)]
            compiled.run_rest, compiled.rest_bytes = _compile_rest(compiled.dense, [], captured, frozen=not given)
        if captured.borrowed is not None:
            # What is garbage by now holds on to the model's weights.
            give_back(sum(compiled.held.values()))
        compiled.release_weights()
    return compiled


def _warn(*variants: CompiledGraph) -> None:
    for reason in dict.fromkeys(reason for compiled in variants for reason in compiled.reasons):
        warnings.warn(reason, RuntimeWarning, stacklevel=3)
