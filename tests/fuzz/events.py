# ruff: noqa: E501
"""What may happen between two calls: training, loading, pruning, copies. Text like an idiom's.

Over ``model``, ``fast``, ``make`` and ``right``: the model, or where ``fast`` does not follow it, its copy from when ``fast`` was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.case import Picks
from tests.fuzz.emit import chosen

_WEIGHT = "name, p = weight(model, «0|1|2|3»)"
_OPTIMIZER = (
    "torch.optim.«SGD|Adam|AdamW|Adagrad|SGD|RMSprop|Adadelta|Adamax|NAdam|RAdam|ASGD|Rprop|Adafactor»(model.parameters(), lr=0.1{})"
)


@dataclass(frozen=True)
class Event:
    """An event and how often it is drawn. ``live``: it asks something of what follows the model."""

    name: str
    weight: float
    text: tuple[str, ...]
    live: bool = False


EVENTS = (
    Event("training step", 2, (f"train(model, {_OPTIMIZER.format('')}, «model|fast», inputs)",), live=True),
    Event("foreach step", 1, (f"train(model, {_OPTIMIZER.format(', foreach=True')}, «model|fast», inputs)",), live=True),
    Event("fused step", 2, ("train(model, torch.optim.«AdamW|Adam|SGD|Adagrad»(model.parameters(), lr=0.1, fused=True), «model|fast», inputs)",), live=True),
    Event("load_state_dict", 1, ("model.load_state_dict(make(7).state_dict()«|, assign=True»)",)),
    Event("swap_tensors", 1, (_WEIGHT, "torch.utils.swap_tensors(p, nn.Parameter(torch.randn_like(p)))")),
    Event("no_grad write", 1.5, (_WEIGHT, "with torch.no_grad(): p.«mul_(0.5)|copy_(torch.randn_like(p))|zero_()|add_(1)»")),
    Event("write of a row", 1, (_WEIGHT, "with torch.no_grad(): p[0] = «0.0|1.0»")),
    Event("foreach write", 0.7, ("with torch.no_grad(): torch._foreach_«mul_|add_»([*model.parameters()], 0.5)",)),
    Event("data replaced", 1, (_WEIGHT, "p.data = torch.randn_like(p)")),
    Event("data masked, refreshed", 1, (_WEIGHT, "p.data.mul_(torch.rand_like(p) > 0.5)", "sparsec.refresh(«model|fast»)"), live=True),
    Event("parameter replaced", 1, (_WEIGHT, "setattr(*owner(model, name), nn.Parameter(torch.randn_like(p)))")),
    Event("pruned", 1, (_WEIGHT, "prune.«random_unstructured|l1_unstructured»(*owner(model, name), 0.5)")),
    Event("pruned for good", 1, (
        _WEIGHT, "prune.random_unstructured(*owner(model, name), 0.5)", "prune.remove(*owner(model, name))",
    )),
    Event("buffers written", 0.7, ("for buffer in model.buffers(): buffer.add_(1) if buffer.is_floating_point() else None",)),
    Event("attributes changed", 1.5, ("for name in [n for n in vars(model) if n.startswith('value')]: setattr(model, name, «0.25|2.0|3»)",)),
    Event("second instance", 1, ("other = make(8)", "second = torch.compile(other, backend='sparse')", "check(second, other, inputs)"), live=True),
    Event("deepcopy", 1, ("twin = copy.deepcopy(model)", "with torch.no_grad(): weight(twin, 0)[1].«mul_(0.5)|zero_()»",
                          "check(torch.compile(twin, backend='sparse'), twin, inputs)"), live=True),
    Event("train and eval", 0.7, ("model.train()", "model.eval()")),
    Event("to double and back", 0.7, ("model.double().float()",)),
    Event("channels last", 0.5, ("model.to(memory_format=torch.«channels_last|contiguous_format»)",)),
    Event("requires_grad off", 0.5, ("model.requires_grad_(«False|True»)",)),
    Event("functional call", 0.7, (
        "changed = {name: torch.randn_like(p) for name, p in model.named_parameters()}",
        "other = copy.deepcopy(model)", "other.load_state_dict(changed, strict=False)",
        "check(lambda *a: torch.func.functional_call(fast, {'_orig_mod.' + k: v for k, v in changed.items()}, a), other, inputs)",
    ), live=True),
    Event("gradients wanted", 0.7, ("with recording(right, inputs): fast(*inputs(0))",), live=True),
    Event("surroundings", 2, (
        "around = lambda: «torch.inference_mode()|elsewhere(right, inputs)|recording(right, inputs)|FlopCounterMode(display=False)|torch.no_grad()»",
        "check(within(around, fast), right, inputs, aliases=False{checks})",
    )),
)  # fmt: skip
BY_NAME = {event.name: event for event in EVENTS}


def lines(name: str, picks: Picks, checks: str = "") -> list[str]:
    """The statements of an event. ``checks``: more arguments of `prelude.check`."""
    return [chosen(line, {}, picks).replace("{checks}", checks) for line in BY_NAME[name].text]
