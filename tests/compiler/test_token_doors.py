"""Models on tokens through every door with the real compiler: sizes that change, masks, weights that change, options, refusals."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.errors import InvalidInput
from sparsec.from_torch.capture import capture
from sparsec.passes import PIPELINE
from sparsec.pipeline import Context, run
from sparsec.settings import Settings
from sparsec.torch_door import backend as torch_backend
from tests import token_models as small
from tests.token_models import POSITIONS, VOCABULARY, bert, error, exact, images, leaves, sentences, tokens, vit

pytestmark = pytest.mark.slow

LIMIT = 1e-5
#: (batch, tokens) of the calls of one program, in an order in which both grow and shrink.
CALLS = ((1, 17), (3, 17), (3, 5), (1, 33), (3, 33), (1, 1), (3, 40), (2, 17))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Errors of the compiler are raised, and every warning of the door is said again."""
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    monkeypatch.setattr(torch_backend, "_said", set())
    torch._dynamo.reset()


def said() -> set[str]:
    """What the door has warned of in this test."""
    return set(torch_backend._said)


def free_axes(most: int = 40) -> dict[int, Any]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=1, max=most)}


def door(model: nn.Module, kernels, **options: Any) -> Any:
    """The model behind torch.compile."""
    return torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels, **options})


def program_of(fast: sparsec.CompiledModel) -> Any:
    assert fast._compiled.fully_compiled
    return fast._compiled.programs[0].program


# Hugging Face's models, as they are


@pytest.fixture(scope="module")
def hugging_face():
    """A pruned model of a class by name."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def make(kind: str, seed: int = 0) -> nn.Module:
        encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        ids = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
        sizes = {
            "Bert": encoder | ids,
            "DistilBert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64} | ids,
            "ViT": encoder | {"image_size": small.PIXELS, "patch_size": 8},
        }
        config = getattr(transformers, f"{kind}Config")(**sizes[kind])
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}Model")(config)
        return small.prune(small.seed_transformer(model, seed, small.DEVIATION), 0.9).eval()

    return make


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_an_encoder_of_hugging_face_is_one_program_for_all_sizes(hugging_face, kernels, kind):
    model, (ids, mask), axes = hugging_face(kind), sentences(2, 20), free_axes()
    free = {"input_ids": axes, "attention_mask": axes}
    fast = sparsec.compile(model, (ids,), {"attention_mask": mask}, dynamic_shapes=free, threads=1, cache_dir=kernels)
    assert [(s.name, s.least, s.most) for s in program_of(fast).sizes] == [("tokens", 1, 40)]
    for batch, count in CALLS:
        ids, mask = sentences(batch, count)
        found = fast(ids, attention_mask=mask)
        assert error(found, exact(model, ids, attention_mask=mask)) < LIMIT, (batch, count)
        assert type(found) is type(model(ids, attention_mask=mask))
    assert fast._by_size.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_an_encoder_of_hugging_face_behind_torch_compile(hugging_face, kernels, kind):
    model = hugging_face(kind)
    fast = door(model, kernels)
    for batch, count in ((1, 17), (3, 17), (3, 5), (2, 33)):
        ids, mask = sentences(batch, count)
        with torch.no_grad():
            assert error(fast(ids, attention_mask=mask), exact(model, ids, attention_mask=mask)) < LIMIT, (batch, count)
    assert not said()


def test_a_vision_transformer_of_hugging_face_behind_both_doors(hugging_face, kernels):
    model = hugging_face("ViT")
    whole, fast = sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels), door(model, kernels)
    assert program_of(whole).sizes == ()
    for batch in (1, 3):
        expected = exact(model, images(batch))
        assert error(whole(images(batch)), expected) < LIMIT
        with torch.no_grad():
            assert error(fast(images(batch)), expected) < LIMIT
    assert not said()


# One encoder behind every door


@pytest.fixture(scope="module")
def encoder(kernels):
    """A BERT, and its program for 1 to 40 tokens."""
    model, axes = bert(), free_axes()
    return model, sparsec.compile(model, sentences(2, 20), dynamic_shapes=(axes, axes), threads=1, cache_dir=kernels)


@pytest.mark.parametrize(("batch", "count"), CALLS)
def test_one_program_serves_all_sizes(encoder, batch, count):
    model, fast = encoder
    given = sentences(batch, count)
    assert error(fast(*given), exact(model, *given)) < LIMIT
    assert fast._by_size.notes == ()


def test_arrays_in_give_arrays_out(encoder):
    model, fast = encoder
    hidden, pooled = fast(*(x.numpy() for x in sentences(3, 17)))
    assert isinstance(hidden, np.ndarray)
    assert error([torch.from_numpy(hidden), torch.from_numpy(pooled)], exact(model, *sentences(3, 17))) < LIMIT


def test_threads_with_sizes_of_their_own_do_not_disturb_each_other(encoder):
    from concurrent.futures import ThreadPoolExecutor

    _, fast = encoder
    given = [sentences(2, count) for count in (5, 17, 33, 40)]
    expected = [fast(*each)[0] for each in given]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: fast(*given[n % 4])[0], range(80)))
    assert all(torch.equal(a, expected[n % 4]) for n, a in enumerate(found))


def test_less_tokens_are_never_more_work(encoder):
    from sparsec.runtime import _Instance

    program = program_of(encoder[1])
    instance, counts = _Instance(program, program.weights, 1), {}
    tables = {"records": instance.flat, "groups": instance.groups.reshape(-1)}
    for size in (40, 1, *range(2, 40), 40):
        instance.fit({"tokens": size})
        counts[size] = np.array([tables[patch.table][patch.index] for patch in program.patches])
    assert all((counts[size] <= counts[size + 1]).all() for size in range(1, 40))
    assert (counts[1] < counts[40]).any()


def test_the_program_from_a_file_is_the_same(encoder, kernels, tmp_path):
    model, fast = encoder
    axes, path = free_axes(), tmp_path / "bert.pt2"
    torch.export.save(torch.export.export(model, sentences(2, 20), dynamic_shapes=(axes, axes)), path)
    again = sparsec.compile(path, threads=1, cache_dir=kernels)
    for batch, count in ((1, 17), (3, 5)):
        assert all(map(torch.equal, leaves(again(*sentences(batch, count))), leaves(fast(*sentences(batch, count)))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_onnx_file_gives_the_same_result(encoder, kernels, tmp_path):
    pytest.importorskip("onnxscript", reason="the exporter of torch needs onnxscript")
    (model, _), path = encoder, tmp_path / "bert.onnx"
    torch.onnx.export(model, sentences(1, 17), path, dynamo=True, verbose=False)
    fast = sparsec.compile(path, threads=1, cache_dir=kernels)
    assert program_of(fast).inputs[0].limit == VOCABULARY
    assert error(fast(*sentences(1, 17)), exact(model, *sentences(1, 17))) < LIMIT


def test_an_artifact_runs_every_size(encoder, tmp_path):
    model, fast = encoder
    loaded = sparsec.load(fast.save(tmp_path / "bert"))
    for batch, count in CALLS[:4]:
        given = sentences(batch, count)
        assert error([torch.from_numpy(y) for y in loaded(*(x.numpy() for x in given))], exact(model, *given)) < LIMIT


# torch.compile: entries by sizes and by weights


@pytest.fixture
def compilations(monkeypatch):
    """What the compiler behind torch.compile is asked for during a test."""
    from sparsec import driver

    made, real = [], driver.compile_graph
    monkeypatch.setattr(driver, "compile_graph", lambda captured, settings: made.append(dict(captured.sizes)) or real(captured, settings))
    return made


def test_torch_compile_makes_one_program_for_a_bucket(kernels, compilations):
    model = bert()
    fast = door(model, kernels)
    with torch.no_grad():
        for batch, count in ((2, 17), (3, 17), (3, 5)):
            assert error(fast(*sentences(batch, count)), exact(model, *sentences(batch, count))) < LIMIT
        before = len(compilations)
        for batch, count in CALLS:
            if 1 not in (batch, count):
                assert error(fast(*sentences(batch, count)), exact(model, *sentences(batch, count))) < LIMIT, (batch, count)
    assert len(compilations) == before
    assert compilations[-1] == {"tokens": 64}
    assert not said()


def test_two_instances_keep_their_own_weights_while_sizes_change(kernels):
    pairs = [(model, door(model, kernels)) for model in (bert(0), bert(1))]
    with torch.no_grad():
        for batch, count in ((2, 17), (2, 9), (3, 33)):
            for model, fast in pairs:
                assert error(fast(*sentences(batch, count)), exact(model, *sentences(batch, count))) < LIMIT
    assert not said()


@pytest.mark.parametrize("change", ["in place", "load_state_dict", "table"])
def test_weights_changed_after_compiling_are_noticed_at_every_size(kernels, change):
    model = bert()
    fast = door(model, kernels)
    given = [sentences(2, count) for count in (17, 9, 33)]
    with torch.no_grad():
        before = [fast(*each)[0] for each in given]
        if change == "in place":
            model.layers[0].query.weight.mul_(3)
            model.layers[0].contract.weight.mul_(2)
        elif change == "load_state_dict":
            model.load_state_dict(bert(7).state_dict())
        else:
            model.embeddings.words.weight.add_(torch.linspace(0, 1, small.WIDTH))
        for each, old in zip(given, before, strict=True):
            found = fast(*each)
            assert error(found, exact(model, *each)) < LIMIT
            assert error(found[0], [old.double()]) > 1e-3
    assert not said()


# Padding that is not computed


@pytest.fixture(scope="module")
def unpadded(kernels):
    model = bert()
    return model, sparsec.compile(model, sentences(1, 17), threads=1, cache_dir=kernels, remove_padding=True)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_valid_tokens_are_exact_without_padding(unpadded, batch):
    model, fast = unpadded
    ids, mask = sentences(batch, 17)
    (hidden, pooled), expected = fast(ids, mask), exact(model, ids, mask)
    valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
    assert error([hidden[valid], pooled], [expected[0][valid], expected[1]]) < LIMIT
    assert not hidden[~valid].any()


def test_padding_inside_a_sentence_is_computed(unpadded):
    model, fast = unpadded
    ids, mask = sentences(2, 17)
    mask = torch.tensor([[0, 1, 0, 0, 1] + [0] * 12, [0] * 16 + [1]])
    expected = exact(model, ids, mask)
    found = fast(ids, mask)[0]
    assert error([found[0, :5], found[1]], [expected[0][0, :5], expected[0][1]]) < LIMIT
    assert not found[0, 5:].any()


def test_padding_is_removed_at_any_number_of_tokens(kernels):
    model, axes = bert(), free_axes()
    fast = sparsec.compile(model, sentences(2, 20), dynamic_shapes=(axes, axes), threads=1, cache_dir=kernels, remove_padding=True)
    for batch, count in ((3, 17), (1, 1), (3, 40), (2, 5)):
        ids, mask = sentences(batch, count)
        hidden, pooled = fast(ids, mask)
        valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
        expected = exact(model, ids, mask)
        assert error([hidden[valid], pooled], [expected[0][valid], expected[1]]) < LIMIT, (batch, count)
        assert hidden.shape == expected[0].shape


def test_torch_compile_removes_padding(kernels):
    model = bert()
    fast, (ids, mask) = door(model, kernels, remove_padding=True), sentences(3, 17)
    with torch.no_grad():
        hidden, _ = fast(ids, mask)
    valid = mask.bool() | ~mask.bool().any(1, keepdim=True)
    assert error(hidden[valid], [exact(model, ids, mask)[0][valid]]) < LIMIT
    assert not hidden[~valid].any()
    assert not said()


class Looking(nn.Module):
    """Queries that look at other tokens, of which a mask hides some."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(small.WIDTH, small.WIDTH)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return self.last(small.attend(x, other, other, small.HEADS, mask[:, None, None, :] != 0))


REFUSED = {
    "no mask": (lambda: (bert(), sentences(2, 17)[:1]), "has no mask that hides padding"),
    "a mean over tokens": (lambda: (small.PostNorm(mean=True), (tokens(2, 17), sentences(2, 17)[1])), "averages over all tokens"),
    "images": (lambda: (vit(), (images(1),)), "has no mask that hides padding"),
    "a mask of keys only": (lambda: (Looking().eval(), (tokens(2, 17), tokens(2, 17), sentences(2, 17)[1])), "says nothing of them"),
    "less queries than keys": (lambda: (Looking().eval(), (tokens(2, 7), tokens(2, 17), sentences(2, 17)[1])), "something else of tokens"),
    "no tokens": (lambda: (small.Classifier(), (tokens(2, 17)[:, 0],)), "0 padding masks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_padding_that_cannot_be_removed_is_refused_with_the_reason(kernels, name):
    make, reason = REFUSED[name]
    model, inputs = make()
    with pytest.raises(InvalidInput, match=f"(?s)Padding cannot be removed.*{reason}.*without remove_padding"):
        sparsec.compile(model, inputs, threads=1, cache_dir=kernels, remove_padding=True)


# Token pruning

HALF = {"keep": 0.5, "after": [1]}


def pruned_in_torch(model: nn.Module, inputs: tuple[Tensor, ...], option: dict[str, Any]) -> list[Tensor]:
    """Results of the graph after InsertTokenPruning, in float32."""
    captured = capture(model, inputs)
    passes = PIPELINE[: 1 + next(n for n, step in enumerate(PIPELINE) if step.name == "insert_token_pruning")]
    graph_module = run(captured.graph_module, passes, Context(Settings(token_pruning=option))).graph_module
    return leaves(captured.restore(graph_module(*captured.flatten(inputs))))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["prune", "merge"])
def test_half_of_the_tokens_as_in_torch(kernels, strategy):
    model, option = vit(depth=2), {**HALF, "strategy": strategy}
    fast = sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels, token_pruning=option)
    assert program_of(fast)
    assert {(17, 32), (9, 32)} <= {spec.output for spec in fast._compiled.programs[0].region.specs.values()}
    for batch in (1, 3):
        found, expected = fast(images(batch)), pruned_in_torch(model, (images(batch),), option)
        assert error(found, expected) < LIMIT
        assert error(found, exact(model, images(batch))) > 1e-3


@pytest.mark.parametrize("keep", [1.0, [1.0]])
def test_keeping_all_tokens_is_bit_identical(kernels, keep):
    model = vit(depth=2)
    plain, same = (
        sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels, token_pruning=option)
        for option in (None, {"keep": keep, "after": [1]})
    )
    assert torch.equal(plain(images(3)), same(images(3)))
    assert np.array_equal(program_of(plain).records, program_of(same).records)


def test_torch_compile_leaves_tokens_out(kernels):
    model = vit(depth=2)
    fast = door(model, kernels, token_pruning=HALF)
    with torch.no_grad():
        assert error(fast(images(1)), pruned_in_torch(model, (images(1),), HALF)) < LIMIT
    assert not said()


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan"), "half", [0.5, 0.5]])
def test_shares_out_of_range_are_refused(keep):
    with pytest.raises(InvalidInput, match="keep"):
        sparsec.compile(vit(depth=2), (images(1),), token_pruning={"keep": keep, "after": [1]})


def test_a_model_without_tokens_has_none_to_leave_out(kernels):
    with pytest.raises(InvalidInput, match=r"(?i)token"):
        sparsec.compile(small.Classifier(), (tokens(2, 17)[:, 0],), threads=1, cache_dir=kernels, token_pruning=HALF)


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda ids, mask: (ids, mask[:, :-1]), "mask"),
        (lambda ids, mask: (ids, mask[:1]), "batch|mask"),
        (lambda ids, mask: (ids, mask[:, None]), "mask"),
        (lambda ids, mask: (ids, mask[0]), "mask"),
        (lambda ids, mask: (ids, mask.bool()), "mask"),
        (lambda ids, mask: (ids.int(), mask), "ids"),
        (lambda ids, mask: (ids[:, :0], mask[:, :0]), "tokens"),
        (lambda ids, mask: (torch.cat([ids] * 3, 1), torch.cat([mask] * 3, 1)), "tokens"),
        (lambda ids, mask: (ids, None), "argument|tensor"),
        (lambda ids, mask: (ids,), "argument"),
    ],
    ids=["shorter", "other batch", "one axis more", "one less", "dtype", "dtype of ids", "empty", "too long", "none", "missing"],
)
def test_inputs_of_other_shapes_are_refused(encoder, given, message):
    with pytest.raises(InvalidInput, match=message):
        encoder[1](*given(*sentences(3, 17)))


@pytest.mark.parametrize("index", [-1, VOCABULARY, 2**40])
def test_ids_out_of_range_are_refused(encoder, kernels, index):
    model, whole = encoder
    ids, mask = sentences(2, 17)
    ids[1, 3] = index
    with pytest.raises(InvalidInput, match=r"indices out of range(?s:.*)rows 0 to 49"):
        whole(ids, mask)
    fast = door(model, kernels)
    with torch.no_grad():
        fast(*sentences(2, 17))
        with pytest.raises(InvalidInput, match="indices out of range"):
            fast(ids, mask)


def test_a_fixed_program_says_what_it_was_compiled_for(unpadded):
    with pytest.raises(InvalidInput, match=r"17\] torch.int64"):
        unpadded[1](*sentences(1, 16))


def test_the_model_is_left_as_it_was(kernels):
    model = vit()
    before = copy.deepcopy(model.state_dict())
    sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
