"""Artifacts: round trip, running without torch and TVM, and everything that can be wrong with one."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ArtifactError, InvalidInput, MachineError, SparsecError
from sparsec.run.artifact import load, read_explanation, save
from sparsec.run.explanation import Explanation, Layer
from sparsec.run.loaded_artifact import check_structure
from sparsec.run.manifest import MANIFEST, write_manifest
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, pair, strips

EXPLANATION = Explanation((Layer("layer0", "mul", (4, 24), 0.1, "unstructured", "affine", "spmm"),), notes=("tiny",))
NAMES = {
    "manifest.json",
    "kernels.so",
    "weights.safetensors",
    "program.bin",
    "sparsec.h",
    "sparsec.c",
    "processor.h",
    "sha256.h",
    "example.c",
}
X = np.random.default_rng(0).standard_normal((3, 4, 24)).astype(np.float32)
Y = (X * 3 + 1) * 2 + np.float32(0.5)

WITHOUT_TORCH_AND_TVM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tvm", "tvm_ffi", "networkx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
sys.path[:] = [path for path in sys.path if path]
import numpy as np
import sparsec

model = sparsec.load(sys.argv[1], threads=int(sys.argv[4]))
np.save(sys.argv[3], model(np.load(sys.argv[2])))
assert not {"torch", "tvm"} & set(sys.modules)
assert "libtvm" not in open("/proc/self/maps").read()
print(model.explain().notes[0], len(model.profile(np.load(sys.argv[2]), repeats=2)))
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The artifact of ``chain()``."""
    return save(tmp_path / "tiny.sparsec", chain(), library(), EXPLANATION, {"output": "leaf"}, ANY_MACHINE)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again, as a careful hand would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["digest"]
    change(manifest)
    write_manifest(folder, manifest)


def test_round_trip(saved: Path) -> None:
    model = load(saved)
    np.testing.assert_allclose(model(X), Y, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(model(x=X), model(X))
    np.testing.assert_array_equal(model.flat(X)["y"], model(X))
    assert model.explain() == EXPLANATION == read_explanation(saved)
    assert [(p.name, p.shape) for p in (*model.inputs, *model.outputs)] == [("x", (4, 24)), ("y", (4, 24))]
    assert model(X[:0]).shape == (0, 4, 24)
    assert "x [4, 24] -> y [4, 24]" in repr(model)


def test_holds_no_pickle_and_nothing_of_others(saved: Path) -> None:
    names = {re.sub(r"-[0-9a-f]{16}\.", ".", file.name) for file in saved.iterdir()}
    assert names == NAMES


def test_an_artifact_that_names_no_executor_is_for_the_cpu(saved: Path) -> None:
    """As those of earlier versions."""
    rewrite(saved, lambda manifest: manifest["program"].pop("executor"))
    np.testing.assert_allclose(load(saved)(X), Y, rtol=1e-6, atol=1e-6)


def test_another_executor_is_refused_by_both_ends(saved: Path, tmp_path: Path) -> None:
    rewrite(saved, lambda manifest: manifest["program"].update(executor="wheels"))
    with pytest.raises(MachineError, match=r"needs the executor 'wheels', this one is 'cpu'\.\n.*\n.*--target native"):
        load(saved)
    program = dataclasses.replace(chain(), executor="wheels")
    with pytest.raises(ArtifactError, match=r"executor 'wheels' cannot be saved\.\n.*\n.*--target native"):
        save(tmp_path / "other.sparsec", program, library(), None, {"output": "leaf"}, ANY_MACHINE)
    assert not (tmp_path / "other.sparsec").exists()


def test_two_threads(saved: Path) -> None:
    model = load(saved, threads=2)
    assert model.threads == 2
    np.testing.assert_allclose(model(X), Y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_where_torch_and_tvm_cannot_be_imported(saved: Path, tmp_path: Path, threads: int) -> None:
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-c", WITHOUT_TORCH_AND_TVM, str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), str(threads)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tiny", "2"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), Y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("structure", "check"),
    [
        ({"tuple": ["leaf", "leaf"]}, lambda r: type(r) is tuple and len(r) == 2),
        ({"list": ["leaf", None, "leaf"]}, lambda r: type(r) is list and r[1] is None),
        ({"dict": {"p": "leaf", "q": {"tuple": ["leaf"]}}}, lambda r: set(r) == {"p", "q"} and type(r["q"]) is tuple),
    ],
)
def test_results_are_nested_as_the_models_own(tmp_path: Path, structure: Any, check: Callable[[Any], bool]) -> None:
    path = save(tmp_path / "pair.sparsec", pair(), library(), None, {"output": structure}, ANY_MACHINE)
    model = load(path)
    a, b = np.ones((2, 8), np.float32), np.zeros((2, 4), np.float32)
    assert check(model(a, b))
    for results in (model.flat(a, b), model.flat(a, b=b), model.flat(b=b, a=a)):
        assert (results["twice"] == 2).all()
        assert (results["more"] == 1).all()


@pytest.mark.parametrize(("arguments", "names"), [((), {"a": X}), ((X,), {"a": X}), ((X, X), {"c": X}), ((X,), {"b": X, "c": X})])
def test_names_that_do_not_fit(tmp_path: Path, arguments: tuple, names: dict) -> None:
    path = save(tmp_path / "pair.sparsec", pair(), library(), None, {"output": {"tuple": ["leaf", "leaf"]}}, ANY_MACHINE)
    with pytest.raises(InvalidInput, match=r"named inputs.*\n.*\n.*a, b"):
        load(path)(*arguments, **names)


@pytest.mark.parametrize("value", [X.astype(np.float64), X.tolist(), X[0], X[:, :3], None])
def test_bad_inputs_are_refused(saved: Path, value: Any) -> None:
    with pytest.raises(InvalidInput):
        load(saved)(value)


def test_input_that_is_not_contiguous(saved: Path) -> None:
    np.testing.assert_allclose(load(saved)(np.asfortranarray(X)), Y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "structure", ["leaf", {"tuple": ["leaf"] * 3}, {"set": ["leaf", "leaf"]}, {"list": "leaf"}, 2, ["leaf", "leaf"], {}]
)
def test_structures_must_fit_the_program(structure: Any) -> None:
    with pytest.raises(ArtifactError):
        check_structure(structure, pair())


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact"):
        load(tmp_path / "nowhere.sparsec")


@pytest.mark.parametrize("pattern", ["manifest.json", "kernels-*.so", "weights.safetensors", "program.bin"])
@pytest.mark.parametrize("damage", ["remove", "truncate", "flip", "empty"])
def test_damaged_files(saved: Path, pattern: str, damage: str) -> None:
    (file,) = saved.glob(pattern)
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.unlink()
    if damage != "remove":
        file.write_bytes({"truncate": content[:middle], "flip": flipped, "empty": b""}[damage])
    with pytest.raises(ArtifactError, match=r"altered|missing|cannot be read|readable"):
        load(saved)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{}", '{"format": 1}', "{"])
def test_manifests_that_are_none(saved: Path, text: str) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="manifest"):
        load(saved)


def test_edited_manifest(saved: Path) -> None:
    path = saved / "manifest.json"
    path.write_text(path.read_text().replace('"arena_bytes": 384', '"arena_bytes": 4'))
    with pytest.raises(ArtifactError, match="altered"):
        load(saved)


@pytest.mark.parametrize("form", [0, 1, 2, 3, 4, 5, 7, "6", None])
def test_unknown_format(saved: Path, form: Any) -> None:
    rewrite(saved, lambda m: m.update(format=form))
    with pytest.raises(ArtifactError, match="format"):
        load(saved)


SEALED: list[Callable[[dict[str, Any]], object]] = [
    lambda m: m["program"].update(arena_bytes="384"),
    lambda m: m["program"]["relocations"].append([10**6, "arena", 0, 0]),
    lambda m: m["program"]["relocations"].append([-1, "arena", 0, 0]),
    lambda m: m["program"]["relocations"].append([1.5, "arena", 0, 0]),
    lambda m: m["program"]["relocations"].append([1, "arena"]),
    lambda m: m["program"]["relocations"].append([1, "input", 0, 7]),
    lambda m: m["program"]["relocations"].append([1, "weights", 1 << 40, 0]),
    lambda m: m["program"]["relocations"].append([1, ["arena"], 0, 0]),
    lambda m: m["program"]["inputs"][0].update(shape=[-4, 24]),
    lambda m: m["program"]["inputs"][0].update(shape=5),
    lambda m: m["program"].update(inputs=[]),
    lambda m: m["program"].update(kernels=[]),
    lambda m: m["program"].update(steps=[{"surprise": 1}]),
    lambda m: m.pop("program"),
    lambda m: m.update(program=None),
    lambda m: m.update(machine={}),
    lambda m: m.update(signature={"output": {"tuple": []}}),
    lambda m: m.update(explanation={"layers": [{}]}),
    lambda m: m.update(explanation=7),
    lambda m: m.update(library="weights.safetensors"),
    lambda m: m.update(library="../kernels.so"),
    lambda m: m.update(library="/elsewhere/" + m["library"]),
    lambda m: m.update(library="./" + m["library"]),
    lambda m: m.update(library="program.bin"),
    lambda m: m["program"].update(arena_bytes=1 << 63),
    lambda m: m["program"].update(arena_bytes=10**30),
    lambda m: m["program"]["inputs"][0].update(shape=[10**30]),
    lambda m: m["program"]["outputs"][0].update(shape=[2**40, 2**40]),
    lambda m: m["program"]["outputs"][0].update(shape=[0, 2**40, 2**40]),
    lambda m: m["program"]["relocations"][0].__setitem__(2, 1 << 63),
    lambda m: m["program"].update(thread_slots=1 << 63),
    lambda m: m.update(files={}),
    lambda m: m["files"].update({"../outside": "00"}),
    lambda m: m["files"].pop("weights.safetensors"),
    lambda m: m["files"].pop(m["library"]),
]


@pytest.mark.parametrize("number", range(len(SEALED)))
def test_manipulated_manifests_never_run(saved: Path, number: int) -> None:
    rewrite(saved, SEALED[number])
    with pytest.raises(ArtifactError):
        load(saved)(X)


def test_a_library_elsewhere_is_not_loaded(saved: Path, tmp_path: Path) -> None:
    """Not even to look at it: what a library constructs runs when it is loaded."""
    (kernels,) = saved.glob("kernels-*.so")
    shutil.copy(kernels, tmp_path / kernels.name)
    rewrite(saved, lambda m: m.update(library=f"../{kernels.name}"))
    with pytest.raises(ArtifactError):
        load(saved)
    assert str(tmp_path / kernels.name) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("pattern", ["manifest.json", "kernels-*.so", "weights.safetensors", "program.bin"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link out", "sparse", "link inside", "loop"])
def test_files_of_other_kinds(saved: Path, tmp_path: Path, pattern: str, kind: str) -> None:
    (file,) = saved.glob(pattern)
    elsewhere = (tmp_path if kind == "link out" else saved) / "copied"
    file.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "sparse":
        file.touch()
        os.truncate(file, 1 << 42)
    else:
        file.symlink_to({"device": Path("/dev/zero"), "loop": file}.get(kind, elsewhere))
    if kind == "link inside" or (kind == "link out" and pattern == "manifest.json"):
        np.testing.assert_allclose(load(saved)(X), Y, rtol=1e-6, atol=1e-6)
        return
    with pytest.raises(ArtifactError, match=r"outside its directory|no regular file|more than the memory|levels of symbolic links"):
        load(saved)


def test_a_deep_manifest(saved: Path) -> None:
    (saved / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="manifest"):
        load(saved)


def test_more_memory_than_there_is(saved: Path) -> None:
    rewrite(saved, lambda m: m["program"].update(arena_bytes=1 << 45))
    with pytest.raises(MachineError, match="memory"):
        load(saved)(X)


@pytest.mark.parametrize("machine", [{"arch": "x86_64", "features": ["avx2", "amx-tile-9"]}, {"arch": "riscv64", "features": []}])
def test_another_machine(tmp_path: Path, machine: dict[str, Any]) -> None:
    path = save(tmp_path / "other.sparsec", chain(), library(), EXPLANATION, {"output": "leaf"}, machine)
    with pytest.raises(MachineError, match=r"amx-tile-9|riscv64"):
        load(path)
    assert read_explanation(path) == EXPLANATION


def test_more_threads_than_it_was_compiled_for(tmp_path: Path) -> None:
    program = dataclasses.replace(chain(), thread_slots=1)
    path = save(tmp_path / "one.sparsec", program, library(), None, {"output": "leaf"}, ANY_MACHINE)
    with pytest.raises(InvalidInput, match="at most 1 thread"):
        load(path, threads=2)


def test_strip_buffers_of_an_unstated_number_of_threads(tmp_path: Path) -> None:
    program = strips(slots=None)
    path = save(tmp_path / "strips.sparsec", program, library(), None, {"output": "leaf"}, ANY_MACHINE)
    np.testing.assert_allclose(load(path)(X), Y, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArtifactError, match="2 threads"):
        load(path, threads=2)


def test_strip_buffers_with_room_for_two_threads(tmp_path: Path) -> None:
    path = save(tmp_path / "strips.sparsec", strips(slots=2), library(), None, {"output": "leaf"}, ANY_MACHINE)
    for threads in (1, 2):
        np.testing.assert_allclose(load(path, threads)(X), Y, rtol=1e-6, atol=1e-6)


def test_a_copy_of_an_artifact_runs(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(saved, copy)
    np.testing.assert_allclose(load(copy)(X), Y, rtol=1e-6, atol=1e-6)


def test_errors_are_ours(saved: Path) -> None:
    assert issubclass(ArtifactError, SparsecError)
    (saved / "weights.safetensors").unlink()
    with pytest.raises(SparsecError) as caught:
        load(saved)
    assert "weights.safetensors" in caught.value.where
    assert caught.value.hint
