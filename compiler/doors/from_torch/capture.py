"""The torch door: an nn.Module, an ExportedProgram or one of Dynamo's graphs becomes one CAPTURED graph."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch._export.utils import _get_decomp_for_cia
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from sparsec.doors.borrowed import Borrowed, can_be_borrowed
from sparsec.doors.captured import Captured, InputSpec
from sparsec.doors.from_torch.aliasing import shows_unsaid
from sparsec.doors.from_torch.batches import dependence_on_batch, only_batch, unlike_one
from sparsec.doors.from_torch.dense_weights import is_plain, plain, plain_weights
from sparsec.doors.from_torch.dry_run import let_go
from sparsec.doors.from_torch.dynamo import Replay, bake, weight_positions
from sparsec.doors.from_torch.exported import Symbolic, is_symbolic, read_symbols
from sparsec.doors.from_torch.exporting import first_line, quiet_export, uncaptured
from sparsec.doors.from_torch.leftovers import unchanged
from sparsec.doors.from_torch.lower import Lowered, lower
from sparsec.doors.from_torch.randomness import DropoutReturnsItsInput
from sparsec.doors.from_torch.reshapes import refuse_unlike_eager, refused, uncertain_write, writes
from sparsec.doors.from_torch.sharing import as_in_eager
from sparsec.doors.from_torch.state import dependence_on_calls
from sparsec.doors.from_torch.strides import Asked
from sparsec.doors.from_torch.writes import refuse_unfollowed_writes
from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel
from sparsec.ir.symbols import Signature
from sparsec.tools.compiling import compiling

Weights = Literal["copied", "borrowed", "given"]


def capture(
    source: nn.Module | ExportedProgram,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    weights: Weights = "copied",
) -> Captured:
    """Capture a model for arguments of these shapes and dtypes; the model itself is never changed.

    weights: "copied", so that later changes of the model are not seen; "borrowed", where ``Captured.borrowed`` tells whether there were
    any, but for programs with free sizes, which need them later on; "given" by who has no other use for a program's.

    dynamic_shapes: which axes of a module's inputs are free, as ``torch.export.export`` takes it; a program knows its own. A graph with
    free axes is made for the largest number of tokens (see ``Symbolic.first_choice``), ``Captured.at`` makes it for other sizes.

    source: a module in eval mode, an exported program, or a GraphModule whose parameters are among `args` (what Dynamo
    gives a backend); those become constants. Parameters of any sparse layout become dense, with the same values.
    Raises UnsupportedModel if the model is in training mode, has effects other than its result, or depends on values in
    a way torch.export cannot follow; InvalidInput for arguments that do not fit.
    """
    args, kwargs = tuple(args), dict(kwargs or {})
    with compiling():
        if isinstance(source, ExportedProgram):
            opened = _opened(source, args, kwargs, weights)
            if opened.symbols:
                return replace(opened, signature=_above_one(source.module(), args, kwargs, opened))
            fixed = only_batch([x.shape for x in opened.inputs], "the program", "dynamic_shapes") if opened.fixed_batch else ""
            return replace(opened, one_batch=fixed)
        if isinstance(source, fx.GraphModule) and (positions := weight_positions(source, args)):
            return capture_graph(source, args, positions)[0]
        module = unwrapped(source)
        _check_module(module)
        with plain_weights(module), unchanged(module):
            described = _of_module(module, args, kwargs, dynamic_shapes, weights)
        return as_in_eager(described, module, args, kwargs)


def _of_module(module: nn.Module, args: tuple, kwargs: dict[str, Any], dynamic_shapes: Any, weights: Weights) -> Captured:
    described = _captured(module, args, kwargs, dynamic_shapes, weights)
    _check_calls(module, args, kwargs)
    if described.symbols:
        described = replace(described, signature=_above_one(module, args, kwargs, described))
    if not described.fixed_batch:
        return described
    reason, least = dependence_on_batch(module, args, kwargs)
    return replace(described, one_batch=reason, least_batch=least)


def _check_calls(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    changed, reason = dependence_on_calls(module, args, kwargs)
    if reason:
        raise UnsupportedModel(
            "The model keeps something of a call for the next one.",
            where=", ".join(changed),
            why=reason,
            hint="Return it and take it as an input, or use torch.compile.",
        )


def _above_one(module: nn.Module, args: tuple, kwargs: dict[str, Any], described: Captured) -> Signature:
    """The signature with what does something else at size 1 bounded."""
    unlike, nested = unlike_one(module, args, kwargs, described.signature, described.sizes)
    if nested is not None and nested != described.out_spec and (names := re.findall(r"\bs\d+\b", str(described.out_spec))):
        raise UnsupportedModel(
            "A result is named after a free size.",
            why=f"{names[0]} in {described.out_spec}",
            hint="Name results in another way, or leave this size fixed.",
        )
    symbols = {name: replace(spec, least=max(spec.least, 2)) if name in unlike else spec for name, spec in described.symbols.items()}
    return replace(described.signature, symbols=symbols)


def capture_graph(graph_module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int]) -> tuple[Captured, dict[str, int]]:
    """As `capture`, for one of Dynamo's graphs; also which constant came from which of `args`.

    The code around such a graph may write to its results, so one that is a view of an input is refused as well.
    """
    with compiling():
        baked = bake(graph_module, args, weights)
        asked = Asked()
        lowered = lower(_export(Replay(baked.graph_module), baked.inputs, {}, asked=asked))
        described = _describe(lowered, asked)
        refuse_unlike_eager(asked, described, Replay(baked.graph_module), baked.inputs, {})
    if not described.takes_strides([value for value in baked.inputs if isinstance(value, Tensor)]):
        raise UnsupportedModel("The graph depends on the strides of its inputs, which are not contiguous.")
    if lowered.views:
        raise UnsupportedModel("The graph returns a view of an input.", where=lowered.views[0])
    used = {f"graph_module.{name}": position for position, name in baked.names.items()}
    origins = {name: used[target] for target, name in lowered.attributes.items() if target in used}
    return described, origins


def _captured(module: nn.Module, args: tuple, kwargs: dict, dynamic_shapes: Any = None, weights: Weights = "copied") -> Captured:
    """For contiguous inputs; where the program depends on strides, for those of the arguments."""
    asked = Asked()
    described = _traced(module, args, kwargs, dynamic_shapes, weights, asked)
    refuse_unlike_eager(asked, described, module, args, kwargs)
    return described


def _traced(module: nn.Module, args: tuple, kwargs: dict, dynamic_shapes: Any, weights: Weights, asked: Asked) -> Captured:
    program = _export(module, args, kwargs, dynamic_shapes, asked)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if is_symbolic(program):
        described = _from_symbolic(program, args, kwargs, asked)
        if not described.takes_strides(tensors):
            raise UnsupportedModel("The model depends on strides, and its inputs are not contiguous.", hint="Leave no sizes free.")
        return described
    described = _at_fixed_sizes(program, weights, asked)
    if described.takes_strides(tensors):
        return described
    program = _export(module, args, kwargs, asked=asked, stand_in=_strided_stand_in)
    return _at_fixed_sizes(program, weights, asked)


def _opened(program: ExportedProgram, args: tuple, kwargs: dict, weights: Weights) -> Captured:
    """Programs come from files, with anything in them."""
    try:
        return _from_program(program, args, kwargs, weights)
    except SparsecError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            "The exported program cannot be captured.",
            why=first_line(error),
            hint="Check that program.module() runs, or export the model again.",
        ) from error


def _from_program(program: ExportedProgram, args: tuple, kwargs: dict, weights: Weights) -> Captured:
    if (write := uncertain_write(program.graph_module)) is not None:
        raise refused(write, "A program does not tell.")
    stored = [value for value in (*program.state_dict.values(), *program.constants.values()) if isinstance(value, Tensor)]
    if is_symbolic(program) and all(value.layout == torch.strided for value in stored):
        return _from_symbolic(_decomposed(program), args, kwargs, weights=weights)
    if not is_symbolic(program) and all(map(is_plain, stored)):
        leaves, spec = pytree.tree_flatten((args, kwargs))
        _check_program_inputs(program, leaves, spec)
        return _at_fixed_sizes(_decomposed(program), weights)
    module = program.module()
    with plain_weights(module):
        return _captured(module, args, kwargs, weights=weights)


def _at_fixed_sizes(program: ExportedProgram, weights: Weights, asked: Asked | None = None) -> Captured:
    borrowed = _with_weights(program, weights)
    return replace(_describe(lower(program), asked), borrowed=borrowed)


def _from_symbolic(
    program: ExportedProgram, args: tuple, kwargs: dict, asked: Asked | None = None, weights: Weights = "copied"
) -> Captured:
    """At the sizes that serve most calls, or where the program has none at those, at the example's. Borrowed weights are copied."""
    _with_weights(program, "given" if weights == "given" else "copied")
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if spec != program.call_spec.in_spec:
        raise InvalidInput("The arguments do not fit the program.", why=f"{spec} ≠ {program.call_spec.in_spec}")
    symbolic = read_symbols(program)
    sizes = symbolic.signature.sizes([leaf.shape for leaf in leaves if isinstance(leaf, Tensor)])
    chosen, use = symbolic.first_choice(sizes), symbolic.use_of_samples(sizes)
    try:
        return _at(symbolic, asked, use, chosen)
    except (UnsupportedModel, InvalidInput):
        if chosen == sizes:
            raise
        return _at(symbolic, asked, use, sizes)


def _at(symbolic: Symbolic, asked: Asked | None, use: str, sizes: Mapping[str, int]) -> Captured:
    described = _describe(lower(symbolic.program, symbolic.graph(sizes)), asked)
    inputs = [replace(spec, dims=dims) for spec, dims in zip(described.inputs, symbolic.signature.dims, strict=True)]
    return replace(
        described,
        inputs=tuple(inputs),
        signature=symbolic.signature,
        sizes=dict(sizes),
        batches=symbolic.batches,
        output_dims=symbolic.outputs,
        remade=partial(_remade, symbolic, asked, use),
        one_batch=use,
        stepped=symbolic.stepped,
    )


def _remade(symbolic: Symbolic, asked: Asked | None, use: str, sizes: Mapping[str, int]) -> Captured:
    with compiling():
        return _at(symbolic, asked, use, sizes)


def _export(
    module: nn.Module,
    args: tuple,
    kwargs: dict,
    dynamic_shapes: Any = None,
    asked: Asked | None = None,
    stand_in: "Callable[[Tensor], Tensor] | None" = None,
) -> ExportedProgram:
    stand_ins, named = pytree.tree_map_only(Tensor, stand_in or _stand_in, (args, kwargs))
    traces: list[ExportedProgram] = []

    def trace(asked: Asked) -> ExportedProgram:
        with DropoutReturnsItsInput(), asked, quiet_export(module):
            traces.append(torch.export.export(module, stand_ins, named, dynamic_shapes=dynamic_shapes, strict=False))
        return traces[-1]

    try:
        program = trace(traced := asked or Asked())
        # Once more, if what the graph does not tell may matter.
        marked = trace(Asked(marking=True)) if traced.left_out and writes(program.graph_module) else program
        traced.unsure = uncertain_write(marked.graph_module)
        return _decomposed(program)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise uncaptured(type(module).__name__, error) from error
    finally:
        for each in traces:
            _let_go(each)


def _let_go(program: ExportedProgram) -> None:
    """Its graph refers to no tensor that its stand-ins were made of."""
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    if mode is not None:
        let_go(mode)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Functional, with every operator whole that torch can keep whole and that says which memory it shows.

    UnfollowedWrite where torch's functional form would mean something else.
    """
    refuse_unfollowed_writes(program.graph_module)
    with warnings.catch_warnings():
        # torch copies its own tree specs in a way that it warns of.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        whole = program.run_decompositions({})
        # einsum of one operand shows it only in the graph that has the writes.
        quiet = {node.target for node in (*program.graph.nodes, *whole.graph.nodes) if shows_unsaid(node)}
        # From the start: a write through what such an operator shows is one to its result alone once torch has made the program functional.
        whole = program.run_decompositions({op: _get_decomp_for_cia(op) for op in quiet}) if quiet else whole
    # torch takes a program's conditions from the trace again, which there is none of for a program from a file.
    whole._guards_code = program._guards_code
    return whole


def _with_weights(program: ExportedProgram, weights: Weights) -> Borrowed | None:
    """Gives the program tensors of its own, plain, and says which share memory with those that it had, where they are "borrowed"."""
    stored = [value for value in (*program.state_dict.values(), *program.constants.values()) if isinstance(value, Tensor)]
    made = {} if weights == "copied" else {id(value): plain(value) for value in stored if can_be_borrowed(value)}
    # Before the others are copied: what is written to both meanwhile is noticed.
    borrowed = Borrowed(made.values()) if weights == "borrowed" else None

    def own(value: Any) -> Any:
        if id(value) not in made and isinstance(value, Tensor):
            made[id(value)] = plain(value).clone()
        return made.get(id(value), value)

    _let_go(program)
    # Tables of their own: the program that this one was made of may have the same.
    program._state_dict = {name: own(value) for name, value in program.state_dict.items()}
    program._constants = {name: own(value) for name, value in program.constants.items()}
    return borrowed


def _stand_in(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        raise UnsupportedModel(f"An input has the layout {tensor.layout}.", hint="Pass a dense tensor.")
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _strided_stand_in(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def unwrapped(module: Any) -> Any:
    """The module inside of what torch.compile, DistributedDataParallel and DataParallel make of one, in any order; others as they are."""
    while True:
        if isinstance(module, OptimizedModule):
            module = module._orig_mod
        elif isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        else:
            return module


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise UnsupportedModel(f"A {type(module).__name__} is no model.", hint="Pass an nn.Module or ExportedProgram.")
    # Parametrizations are added in training mode even to a model in eval mode; they do not depend on it.
    training = [name or "the model" for name, part in module.named_modules() if part.training and "parametrizations" not in name]
    if training and not isinstance(module, fx.GraphModule):
        raise UnsupportedModel("The model is in training mode.", where=training[0], hint="Call model.eval() first.")
    lazy = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise UnsupportedModel("The model has parameters without a shape.", where=lazy[0], hint="Call the model once, which makes them.")


def _check_program_inputs(program: ExportedProgram, leaves: list, spec: pytree.TreeSpec) -> None:
    if spec != program.call_spec.in_spec:
        raise InvalidInput("The arguments do not fit the program.", why=f"{spec} ≠ {program.call_spec.in_spec}")
    values = {node.name: node.meta["val"] for node in program.graph.nodes if _holds_tensor(node)}
    for name, leaf in zip(program.graph_signature.user_inputs, leaves, strict=True):
        value = values.get(str(name))
        if isinstance(leaf, Tensor) and value is not None and (leaf.shape, leaf.dtype) != (value.shape, value.dtype):
            raise InvalidInput(
                f"Input {name} does not fit the program.",
                why=f"{tuple(leaf.shape)} {leaf.dtype} ≠ {tuple(value.shape)} {value.dtype}",
            )


def _describe(lowered: Lowered, asked: Asked | None = None) -> Captured:
    """asked: what the model asked about strides, other than by the operators of the graph."""
    placeholders = lowered.graph_module.graph.find_nodes(op="placeholder")
    described = Captured(
        graph_module=lowered.graph_module,
        inputs=tuple(_input(node.name, node.meta["val"]) for node in placeholders),
        in_spec=lowered.call_spec.in_spec,
        out_spec=lowered.call_spec.out_spec,
        in_slots=lowered.in_slots,
        out_slots=lowered.out_slots,
        keywords=tuple(lowered.keywords),
        aliasing=lowered.aliasing,
    )
    depends = lowered.reads_storage or (asked is not None and _asks(asked, described))
    for node in placeholders:
        node.meta["val"] = node.meta["val"].contiguous()
    return described if depends else replace(described, inputs=tuple(replace(spec, strides=None) for spec in described.inputs))


def _input(name: str, value: Tensor) -> InputSpec:
    return InputSpec(name, tuple(value.shape), value.dtype, strides=tuple(value.stride()))


def _asks(asked: Asked, described: Captured) -> bool:
    """Whether answers, or which results share memory, depend on strides. Views of inputs are made of the caller's own tensors."""
    copies = asked.contiguous or (asked.shaped and (described.aliasing is None or bool(described.aliasing.orders)))
    return asked.strides or (copies and described.shares_results)


def _holds_tensor(node: fx.Node) -> bool:
    return node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
