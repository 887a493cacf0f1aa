"""Programs with free sizes: any size gives what the model gives, what the program forbids is refused, and axes are known."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram

import sparsec
from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.capture import capture
from sparsec.doors.from_torch.exported import example_arguments
from sparsec.doors.open import open_model
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.ir.forms import Form, notes
from sparsec.ir.shape_guards import read_guards
from sparsec.ir.symbols import SymbolSpec, bucket
from sparsec.ir.verify import Verifier
from sparsec.run.affine import Affine

aten = torch.ops.aten
IDS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 10, dtype=torch.int64)
FREE = {0: Dim("batch"), 1: Dim("tokens", max=96)}


class Encoder(nn.Module):
    """Embeddings, positions cut from a table, masked attention written out; tokens and the first of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.packed, self.last = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 4)
        self.register_buffer("places", torch.randn(1, 96, 16))

    def forward(self, ids, mask):
        batch, tokens = ids.shape
        x = self.words(ids) + self.places[:, :tokens]
        q, k, v = (part.view(batch, tokens, 2, 8).transpose(1, 2) for part in self.packed(x).chunk(3, -1))
        bias = (1.0 - mask[:, None, None].float()) * -1e9
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(batch, tokens, 16)
        return self.last(y), y[:, 0]


class Shifts(nn.Module):
    """Sizes that follow others: one token fewer, pairs of tokens, a second input one longer."""

    def forward(self, x, y):
        pairs = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2]).sum(2)
        return torch.cat([pairs, y], 1), x[:, 1:], y.amax((1, 2))


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.point, self.last = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        with torch.no_grad():
            self.point.weight.mul_(torch.rand(16, 8, 1, 1) < 0.3)

    def forward(self, image):
        return self.last(F.relu(self.point(F.relu(self.stem(image)))).mean((2, 3)))


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return torch.export.export(Encoder().eval(), (IDS, MASK), dynamic_shapes=(FREE, FREE))


@pytest.fixture(scope="module")
def captured(program: ExportedProgram) -> Captured:
    return capture(program, (IDS, MASK))


def drawn(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 50, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
    return ids, (torch.arange(tokens) < max(tokens // 2, 1)).long().expand(batch, -1)


def agrees(captured: Captured, model: nn.Module, *args: torch.Tensor) -> None:
    """The graph for the sizes of `args` is well formed and computes what the model computes."""
    there = captured.at(captured.sizes_of(captured.flatten(args)))
    Verifier()(there.graph_module, Form.CAPTURED)
    with torch.no_grad():
        torch.testing.assert_close(there.restore(there.graph_module(*args), args), model(*args), rtol=1e-5, atol=1e-6)


def saved(program: ExportedProgram) -> ExportedProgram:
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    return torch.export.load(content)


def test_axes_symbols_and_the_first_sizes(captured: Captured) -> None:
    assert captured.symbols == {"batch": SymbolSpec("batch"), "tokens": SymbolSpec("tokens", 1, 96)}
    assert captured.batch == "batch"
    assert captured.sizes == {"batch": 2, "tokens": 96}
    batch, tokens = Affine("batch"), Affine("tokens")
    assert [spec.dims for spec in captured.inputs] == [(batch, tokens)] * 2
    assert [spec.shape for spec in captured.inputs] == [(2, 96)] * 2
    assert captured.output_dims == ((batch, tokens, 4), (batch, 16))


@settings(max_examples=25)
@given(batch=st.integers(1, 5), tokens=st.integers(1, 96))
def test_any_size_gives_what_the_model_gives(captured: Captured, batch: int, tokens: int) -> None:
    agrees(captured, Encoder().eval(), *drawn(batch, tokens))


def test_no_symbol_is_left_and_nodes_know_their_lines(captured: Captured) -> None:
    for node in captured.graph_module.graph.nodes:
        assert not any(isinstance(value, torch.SymInt) for value in torch.utils._pytree.tree_leaves((node.args, node.meta.get("val"))))
        assert node.target is not aten.sym_size.int
    sources = {node.target: notes(node).get("source", "") for node in captured.graph_module.graph.nodes}
    assert sources[aten.linear.default].startswith("last (test_from_program.py:")


def test_a_saved_program_and_a_module_give_the_same_graph(program: ExportedProgram, captured: Captured) -> None:
    loaded = capture(saved(program), (IDS, MASK))
    assert loaded.sizes == {"batch": 2, "ids_1": 96}
    direct = capture(Encoder().eval(), (IDS, MASK), dynamic_shapes=(FREE, FREE))
    assert direct.symbols == captured.symbols
    for other in (loaded, direct):
        described = [[(n.name, n.target, str(n.args)) for n in c.graph_module.graph.nodes] for c in (captured, other)]
        assert described[0] == described[1]
        agrees(other, Encoder().eval(), *drawn(3, 17))


@pytest.mark.parametrize(
    ("shapes", "messages"),
    [
        (((2, 10), (2, 9)), ("Symbolic dimension mismatch: axis 1 of input 'mask' is 9", "tokens is 10 by axis 1 of input 'ids'")),
        (((2, 10), (3, 10)), ("Symbolic dimension mismatch: axis 0 of input 'mask' is 3", "batch is 2")),
        (((2, 97), (2, 97)), ("Axis 1 of input 'ids' is 97", "tokens 1 to 96")),
        (((2, 0), (2, 0)), ("Axis 1 of input 'ids' is 0", "1 to 96")),
        (((10,), (2, 10)), ("Input 'ids' does not fit", "[batch, tokens]")),
    ],
)
def test_shapes_that_the_program_forbids(captured: Captured, shapes, messages) -> None:
    with pytest.raises(InvalidInput) as caught:
        captured.sizes_of([torch.zeros(shape) for shape in shapes])
    assert all(message in str(caught.value) for message in messages)


def shifted(free: bool) -> ExportedProgram:
    """Lengths of Shifts as multiples of a Dim, or found by export itself."""
    half = Dim("half", min=1, max=9)
    dims = ({0: Dim.AUTO, 1: Dim.AUTO},) * 2 if free else ({0: Dim("rows"), 1: 2 * half}, {0: Dim("rows"), 1: 2 * half + 1})
    return torch.export.export(Shifts().eval(), (torch.randn(3, 8, 4), torch.randn(3, 9, 4)), dynamic_shapes=dims)


def test_lengths_that_are_multiples_of_a_size() -> None:
    found = capture(shifted(False), (torch.randn(3, 8, 4), torch.randn(3, 9, 4)))
    assert [spec.dims[1] for spec in found.inputs] == [Affine("x_1", 0, 2), Affine("x_1", 1, 2)]
    assert [dims[1] for dims in found.output_dims[:2]] == [Affine("x_1", 1, 3), Affine("x_1", -1, 2)]
    assert found.sizes == {"rows": 3, "x_1": 9}
    for rows, half in ((1, 2), (2, 5), (4, 9)):
        agrees(found, Shifts(), torch.randn(rows, 2 * half, 4), torch.randn(rows, 2 * half + 1, 4))
    with pytest.raises(InvalidInput, match="lengths 4 to 18"):
        found.sizes_of([torch.zeros(3, 7, 4), torch.zeros(3, 9, 4)])
    with pytest.raises(InvalidInput, match="Symbolic dimension mismatch"):
        found.sizes_of([torch.zeros(3, 8, 4), torch.zeros(3, 11, 4)])


def test_conditions_that_export_found_are_checked() -> None:
    found = capture(shifted(True), (torch.randn(3, 8, 4), torch.randn(3, 9, 4)))
    assert found.output_dims[0][1] is None
    agrees(found, Shifts(), torch.randn(2, 12, 4), torch.randn(2, 5, 4))
    with pytest.raises(InvalidInput, match=r"x\.shape\[1\]"):
        found.sizes_of([torch.zeros(3, 7, 4), torch.zeros(3, 9, 4)])


def test_sizes_without_end_are_compiled_for_a_bucket_and_images_for_the_example() -> None:
    x = torch.randn(2, 70, 16)
    rows = capture(nn.Linear(16, 4).eval(), (x,), dynamic_shapes=({1: Dim.DYNAMIC},))
    assert rows.inputs[0].shape == (2, 128, 16)
    assert not rows.batches
    image = torch.randn(2, 3, 20, 24)
    found = capture(Convolved().eval(), (image,), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},))
    assert found.inputs[0].shape == (2, 3, 20, 24)
    agrees(found, Convolved().eval(), torch.randn(1, 3, 33, 18))


def test_where_the_largest_size_cannot_be_had_the_example_s_is_used() -> None:
    class Fives(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (-1, 5)).sum(2)

    odd = capture(Fives().eval(), (torch.randn(2, 10, 3),), dynamic_shapes=({1: Dim.AUTO},))
    assert odd.sizes == {"x_1": 10}
    agrees(odd, Fives(), torch.randn(2, 25, 3))


def test_batches_that_export_does_not_see_to_be_one_are_batches_all_the_same() -> None:
    class Apart(nn.Module):
        def forward(self, x, y):
            return x * 2, y.relu()

    found = capture(Apart().eval(), (torch.randn(2, 4), torch.randn(2, 4)), dynamic_shapes=({0: Dim.AUTO}, {0: Dim.AUTO}))
    assert (found.batch, found.batches) == ("", {"x_0", "y_0"})
    agrees(found, Apart(), torch.randn(3, 4), torch.randn(5, 4))


def test_numbers_that_are_free_are_refused() -> None:
    class Scaled(nn.Module):
        def forward(self, x, n):
            return x * n

    program = torch.export.export(Scaled().eval(), (torch.randn(3, 4), 5), dynamic_shapes=({0: Dim.AUTO}, Dim.DYNAMIC))
    with pytest.raises(UnsupportedModel, match="a number that is free"):
        capture(program, (torch.randn(3, 4), 5))


def test_sizes_that_depend_on_values_are_refused() -> None:
    class Nonzero(nn.Module):
        def forward(self, x):
            return x.nonzero()

    program = torch.export.export(Nonzero().eval(), (torch.ones(3, 4),), dynamic_shapes=({0: Dim.AUTO},))
    with pytest.raises(UnsupportedModel, match="depends on values"):
        capture(program, (torch.ones(3, 4),))


def test_static_programs_have_no_symbols_and_a_fixed_size(program: ExportedProgram) -> None:
    static = torch.export.export(Encoder().eval(), (IDS, MASK))
    found = capture(static, (IDS, MASK))
    assert not found.symbols and not found.sizes_of([IDS, MASK])
    with pytest.raises(InvalidInput, match="fixed sizes"):
        found.at({"tokens": 3})


def test_examples_are_the_program_s_own_or_made(program: ExportedProgram) -> None:
    args, kwargs = example_arguments(program)
    assert torch.equal(args[0], IDS) and not kwargs
    program = torch.export.export(Encoder().eval(), (IDS, MASK), dynamic_shapes=(FREE, FREE))
    program._example_inputs = None
    (ids, mask), _ = example_arguments(program)
    assert ids.shape == mask.shape == (1, 64)
    assert open_model(program).sizes == {"batch": 1, "tokens": 96}


# Doors


@pytest.mark.slow
def test_models_are_opened_from_paths_programs_and_arrays(tmp_path, program: ExportedProgram) -> None:
    torch.export.save(program, tmp_path / "encoder.pt2")
    for model in (tmp_path / "encoder.pt2", str(tmp_path / "encoder.pt2"), program):
        assert open_model(model).sizes["batch"] == 2
        assert open_model(model, (np.ones((3, 7), np.int64), torch.ones(3, 7, dtype=torch.int64))).sizes["batch"] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt2", None, "does not exist"),
        ("model.pt2", b"text", "no zip archive"),
        ("model.onnx", b"PK\x03\x04", "is a zip archive"),
    ],
)
def test_files_that_are_no_models(tmp_path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        sparsec.compile(tmp_path / name)


@pytest.mark.parametrize("name", ["model.txt", "model", "sparsec.models.zoo:mobilenet_v1_90"])
def test_paths_of_other_kinds(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="is no model file"):
        sparsec.compile(name)


def test_a_directory_is_no_model(tmp_path) -> None:
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(InvalidInput, match="is a directory"):
        open_model(tmp_path / "model.pt2")


def test_arguments_that_do_not_go_with_the_model(program: ExportedProgram) -> None:
    with pytest.raises(InvalidInput, match="Example inputs are missing"):
        sparsec.compile(Encoder().eval())
    with pytest.raises(InvalidInput, match="free axes already"):
        sparsec.compile(program, dynamic_shapes=(FREE, FREE))
    with pytest.raises(InvalidInput, match="do not fit the program"):
        sparsec.compile(program, (IDS,))
    with pytest.raises(InvalidInput, match="array of"):
        sparsec.compile(Encoder().eval(), (np.array(["a"]),))


@pytest.mark.slow
def test_one_compilation_serves_every_batch_and_further_ones_every_size(tmp_path) -> None:
    model, image = Convolved().eval(), torch.randn(2, 3, 12, 10)
    program = torch.export.export(model, (image,), dynamic_shapes=({0: Dim("batch"), 2: Dim("high", min=4, max=40)},))
    torch.export.save(program, tmp_path / "net.pt2")
    compiled = sparsec.compile(tmp_path / "net.pt2", threads=1, cache_dir=tmp_path)
    for shape in ((2, 3, 12, 10), (5, 3, 12, 10), (1, 3, 33, 10), (3, 3, 33, 10), (1, 3, 4, 10)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(compiled(x.numpy()), model(x).numpy(), rtol=1e-5, atol=1e-5)
    assert [note for note in compiled.explain().notes if "again" in note] == [
        "compiled again for image_2=4",
        "compiled again for image_2=33",
    ]
    assert compiled.profile(torch.randn(1, 3, 33, 10), repeats=1)
    with pytest.raises(InvalidInput, match="4 to 40"):
        compiled(torch.randn(1, 3, 41, 10))
    with pytest.raises(InvalidInput, match=r"Axis 3 of input 'image' is 11"):
        compiled(torch.randn(1, 3, 12, 11))
    with pytest.raises(InvalidInput, match="float64"):
        compiled(torch.randn(1, 3, 12, 10, dtype=torch.float64))


# Words


@given(size=st.integers(1, 1000), most=st.none() | st.integers(1, 1000))
def test_buckets_hold_their_sizes(size: int, most: int | None) -> None:
    assert size <= bucket(size) < size + 64
    if most is None or size <= most:
        assert size <= SymbolSpec("t", 1, most).aligned(size) <= (most or bucket(size))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L['x'].size()[1] % 4 == 0", True),
        ("(2*L['x'].size()[1]) // L['y'].size()[0] != 8", False),
        ("max(L['x'].size()[0], 3) <= 2", False),
        ("L['x'].size()[0] == 2 and not L['y'].size()[0] > 2", True),
        ("-1 + L['x'].size()[1] >= 7", True),
        ("L['x'].size()[1] // 0 == 1", False),
    ],
)
def test_guards_mean_what_python_means(text: str, expected: bool) -> None:
    shapes = {"x": (2, 8), "y": (2,)}
    (guard,) = read_guards([text], shapes)
    assert guard.holds(shapes) is expected


@pytest.mark.parametrize(
    "text",
    [
        "L['z'].size()[0] == 1",
        "L['x'].size()[5] == 1",
        "L['x'].stride()[0] == 1",
        "__import__('os') == 1",
        "2 ** 9 == 1",
        "(lambda: 1)() == 1",
        "L['x'].size()[0] ==",
        "(" * 500 + ")" * 500,
        "1 == " + "1 + " * 1000 + "1",
    ],
)
def test_other_conditions_are_left_out(text: str) -> None:
    assert read_guards([text], {"x": (2, 8)}) == ()
