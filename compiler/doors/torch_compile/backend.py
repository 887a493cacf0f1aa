"""torch.compile(model, backend="sparse"): one Door for each of Dynamo's graphs."""

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsec.backends import machine_for, target_named
from sparsec.doors.captured import Captured, InputSpec
from sparsec.doors.from_torch.capture import capture_graph
from sparsec.doors.from_torch.dynamo import bake, copied, number_positions, returns_numbers, weight_positions
from sparsec.doors.from_torch.writes import UnfollowedWrite
from sparsec.doors.torch_compile.contents import Fingerprint
from sparsec.doors.torch_compile.dynamo_guards import watch
from sparsec.doors.torch_compile.entries import Entry, Freed, Table, drop_entries, free_batch, memory_of, sizes_of
from sparsec.doors.torch_compile.free_sizes import TOKENS, TokenSizes, token_sizes, use_of_samples
from sparsec.doors.torch_compile.notes import GraphNote, new_note
from sparsec.doors.torch_compile.placement import Placements
from sparsec.doors.torch_compile.steps import follow_steps
from sparsec.doors.torch_compile.template import Template, signature
from sparsec.doors.torch_compile.watch import Watch
from sparsec.errors import InvalidInput, MachineError, SparsecError, UnsupportedModel
from sparsec.lower.inductor import compile_dense, retrace_dense
from sparsec.run.ending import waited_for
from sparsec.run.explanation import Explanation
from sparsec.run.forks import opened_in_children
from sparsec.settings import Options, Settings
from sparsec.tools.compiling import compiling

logger = logging.getLogger("sparsec")
MODES = {None: {}, "default": {}, "reduce-overhead": {}, "max-autotune": {"tune": "full"}, "max-autotune-no-cudagraphs": {"tune": "full"}}
FREEZES = 4
TEMPLATES = 8
STALE_IN_A_ROW = 8
MISSES_IN_A_ROW = 128
REFUSALS = 8
ATTEMPTS = 3
_said: set[tuple[int, str]] = set()
_graphs = itertools.count()


def sparse_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Options | None = None,
    mode: str | None = None,
) -> Callable[..., Sequence[Any]]:
    """The backend "sparse" of torch.compile; `options` are those of ``sparsec.compile`` (``Options``), mode "max-autotune" tunes.

    The result checks at each call that the weights it has compiled in are still the ones it is given. Graphs that need
    gradients, or whose inputs are not float32 on the CPU, go to Inductor as they are, with a warning that says why.
    """
    if mode not in MODES:
        raise InvalidInput(f"Unknown mode {mode!r}.", hint=f"Use one of {', '.join(filter(None, MODES))}, or options.")
    settings = Settings.from_options({**MODES[mode], **(options or {})})
    _check_target(settings)
    numbers = number_positions(graph_module, example_inputs)
    if reason := _dense_reason(example_inputs, numbers):
        # Said once it is so: Inductor may send Dynamo back, as it does for Python floats that dynamic=True made tensors of.
        dense = compile_dense(graph_module, example_inputs)
        note = new_note(next(_graphs), dense_explanation(graph_module.graph, reason))
        say(note, f"Compiled dense: {reason}.")
        return dense
    follow_steps()
    own = copied(graph_module)
    weights = weight_positions(own, example_inputs)
    return Door(own, len(example_inputs), weights, settings, watch(graph_module, weights), token_sizes(own, weights), numbers)


def _check_target(settings: Settings) -> None:
    """InvalidInput or MachineError where what is asked for cannot run here. What this machine itself lacks makes graphs dense, later."""
    target_named(settings.target)
    try:
        machine = machine_for(settings.target, settings.processor)
    except MachineError:
        return
    if machine.not_here:
        why, hint = machine.not_here, "sparsec.compile(model, inputs, target=..., cpu=...).save(path) writes an artifact to run there."
        raise MachineError("torch.compile runs what it compiles, and this machine cannot.", why=why, hint=hint)


def refresh(compiled: object = None) -> None:
    """Forget what was compiled from the weights of a module, or from all weights.

    No call looks at every byte of every weight: after a write to a few elements that PyTorch does not see, as ``p.data[0, 0] = 1``, this
    makes the next call notice it, not one of the next.

    Args:
        compiled: the module, or what ``torch.compile`` made of it; None for all.
    """
    module = getattr(compiled, "_orig_mod", compiled)
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else None
    drop_entries(None if tensors is None else memory_of(tensors))


def say(graph: GraphNote, message: str) -> None:
    """Warn, once per graph and message."""
    if (graph.number, message) not in _said:
        _said.add((graph.number, message))
        logger.warning("sparsec: %s: %s", graph.place, message)


def dense_explanation(graph: fx.Graph, reason: str) -> Explanation:
    """Everything is left to torch."""
    return Explanation(uncovered=tuple((node.name, reason) for node in graph.nodes if node.op.startswith("call_")))


class Door:
    """What Dynamo calls in place of one graph: finds or makes the program for the weights it is called with."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        count: int,
        weights: Sequence[int],
        settings: Settings,
        watch: Watch | None = None,
        tokens: TokenSizes | None = None,
        numbers: Collection[int] = (),
    ) -> None:
        self.graph_module, self.settings, self.weights, self.watch = graph_module, settings, weights, watch
        self.tokens, self.numbers = tokens, numbers
        self.table = Table(count, weights)
        self.templates: dict[Any, Template] = {}
        self.dense: Callable[..., Sequence[Any]] | None = None
        self.frozen = self.stale = self.misses = 0
        self.eager = False
        self.placements = Placements(graph_module, self.table.others)
        self.refusals: set[Any] = set()
        self.note = new_note(next(_graphs))
        self.lock = opened_in_children(threading.RLock())

    @waited_for
    def __call__(self, *args: Any) -> Sequence[Any]:
        """The graph's outputs for its inputs in the order of Dynamo's placeholders; without the weights where they are watched."""
        if self.watch is None:
            found = self.table.match(self.table.pick_weights(args), inputs := self.table.pick_inputs(args))
            if found is None:
                return self._slow(args)
            return found.run(inputs if found.takes_inputs else args)
        snapshot = self.watch.current
        entry = snapshot.entry()
        if entry is not None and entry.fits(sizes_of(args)) and entry.holds():
            self.table.hit = True
        else:
            entry = self.table.match(snapshot.weights, args)
            snapshot.entry = weakref.ref(entry) if entry is not None else snapshot.entry
        if entry is not None and entry.takes_inputs:
            return entry.run(args)
        everything = self.table.join(snapshot.weights, args)
        return self._slow(everything) if entry is None else entry.run(everything)

    def _slow(self, args: tuple) -> Sequence[Any]:
        with self.lock:
            entry, was_stale = self.table.find(args)
        if entry is not None:
            self.misses = self.stale = 0
        elif not self._is_dense(args):
            self.misses, self.stale = self.misses + 1, self.stale + was_stale
            # One thread compiles at a time, whoever started it. The door's own lock is held for moments, and taken last.
            with compiling():
                entry = self._made(args)
        if entry is None:
            return self._run_dense(args)
        return entry.run(self.table.pick_inputs(args) if entry.takes_inputs else args)

    def _made(self, args: tuple) -> Entry | None:
        """What another thread has made meanwhile, else a new entry; None where weights do not keep still."""
        with self.lock:
            entry, _ = self.table.find(args)
        weights, attempts = self.table.pick_weights(args), iter(range(ATTEMPTS))
        while entry is None and next(attempts, None) is not None:
            made_of = Fingerprint(weights, self.settings.check_weights)
            made = self._make(args)
            if made_of.holds(weights):
                entry = made
                with self.lock:
                    self.table.add(entry, args, made_of)
        if entry is None:
            say(self.note, "A call runs dense: its weights were written to while a program was made of them.")
        return entry

    def _is_dense(self, args: tuple) -> bool:
        if self.table.hit:
            self.misses, self.stale, self.table.hit = 0, 0, False
        restless = self.stale >= STALE_IN_A_ROW or self.misses >= MISSES_IN_A_ROW
        reason = "the weights change at almost every call" if restless else _dense_reason(args, self.numbers)
        if any(args[position].is_inference() for position in self.weights):
            reason = "the weights were made in inference mode, which hides later writes to them"
        if reason:
            say(self.note, f"Compiled dense: {reason}.")
        return bool(reason) or len(self.refusals) >= REFUSALS

    def _make(self, args: tuple) -> Entry:
        """A program for these arguments. Whatever goes wrong costs this entry only."""
        dense = Entry(self._run_dense, constant=False)
        if (key := signature(args)) in self.refusals:
            return dense
        try:
            return self._compiled(args)
        except SparsecError as error:
            if isinstance(error, UnsupportedModel):
                self.refusals.add(key)
            self.eager |= isinstance(error, UnfollowedWrite)
            reason, said = error.what, f"{'Runs as in eager mode' if self.eager else 'Compiled dense'}: {error}"
        except Exception as error:
            if os.environ.get("SPARSEC_STRICT") == "1":
                raise
            reason = f"an internal error, please report it: {type(error).__name__}: {error}"
            said = f"Compiled dense after {reason}"
        self._note(dense_explanation(self.graph_module.graph, reason))
        say(self.note, said)
        return dense

    def _note(self, explanation: Explanation) -> None:
        """Remember what a compilation found and chose, for ``sparsec.explain``."""
        self.note.explanation = explanation
        logger.info("sparsec: %s: %s", self.note.place, explanation.summary())

    def _compiled(self, args: tuple) -> Entry:
        from sparsec.driver import compile_graph

        if self.tokens is not None and (entry := self._make_free(args, self.tokens)) is not None:
            return entry
        captured = self._capture(args)
        program = compile_graph(captured, self.settings)
        self._note(program.explanation)
        self.refusals.clear()
        for reason in program.reasons:
            say(self.note, reason)
        if program.nothing_sparse:
            # Frozen convolutions of oneDNN lose the NaN that weights with NaN make: graphs with a reason to be dense are not frozen.
            # Numbers are read out of tensors, which Inductor allows in a graph that Dynamo gives it and in no other; freezing fails of
            # those among the results.
            numbers = self.numbers or returns_numbers(self.graph_module)
            if program.reasons or captured.depends_on_strides or numbers or self.frozen >= FREEZES:
                return Entry(self._run_dense, constant=False)
            return Entry(self._dense_with_constants(args))
        entry = _entry(program, captured, self.placements)
        return self._by_strides(entry, captured.inputs) if captured.depends_on_strides else entry

    def _by_strides(self, entry: Entry, specs: Sequence[InputSpec]) -> Entry:
        """The same for inputs that lie in memory as they did; others run dense."""
        run, pick_inputs = entry.run, self.table.pick_inputs

        def call(args: tuple) -> Sequence[Any]:
            inputs = pick_inputs(args)
            tensors = [value for value in inputs if isinstance(value, Tensor)]
            fits = all(spec.takes_strides(x) for spec, x in zip(specs, tensors, strict=True))
            return run(inputs) if fits else self._run_dense(args)

        return Entry(call, freed=entry.freed, held=entry.held)

    def _make_free(self, args: tuple, tokens: TokenSizes) -> Entry | None:
        """For all numbers of tokens up to the most of a bucket; None where no program serves them, which is not tried again."""
        from sparsec.driver import compile_graph

        self.tokens, most, others = None, tokens.most(tokens.size(args)), self.table.others
        try:
            inputs = [position for position in others if isinstance(args[position], Tensor)]
            captured = tokens.described(self._capture(tokens.at(args, most)), inputs, most)
            captured = replace(captured, remade=lambda sizes: self._capture(tokens.at(args, sizes[TOKENS])))
            program = compile_graph(captured, self.settings, rest=False)
        except UnsupportedModel:
            return None
        fixed = captured.depends_on_strides or captured.shares_results
        if fixed or not program.fully_compiled or not program.programs[0].program.sizes:
            return None
        self.tokens = tokens
        self._note(program.explanation)
        for reason in program.reasons:
            say(self.note, reason)
        return _entry(program, captured, self.placements, lambda sizes: free_batch(tokens.freed(sizes, others, most)))

    def _capture(self, args: tuple) -> Captured:
        key = signature(args)
        if key not in self.templates:
            kept = list(self.templates.items())[1 - TEMPLATES :]
            captured, origins = capture_graph(self.graph_module, args, self.weights)
            captured = replace(captured, one_batch=use_of_samples(self.graph_module, args, self.weights))
            self.templates = dict(kept) | {key: Template(captured, origins)}
        return self.templates[key].bind(args)

    def _dense_with_constants(self, args: tuple) -> Callable[[tuple], Sequence[Any]]:
        self.frozen += 1
        baked = bake(self.graph_module, args, self.weights)
        run = compile_dense(baked.graph_module, [ready(value) for value in baked.inputs], freezing=True)
        pick_inputs = self.table.pick_inputs

        def call(given: tuple) -> Sequence[Any]:
            inputs = pick_inputs(given)
            results = run(*[ready(value) for value in inputs if isinstance(value, Tensor)])
            return self.placements.placed(results, inputs) if self.placements else results

        return call

    def _run_dense(self, args: tuple) -> Sequence[Any]:
        if self.eager:
            return self.graph_module(*args)
        if _hidden_views(self.table.pick_inputs(args)):
            say(self.note, "A call runs as in eager mode: inputs share memory, and torch's compilers cannot know that they do.")
            return self.graph_module(*args)
        with self.lock:
            if self.dense is None:
                self.dense = retrace_dense(self.graph_module)
        return self.dense(*args)


def _entry(program: Any, captured: Captured, placements: Placements, freed: Freed | None = None) -> Entry:
    """Runs the program on inputs that are contiguous and aligned to 64 bytes; ``freed``: what else than the batch is free."""
    whole = captured.out_slots == tuple(range(len(captured.out_slots)))
    plain = whole and captured.aliasing is None
    restore: Callable[[Any], Any] = tuple if plain else replace(captured, graph_module=fx.GraphModule({}, fx.Graph()), remade=None).restore
    program.forget_origins()

    def call(inputs: Sequence[Any]) -> Sequence[Any]:
        results = restore(program([ready(value) for value in inputs if isinstance(value, Tensor)]))
        return placements.placed(results, inputs) if placements else results

    free = (freed or free_batch) if program.any_batch and whole else None
    return Entry(call, takes_inputs=True, freed=free, held=program.held)


def ready(tensor: Tensor) -> Tensor:
    """The tensor itself where a kernel can read it as it is; else a contiguous, aligned copy."""
    if tensor.is_contiguous() and not tensor.data_ptr() & 63 and not tensor.is_neg() and not tensor._is_zerotensor():
        return tensor
    return tensor.resolve_neg().clone(memory_format=torch.contiguous_format)


def _hidden_views(values: Sequence[Any]) -> bool:
    """Whether tensors share memory and are not known to be views of one base, by which AOTAutograd makes writes to one seen in others.

    None made in inference mode is, nor a view that a graph returned without gradients.
    """
    bases: dict[int, int | None] = {}
    for value in values:
        if isinstance(value, Tensor) and (memory := value.untyped_storage().data_ptr()):
            base = None if value.is_inference() else id(value._base if value._is_view() else value)
            if memory in bases and (base is None or bases[memory] != base):
                return True
            bases[memory] = base
    return False


def _dense_reason(values: Sequence[Any], numbers: Collection[int]) -> str:
    """numbers: positions of Python floats, which come as tensors of float64."""
    tensors = [value for position, value in enumerate(values) if isinstance(value, Tensor) and position not in numbers]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients are needed (call model.eval() and use torch.no_grad() for inference)"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if not all(isinstance(value, Tensor | int | torch.SymInt) for value in values):
        return "the graph takes an argument that is neither tensor nor integer"
    return next((reason for reason in map(_tensor_reason, tensors) if reason), "")


def _tensor_reason(tensor: Tensor) -> str:
    if tensor.device.type != "cpu":
        return f"a tensor is on {tensor.device}, sparse programs run on the CPU"
    if tensor.layout != torch.strided:
        return f"a tensor has the layout {tensor.layout}"
    if (tensor.is_floating_point() and tensor.dtype != torch.float32) or tensor.is_complex():
        return f"a tensor is {tensor.dtype}, sparse programs compute in torch.float32"
    return ""
