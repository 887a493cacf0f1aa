"""Models on tokens through every door with the real compiler: sizes that change, masks, weights that change, refusals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec.errors import InvalidInput
from tests import token_models as small
from tests.compiler.token_doors import LIMIT, door, free_axes, program_of, said
from tests.token_models import POSITIONS, VOCABULARY, bert, error, exact, images, leaves, sentences, vit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("strict")]

#: (batch, tokens) of the calls of one program, in an order in which both grow and shrink.
CALLS = ((1, 17), (3, 17), (3, 5), (1, 33), (3, 33), (1, 1), (3, 40), (2, 17))


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
@pytest.mark.turns(2)
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
@pytest.mark.turns(2)
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
@pytest.mark.turns(2)
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
    from sparsec.run.instance import Instance

    program = program_of(encoder[1])
    instance, counts = Instance(program, 1), {}
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

    def compile_graph(captured, settings, **options):
        made.append(dict(captured.sizes))
        return real(captured, settings, **options)

    monkeypatch.setattr(driver, "compile_graph", compile_graph)
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
@pytest.mark.turns(3)
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


def test_the_model_is_left_as_it_was(kernels):
    model = vit()
    before = copy.deepcopy(model.state_dict())
    sparsec.compile(model, (images(1),), threads=1, cache_dir=kernels)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
