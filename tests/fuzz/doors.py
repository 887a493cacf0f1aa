"""The ways into sparsec, as text that makes ``fast`` of ``model`` and ``inputs``, and what each of them promises."""

from __future__ import annotations

from dataclasses import dataclass

_AXES = "dynamic_shapes=tuple({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for _ in inputs())"
_BATCH = "dynamic_shapes=tuple({0: torch.export.Dim.AUTO} for _ in inputs())"
_EXPORTED = ("fast = torch.export.export(copy.deepcopy(model), inputs()).module()", "spread.cache_clear()")
_FILE = ("folder = tempfile.mkdtemp()",)
_ARRAYS = "fast = lambda *args: pytree.tree_map_only(np.ndarray, torch.from_numpy, loaded(*[x.numpy() for x in args]))"
_SESSION = (
    "import onnxruntime",
    "session = onnxruntime.InferenceSession(folder + '/model.onnx')",
    "ports = [port.name for port in session.get_inputs()]",
    "feed = lambda args: {name: x.numpy() for name, x in zip('xyz', args) if name in ports}",
    "back = lambda found: pytree.tree_unflatten(map(torch.from_numpy, found), pytree.tree_structure(model(*inputs())))",
    "fast = lambda *args: back(session.run(None, feed(args)))",
)


@dataclass(frozen=True)
class Door:
    """lines: what makes ``fast``. second: what stands in its place when it is asked whose fault a failure is (torch alone).

    live: follows changes of the model. aliases: results share memory as eager's do. sized: serves other sizes than the first. attention:
    wants a model with attention. checks: more arguments of `prelude.check`.
    """

    name: str
    weight: float
    lines: tuple[str, ...]
    second: tuple[str, ...]
    live: bool = False
    aliases: bool = False
    sized: bool = False
    attention: bool = False
    checks: str = ""


def _torch(name: str, weight: float, options: str) -> Door:
    line = "fast = torch.compile(model, backend={}" + options + ")"
    ours, theirs = line.format('"sparse", options={"threads": 1}'), line.format('"aot_eager"')
    return Door(name, weight, (ours,), (theirs,), live=True, aliases=True, sized=True)


def _object(name: str, weight: float, options: str, **promises: bool | str) -> Door:
    return Door(name, weight, (f"fast = sparsec.compile(model, inputs(), {options})",), _EXPORTED, **promises)  # type: ignore[arg-type]


def _pt2(name: str, weight: float, options: str) -> Door:
    export, file = f"program = foreign(torch.export.export, copy.deepcopy(model), inputs(){options})", "folder + '/model.pt2'"
    written = (*_FILE, export, f"foreign(torch.export.save, program, {file})")
    ours, theirs = f"fast = sparsec.compile({file}, threads=1)", f"fast = torch.export.load({file}).module()"
    return Door(name, weight, (*written, ours), (*written, theirs))


def _onnx(name: str, weight: float, options: str) -> Door:
    """The older exporter drops inputs that are not used."""
    file, names = "folder + '/model.onnx'", "input_names=[*'xyz'][: len(inputs())]"
    export = f"foreign(torch.onnx.export, copy.deepcopy(model), inputs(), {file}, {names}, {options})"
    opened = (
        "import onnx",
        "loaded = sparsec.compile(folder + '/model.onnx', threads=1)",
        "ports = [port.name for port in onnx.load(folder + '/model.onnx', load_external_data=False).graph.input]",
        "fast = lambda *args: loaded(**{name: x for name, x in zip('xyz', args) if name in ports})",
    )
    return Door(name, weight, (*_FILE, export, *opened), (*_FILE, export, *_SESSION), checks=", structure=False")


DOORS = (
    _object("object", 10, "threads=1", aliases=True),
    _object("object, free axes", 2, f"{_AXES}, threads=1", aliases=True, sized=True),
    _object("object, two threads", 1, "threads=2", aliases=True),
    _object("keep all tokens", 2, 'token_pruning={"keep": 1.0, "after": [1]}, threads=1', aliases=True, attention=True),
    _object("keep half", 5, 'token_pruning={"keep": 0.5, "after": [1]}, threads=1', attention=True, checks=", values=False"),
    _torch("torch.compile", 6, ""),
    _torch("torch.compile, dynamic", 3, ", dynamic=True"),
    Door(
        "artifact", 3,
        (*_FILE, "loaded = sparsec.load(sparsec.compile(model, inputs(), threads=1).save(folder + '/saved'))", _ARRAYS),
        _EXPORTED,
    ),
    _pt2("pt2", 1, ""),
    _pt2("pt2, free axes", 1.5, f", {_AXES}"),
    _onnx("onnx", 1, "dynamo=True, verbose=False"),
    _onnx("onnx, free batch", 1.5, f"dynamo=True, verbose=False, {_BATCH}"),
    _onnx("onnx, TorchScript", 1, "dynamo=False"),
    _onnx("onnx, TorchScript, free batch", 1.5, "dynamo=False, dynamic_axes={name: {0: 'n'} for name in 'xyz'[: len(inputs())]}"),
)  # fmt: skip
BY_NAME = {door.name: door for door in DOORS}
