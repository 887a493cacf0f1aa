"""What torch.onnx.export writes, both ways and at several opsets, computes what onnxruntime and the model itself compute."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from sparsec.doors.from_onnx.capture import capture_onnx  # noqa: E402
from sparsec.ir.forms import Form  # noqa: E402
from sparsec.ir.pipeline import Context, Editor  # noqa: E402
from sparsec.ir.verify import Verifier  # noqa: E402
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small  # noqa: E402
from sparsec.models.mobilenet_v1 import mobilenet_v1  # noqa: E402
from sparsec.models.mobilenet_v2 import mobilenet_v2  # noqa: E402
from sparsec.models.resnet import resnet50  # noqa: E402
from sparsec.passes.fold_constants import FoldConstants  # noqa: E402
from sparsec.passes.fuse_attention import FuseAttention  # noqa: E402
from sparsec.run.affine import Affine  # noqa: E402
from sparsec.settings import Settings  # noqa: E402
from sparsec.tokens import ops as token_ops  # noqa: E402

pytestmark = pytest.mark.slow

Example = tuple[nn.Module, tuple[Tensor, ...]]
LAYERS, OLD, NEW, NEWEST = 2, (False, 13), (True, 18), (True, 23)
IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(9) < torch.tensor([[9], [6]])).long()


class Plain(nn.Module):
    """A Hugging Face model with tensors only around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        given = {} if mask is None else {"attention_mask": mask}
        return tuple(self.model(x, **given, return_dict=False))


class Small(nn.Module):
    """Activations and normalisations in both forms that exporters know."""

    def __init__(self) -> None:
        super().__init__()
        tanh = nn.GELU(approximate="tanh")
        self.parts = nn.Sequential(
            nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), tanh, nn.LayerNorm(8), nn.SiLU(), nn.Hardswish(), nn.ReLU6()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts(x)
        return torch.cat([y[:, :1], nn.functional.pad(y, (0, 0, 1, 0))], 1).mean(1).flatten(1)


def network(factory: Callable[..., nn.Module], size: int = 64) -> Example:
    return factory(seed=0).eval(), (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def small() -> Example:
    torch.manual_seed(0)
    return Small().eval(), (torch.randn(2, 3, 8),)


def encoder() -> Example:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval(), (torch.randn(2, 8, 32),)


def hugging_face(kind: str, attention: str) -> Example:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shared = {"vocab_size": 50, "max_position_embeddings": 32}
    bert = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 64}
    sizes: dict[str, dict[str, Any]] = {
        "Bert": bert | shared,
        "DistilBert": {"dim": 32, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 64} | shared,
        "ViT": bert | {"image_size": 32, "patch_size": 8},
    }
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes[kind])).eval()
    model.set_attn_implementation(attention)
    return Plain(model).eval(), (torch.randn(1, 3, 32, 32),) if kind == "ViT" else (IDS, MASK)


EXAMPLES: dict[str, Callable[[], Example]] = {
    "small": small,
    "mobilenet_v1": partial(network, mobilenet_v1),
    "mobilenet_v2": partial(network, mobilenet_v2),
    "mobilenet_v3": partial(network, mobilenet_v3_small),
    "efficientnet": partial(network, efficientnet_b0),
    "resnet50": partial(network, resnet50),
    "encoder": encoder,
    **{f"{kind}-{form}": partial(hugging_face, kind, form) for kind in ("Bert", "DistilBert", "ViT") for form in ("eager", "sdpa")},
}
TRANSFORMERS = [name for name in EXAMPLES if name == "encoder" or "-" in name]
# The older exporter cannot trace TransformerEncoder, writes sdpa from opset 14 on, and gets the masks of Hugging Face's version 5 wrong:
# there onnxruntime alone says what the file means.
WRONGLY_EXPORTED = {f"{kind}-{form}" for kind in ("Bert", "DistilBert") for form in ("eager", "sdpa")}


def combinations() -> list:
    fast = [
        ("small", False, 13),
        ("small", False, 17),
        ("small", *NEW),
        ("mobilenet_v2", *OLD),
        ("Bert-eager", False, 17),
        ("ViT-sdpa", *NEW),
    ]
    networks = [name for name in EXAMPLES if name not in TRANSFORMERS]
    slow = [(name, *how) for name in networks for how in (OLD, (False, 17))]
    slow += [(name, *how) for name in TRANSFORMERS for how in ((False, 17), NEW) if name != "encoder" or how[0]]
    slow += [(name, *OLD) for name in TRANSFORMERS if name.endswith("eager")]
    slow += [(name, *NEWEST) for name in ("small", "encoder", "Bert-sdpa", "DistilBert-sdpa", "ViT-sdpa")]
    slow += [("small", True, 20), ("resnet50", *NEW), ("mobilenet_v3", *NEW)]
    return [pytest.param(*each) for each in fast] + [pytest.param(*each, marks=pytest.mark.slow) for each in slow if each not in fast]


def exported(name: str, dynamo: bool, opset: int, folder: Path) -> tuple[Path, Example]:
    model, inputs = EXAMPLES[name]()
    path = folder / f"{name}.onnx"
    write(model, inputs, path, dynamo=dynamo, opset_version=opset)
    assert onnx.load(path, load_external_data=False).opset_import[0].version == opset
    return path, (model, inputs)


def write(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> None:
    """Export without a word."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, **options, **({"verbose": False} if options["dynamo"] else {}))


def runtime(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [torch.from_numpy(value) for value in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def listed(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize(("name", "dynamo", "opset"), combinations())
@pytest.mark.turns(3)
def test_an_export_computes_what_the_model_computes(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    path, (model, inputs) = exported(name, dynamo, opset, tmp_path)
    captured = capture_onnx(path)
    Verifier()(captured.graph_module, Form.CAPTURED)
    with torch.no_grad():
        found = listed(captured.restore(captured.graph_module(*captured.flatten(inputs))))
        eager = listed(model(*inputs))
    assert error(found, runtime(path, inputs)) <= 1e-5
    if dynamo or name not in WRONGLY_EXPORTED:
        assert error(found, eager) <= 1e-5
    if name in TRANSFORMERS:
        assert_attention_is_found(captured, inputs, found)


def assert_attention_is_found(captured, inputs: tuple[Tensor, ...], before: list[Tensor]) -> None:
    for each in (FoldConstants(), FuseAttention()):
        each.apply(Editor(captured.graph_module), Context(Settings(), None, {}))
    captured.graph_module.recompile()
    calls = [node for node in captured.graph_module.graph.nodes if node.target is token_ops.attention]
    with torch.no_grad():
        after = list(captured.graph_module(*captured.flatten(inputs)))
    assert len(calls) == LAYERS and error(after, before) <= 1e-5


@pytest.mark.slow
def test_free_axes_take_the_sizes_of_examples(tmp_path: Path) -> None:
    path, (layer, (x,)) = tmp_path / "free.onnx", encoder()
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    write(layer, (x,), path, dynamo=True, opset_version=18, dynamic_shapes=(free,))
    for sizes in ((2, 8), (3, 5)):
        example = torch.randn(*sizes, 32)
        captured = capture_onnx(path, example)
        assert set(captured.symbols) == {"batch", "tokens"} and captured.sizes["tokens"] == 64 and captured.batch == "batch"
        captured = captured.at(captured.sizes_of([example]))
        with torch.no_grad():
            found = captured.restore(captured.graph_module(*captured.flatten((example,))))
            assert error([found], [layer(example)]) <= 1e-5


@pytest.mark.parametrize("name", ["Bert-eager", "DistilBert-sdpa"])
def test_one_file_of_a_transformer_serves_all_sizes(name: str, tmp_path: Path) -> None:
    path, (model, inputs) = tmp_path / "free.onnx", EXAMPLES[name]()
    free = {key: {0: "batch", 1: "tokens"} for key in ("ids", "mask")}
    write(model, inputs, path, dynamo=False, opset_version=17, input_names=list(free), dynamic_axes=free)
    captured = capture_onnx(path, inputs)
    assert captured.sizes == {"batch": 2, "tokens": 32} and captured.batches == {"batch"}
    assert captured.symbols["tokens"].most == 32  # as many as the model has positions for
    assert captured.output_dims[0] == (Affine("batch"), Affine("tokens"), 32)
    for batch, tokens in ((1, 5), (3, 32)):
        given = {
            "ids": torch.randint(0, 50, (batch, tokens)),
            "mask": (torch.arange(tokens) < tokens - torch.arange(batch)[:, None]).long(),
        }
        made = captured.at(captured.sizes_of(list(given.values())))
        with torch.no_grad():
            found = listed(made.restore(made.graph_module(*made.flatten((), given))))
        assert error(found, runtime(path, tuple(given.values()))) <= 1e-5
