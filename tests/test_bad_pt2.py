"""Damaged, altered and hostile .pt2 files: clear errors only, and nothing in them runs."""

import copy
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsec.doors.from_torch.capture import capture
from sparsec.doors.from_torch.exported import example_arguments
from sparsec.doors.from_torch.pt2 import load_program
from sparsec.doors.open import open_model
from sparsec.errors import InvalidInput, SparsecError

MUTATIONS = 2000


class Small(nn.Module):
    """Two layers over rows, whose number is free."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        y = torch.relu(self.first(x)) + self.shift
        return self.second(y).reshape(x.shape[0], 2, 1)


def saved() -> bytes:
    program = torch.export.export(Small().eval(), (torch.ones(3, 4),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


WHOLE = saved()


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return content.getvalue()


PARTS = entries(WHOLE)
(MODEL,) = [name for name in PARTS if name.endswith("models/model.json")]
ROOT = MODEL.partition("/")[0]
CONFIG = f"{ROOT}/data/weights/model_weights_config.json"
EXAMPLES = f"{ROOT}/data/sample_inputs/model.pt"
VALUES = [None, -1, 0, 1, 2**40, 1.5, True, "", "x", "relu", "torch.ops.aten.add.Tensor", [], {}, [1], {"as_int": 7}]


def altered_json(document: object, draw: random.Random) -> None:
    """Replace, remove or repeat one value somewhere in a JSON document."""
    here = document
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))  # type: ignore[arg-type, call-overload]
        if not keys:
            return
        key = draw.choice(keys)
        value = here[key]  # type: ignore[index]
        if isinstance(value, dict | list) and value and draw.random() < 0.9:
            here = value
            continue
        action = draw.randrange(3)
        if action == 0:
            del here[key]  # type: ignore[attr-defined]
        elif action == 1:
            here[key] = draw.choice(VALUES)  # type: ignore[index]
        else:
            other = draw.choice(keys)
            here[key] = copy.deepcopy(here[other])  # type: ignore[index]
        return


def altered_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut, change, insert or drop some bytes."""
    data, place = bytearray(content), draw.randrange(len(content) + 1)
    action = draw.randrange(4)
    if action == 0:
        return bytes(data[:place])
    if action == 1:
        for _ in range(draw.randint(1, 8)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
    elif action == 2:
        data[place:place] = draw.randbytes(draw.randint(1, 16))
    else:
        del data[place : place + draw.randint(1, 64)]
    return bytes(data)


def altered(kind: str, draw: random.Random) -> bytes:
    if kind == "file":
        return altered_bytes(WHOLE, draw)
    parts = dict(PARTS)
    if kind == "json":
        name = draw.choice([MODEL, MODEL, MODEL, CONFIG])
        document = json.loads(parts[name])
        for _ in range(draw.randint(1, 2)):
            altered_json(document, draw)
        parts[name] = json.dumps(document).encode()
        return archive(parts)
    name = draw.choice(sorted(parts))
    action = draw.randrange(4)
    if action == 0:
        del parts[name]
    elif action == 1:
        parts[draw.choice(sorted(parts))] = parts[name]
    else:
        parts[name] = altered_bytes(parts[name], draw)
    return archive(parts)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad") / "model.pt2"


SEEN: set[str] = set()


def captured(path: Path) -> None:
    """Load the file and capture its program, unless one with the same graph was captured before."""
    program = load_program(path)
    described = "".join(f"{node.format_node()} {node.meta.get('val')}" for node in program.graph.nodes)
    described += f"{program.graph_signature}{program.call_spec}{program.range_constraints}{program._guards_code}{program.example_inputs}"
    if described not in SEEN:
        SEEN.add(described)
        capture(program, *example_arguments(program))


@pytest.mark.slow
@settings(max_examples=MUTATIONS, database=None)
@given(kind=st.sampled_from(["file", "entry", "json"]), seed=st.integers(0, 2**32))
def test_altered_files_give_clear_errors_only(path: Path, kind: str, seed: int) -> None:
    path.write_bytes(altered(kind, random.Random(seed)))
    try:
        captured(path)
    except SparsecError as error:
        assert len(str(error).splitlines()) > 1


def test_a_whole_file_is_read(path: Path) -> None:
    path.write_bytes(WHOLE)
    found = open_model(path)
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(found.restore(found.graph_module(x)), Small().eval()(x))


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, (f"open({str(self.place)!r}, 'w').close()",)


def with_text(before: str, after: str) -> dict[str, bytes]:
    """The parts with a text in the graph replaced."""
    text = PARTS[MODEL].decode()
    assert before in text
    return {**PARTS, MODEL: text.replace(before, after).encode()}


def pickled(place: Path) -> bytes:
    content = io.BytesIO()
    torch.save(((Bomb(place),), {}), content)
    return content.getvalue()


def weights(path_name: str, use_pickle: bool) -> bytes:
    """The configuration of weights with one elsewhere."""
    config = json.loads(PARTS[CONFIG])
    config["config"]["first.weight"] |= {"path_name": path_name, "use_pickle": use_pickle}
    return json.dumps(config).encode()


def attacks(place: Path) -> dict[str, dict[str, bytes]]:
    """Archives that would write the file `place` if what they hold were run."""
    code = f"__import__('pathlib').Path({str(place)!r}).touch()"
    size = json.dumps("Symbol('s77', positive=True, integer=True)")
    guards = json.dumps(["L['x'].size()[0] == L['x'].size()[0]" + f" or {code}"])
    document = json.loads(PARTS[MODEL])
    document["guards_code"] = json.loads(guards)
    bomb = pickle.dumps(Bomb(place))
    constants = f"{ROOT}/data/constants/model_constants_config.json"
    below = {f"{ROOT}/models/sub/x.json": PARTS[MODEL], f"{ROOT}/data/sample_inputs/sub/x.pt": PARTS[EXAMPLES]}
    below |= {f"{ROOT}/data/constants/sub/x_constants_config.json": PARTS[constants]}
    return {
        "examples": {**PARTS, EXAMPLES: pickled(place)},
        "legacy weights": {**PARTS, f"{ROOT}/data/weights/model.pt": pickled(place)},
        "pickled weight": {**PARTS, CONFIG: weights("weight_0", True), f"{ROOT}/data/weights/weight_0": bomb},
        "object": {**PARTS, f"{ROOT}/data/constants/opaque_obj_0": bomb},
        "second program below the first": {
            **PARTS,
            **below,
            f"{ROOT}/data/weights/sub/x_weights_config.json": weights("weight_0", True),
            f"{ROOT}/data/weights/weight_0": bomb,
        },
        "weight outside of its folder": {**PARTS, CONFIG: weights("/x", True), f"{ROOT}/data/weights//x": PARTS[MODEL], f"{ROOT}/x": bomb},
        "names that differ in case": {**PARTS, CONFIG.upper().replace(ROOT.upper(), ROOT): weights("weight_0", True)},
        "object outside of its folder": {
            **PARTS,
            constants: json.dumps({"config": {"x": {**json.loads(weights("opaque_obj_/x", True))["config"]["first.weight"]}}}).encode(),
            f"{ROOT}/data/constants/opaque_obj_/x": bomb,
        },
        "library": {**PARTS, f"{ROOT}/data/aotinductor/model/model.so": b"elf"},
        "size": with_text(size, json.dumps(code)),
        "size as text": with_text(size, json.dumps(f"Add(1, {code!r})")),
        "function": with_text("torch.ops.aten.relu.default", "torch.os.system"),
        "name": with_text('"name": "x"', json.dumps("name") + ": " + json.dumps(f"x={code}")),
        "guard": {**PARTS, MODEL: json.dumps(document).encode()},
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_nothing_in_a_file_runs(path: Path, tmp_path: Path, attack: str) -> None:
    place = tmp_path / "ran"
    path.write_bytes(archive(attacks(place)[attack]))
    if attack == "guard":
        open_model(path)
    else:
        with pytest.raises(SparsecError, match=r"may run code|not an allowed operator|same name twice"):
            open_model(path)
    assert not place.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no zip archive"),
        (b"PK\x03\x04", "no whole exported program"),
        (WHOLE[:-10], "no whole exported program"),
        (WHOLE[: len(WHOLE) // 2], "no whole exported program"),
        (archive({"a/b": b"text"}), "holds no exported program"),
        (archive(PARTS, zipfile.ZIP_DEFLATED), "is compressed"),
        (archive({**PARTS, "other/file": b""}), "several roots"),
        (archive(with_text('"as_int": 4', '"as_int": 5')), "do not fit its graph"),
        (archive({**PARTS, f"{ROOT}/data/weights/weight_0": b""}), "is empty"),
    ],
    ids=range(9),
)
def test_what_is_wrong_is_said(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        open_model(path)


def nested(depth: int) -> bytes:
    """Example inputs that are 2**depth values in a file of some kilobytes."""
    values: list[object] = [torch.ones(1)]
    for _ in range(depth):
        values = [values, values]
    content = io.BytesIO()
    torch.save(((values,), {}), content)
    return content.getvalue()


def examples(value: object) -> bytes:
    content = io.BytesIO()
    torch.save(((value,), {}), content)
    return content.getvalue()


def expanded() -> bytes:
    """A weight of 2**40 elements, all in one place."""
    config = json.loads(PARTS[CONFIG])
    meta = config["config"]["first.weight"]["tensor_meta"]
    meta |= {"sizes": [{"as_int": 2**20}] * 2, "strides": [{"as_int": 0}] * 2}
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({EXAMPLES: nested(60)}, "far larger than what is stored"),
        ({EXAMPLES: examples(torch.ones(1).expand(2**20, 2**20))}, "far larger than what is stored"),
        ({EXAMPLES: archive(entries(examples(torch.zeros(1000))), zipfile.ZIP_DEFLATED)}, "are compressed"),
        ({CONFIG: expanded()}, "far larger than what is stored"),
        ({MODEL: b"[" * 1_000_000}, "no whole exported program"),
    ],
    ids=["nested", "expanded", "compressed", "weight", "deep"],
)
def test_small_files_do_not_take_all_memory(path: Path, parts: dict[str, bytes], message: str) -> None:
    path.write_bytes(archive({**PARTS, **parts}))
    with pytest.raises(InvalidInput, match=message):
        open_model(path)


def test_pipes_and_endless_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt2")
    (tmp_path / "zero.pt2").symlink_to("/dev/zero")
    (tmp_path / "huge.pt2").touch()
    os.truncate(tmp_path / "huge.pt2", 1 << 42)
    for name in ("pipe", "zero", "huge"):
        with pytest.raises(InvalidInput, match=r"device or a pipe|more than the memory"):
            open_model(tmp_path / f"{name}.pt2")


def test_a_changed_byte_of_a_weight_is_found(path: Path) -> None:
    place = WHOLE.index(PARTS[f"{ROOT}/data/weights/weight_0"])
    path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :])
    with pytest.raises(InvalidInput, match="check sum"):
        open_model(path)
