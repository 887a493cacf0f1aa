"""How each rival is loaded: a function from a `Program` to something callable without arguments.

The caller runs all of them under `torch.no_grad()`. Anything that needs doing once (export, compilation, casting of
the inputs) is done while loading, never while timing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sparsec.bench.program import Program, load_attribute

Profile = list[tuple[str, str, float, float, float]]


@dataclass(frozen=True)
class Loaded:
    """A rival ready to run.

    `profile` returns (kernel name, kind, seconds, flops, bytes) per kernel, for rivals that can say.
    """

    run: Callable[[], Any]
    versions: dict[str, str] = field(default_factory=dict)
    profile: Callable[[], Profile] | None = None


def load_rival(name: str, program: Program) -> Loaded:
    """Load the rival called `name`, or the one that the loader `module:function` makes of `program`.

    Whatever the engine raises passes through; an engine that is not installed raises ImportError.
    """
    if ":" in name:
        return Loaded(load_attribute(name)(program))
    return LOADERS[name](program)


def _eager(program: Program) -> Loaded:
    return Loaded(lambda: program.model(*program.inputs), _versions("torch"))


def _inductor(program: Program) -> Loaded:
    return _compiled(torch.compile(program.model), program.inputs)


def _inductor_freezing(program: Program) -> Loaded:
    from torch._inductor import config

    config.freezing = True
    return _inductor(program)


def _inductor_bf16(program: Program) -> Loaded:
    from torch._inductor import config

    config.freezing = True
    inputs = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in program.inputs)
    return _compiled(torch.compile(program.model.to(torch.bfloat16)), inputs)


def _sparsec(program: Program) -> Loaded:
    compiled = torch.compile(program.model, backend="sparse", options={"tune": program.tune})
    return _compiled(compiled, program.inputs, "sparsec", "apache-tvm")


def _compiled(model: Callable[..., Any], inputs: tuple[torch.Tensor, ...], *packages: str) -> Loaded:
    return Loaded(lambda: model(*inputs), _versions("torch", *packages))


def _sparsec_artifact(program: Program) -> Loaded:
    import sparsec

    path = program.folder / "model.sparsec"
    compiled = sparsec.compile(program.model, program.inputs, tune=program.tune)
    compiled.save(path)
    artifact = sparsec.load(path)
    inputs = tuple(x.numpy() for x in program.inputs)
    return Loaded(
        lambda: artifact(*inputs),
        _versions("sparsec"),
        lambda: [tuple(row) for row in compiled.profile(*program.inputs)],
    )


def _onnxruntime(program: Program) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = program.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads must not steal the cores of the rival whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = str(_onnx_file(program))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), program.inputs, strict=True)}
    return Loaded(lambda: session.run(None, feed), _versions("onnxruntime", "torch", "onnx"))


def _openvino(program: Program, precision: str = "f32") -> Loaded:
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": program.threads,
    }
    request = openvino.Core().compile_model(str(_onnx_file(program)), "CPU", hints).create_infer_request()
    inputs = [x.numpy() for x in program.inputs]
    # Outputs are views of the request's own buffers, valid until the next call: the cheapest way it can be used.
    run = lambda: list(request.infer(inputs, share_inputs=True, share_outputs=True).values())  # noqa: E731
    return Loaded(run, _versions("openvino", "torch", "onnx"))


def _openvino_bf16(program: Program) -> Loaded:
    return _openvino(program, "bf16")


def _onnx_file(program: Program) -> Path:
    """The model as ONNX, exported once per comparison by the first rival that asks."""
    path = program.folder / "model.onnx"
    if not path.exists():
        partial = path.with_name("partial.onnx")
        torch.onnx.export(program.model, program.inputs, partial, dynamo=True, external_data=False, verbose=False)
        partial.replace(path)
    return path


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


LOADERS: dict[str, Callable[[Program], Loaded]] = {
    "eager": _eager,
    "inductor": _inductor,
    "inductor-freezing": _inductor_freezing,
    "inductor-bf16": _inductor_bf16,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-bf16": _openvino_bf16,
    "sparsec": _sparsec,
    "sparsec-artifact": _sparsec_artifact,
}
