"""Mutations of a `.pt2` archive that know its structure: entries, names, fields, sizes, payloads. Every one is made from a seed."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.archives import CONFIGS, EXAMPLES, MODEL, Archive, code, every, places
from tests.hostile.watched import MARK

Change = Callable[[Archive], None]


def hostile_names(a: Archive) -> list[str]:
    names = [
        "models/other.json",
        "models/sub/model.json",
        "data/aotinductor/model/wrapper.so",
        "data/weights/model.pt",
        "data/weights/../weight_0",
    ]
    names += [
        "data/weights/sub/x_weights_config.json",
        "data/constants/opaque_obj_0",
        "data/constants//tensor_0",
        "extra/../../escaped",
        "extra/a/b",
    ]
    names += [
        "data/weights/weight_0\0",
        "data/weights/weight_\u0661",
        "x" * 60_000,
        "data/weights/weight_99",
        "extra/\u202etxt.so",
        "/etc/shadow",
    ]
    return [
        *names,
        "data/sample_inputs/other.pt",
        "data/weights/WEIGHT_0",
        "C:\\x",
        "custom_objs/x",
        "data/weights/weight_0.pt",
        MODEL.upper(),
    ]


def added(a: Archive) -> None:
    a.parts.insert(
        a.draw.randrange(len(a.parts) + 1), (a.full(a.draw.choice(hostile_names(a))), a.draw.choice([a.bomb(), b"", a.read(MODEL)]))
    )


def renamed(a: Archive) -> None:
    i = a.draw.randrange(len(a.parts))
    name, content = a.parts[i]
    ways = [
        name.upper(),
        name.replace("/", "//", 1),
        f"./{name}",
        f"{name}/",
        name.replace("/", "\\"),
        f"other/{name}",
        name + " ",
        name[1:],
    ]
    a.parts[i] = (a.draw.choice([*ways, a.full(a.draw.choice(hostile_names(a)))]), content)


def repeated(a: Archive) -> None:
    """The same name twice, or twice but for case; one of the two holds something else."""
    name, content = a.draw.choice(a.parts)
    other = a.draw.choice([name, name.upper(), name.title(), name.swapcase()])
    a.parts.insert(a.draw.randrange(len(a.parts) + 1), (other, a.draw.choice([content, a.bomb(), b"{}"])))


def removed(a: Archive) -> None:
    for _ in range(a.draw.randint(1, 3)):
        del a.parts[a.draw.randrange(len(a.parts))]


def replaced(a: Archive) -> None:
    """An entry with what another one holds, or with a payload."""
    i = a.draw.randrange(len(a.parts))
    a.parts[i] = (
        a.parts[i][0],
        a.draw.choice([a.draw.choice(a.parts)[1], a.bomb(), b"", a.parts[i][1][:-1], a.parts[i][1] * 3, b"\xff" * 64]),
    )


def hostile_values(a: Archive) -> list[Any]:
    deep: list[Any] = []
    for _ in range(a.draw.choice([50, 900])):
        deep = [deep]
    text = code(a.place)
    values: list[Any] = [
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**40,
        1e308,
        float("nan"),
        float("inf"),
        "",
        text,
        "x" * 1_000_000,
        deep,
        {},
        [],
    ]
    values += [
        {text: text},
        [text],
        f"{MARK}.evil",
        "__class__",
        "import",
        "torch.ops.aten.from_file.default",
        "9**9**9",
        "\ud800",
        "\0",
        "../x",
    ]
    return [*values, {"as_int": 2**62}, {"as_expr": {"expr_str": text, "hint": None}}, {"as_name": text}, {"as_tensor": {"name": "x"}}]


def field(a: Archive) -> None:
    """A field anywhere in the JSON documents: another value, another name, gone, or a copy of another."""

    def change(document: Any) -> None:
        for _ in range(a.draw.randint(1, 3)):
            all_places = places(document, [])
            here, key = a.draw.choice(all_places)
            if key not in here if isinstance(here, dict) else key >= len(here):
                continue
            there, other = a.draw.choice(all_places)
            action = a.draw.randrange(5)
            if action == 0 and isinstance(here, dict):
                here[a.draw.choice([code(a.place), key.upper(), "__proto__", f"{key}_"])] = here.pop(key)
            elif action == 1:
                del here[key]
            elif action == 2 and (other in there if isinstance(there, dict) else other < len(there)):
                here[key] = copy.deepcopy(there[other])
            else:
                here[key] = a.draw.choice(hostile_values(a))

    a.json(a.draw.choice([MODEL, MODEL, MODEL, CONFIGS[0]]), change)


def sizes(a: Archive) -> None:
    every(a, ("as_int",), [0, -1, 1, 5, 2**20, 2**31, 2**40, 2**62, 2**64], a.draw.choice([MODEL, MODEL, CONFIGS[0]]))


def kinds(a: Archive) -> None:
    name = a.draw.choice([MODEL, CONFIGS[0]])
    which = a.draw.choice([("dtype",), ("layout",), ("device",), ("requires_grad",), ("storage_offset",), ("strides",)])
    values = [0, 1, 6, 8, 12, 13, 99, -1, None, {"type": "cuda", "index": 0}, {"type": "meta", "index": None}, {"as_int": 2**40}]
    every(a, which, [*values, [{"as_int": 0}, {"as_int": 0}], [{"as_int": 2**40}], [{"as_int": -1}], []], name)


def expressions(a: Archive) -> None:
    text = code(a.place)
    values = [
        text,
        "9**9**9",
        "(" * 3000 + ")" * 3000,
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        f"Symbol({text!r})",
        f"Add(1, {text!r})",
    ]
    values += [
        f"(lambda: {text})()",
        "factorial(99999999)",
        "Symbol('s77').__class__",
        "Mul(" * 200 + "1" + ")" * 200,
        "1e999999999",
        "s77 @ s77",
    ]
    values += [
        f"Max(s77, {text})",
        "Symbol('s77', positive=True, integer=True)*10**5000",
        "s" * 19_999,
        f"f'{{{text}}}'",
        "[x for x in ()]",
    ]
    every(a, ("expr_str",), values)


def operators(a: Archive) -> None:
    values = [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "os.system",
        f"{MARK}.evil",
    ]
    values += [
        "_operator.attrgetter",
        "operator.methodcaller",
        "math.__loader__",
        "torch.ops.os.system",
        "torch.ops.aten.relu",
        "torch.ops",
        "",
    ]
    values += [
        "torch.utils._config_module.ast.literal_eval",
        "torch._C._jit_eval",
        "torch.ops.higher_order.wrap",
        "torch.ops.aten.nonzero.default",
    ]
    every(a, ("target",), [*values, "torch.ops.prim.device.default", "torch.serialization.load", "pickle.loads", "torch.ops.load_library"])


def names(a: Archive) -> None:
    values = [
        code(a.place),
        "import",
        "__class__",
        "self",
        "x=1",
        f"x={code(a.place)}",
        "a b",
        "",
        "x" * 100_000,
        "None",
        "torch",
        "\u2028",
        "x\nprint(1)",
    ]
    every(a, ("name", "as_name", "parameter_name", "buffer_name", "fqn"), values)


def guards(a: Archive) -> None:
    text = code(a.place)
    ways = [
        text,
        f"L['x'].size()[0] == 1 or {text}",
        "L['x'].size()[0] <= 9**9**9",
        "(" * 5000,
        "L['x'].size()[0] == L['x'].size()[0]",
        "x" * 100_000,
    ]
    a.json(MODEL, lambda document: document.update(guards_code=a.draw.sample(ways, a.draw.randint(1, 3))))


def payloads(a: Archive) -> None:
    """Pickled weights, weights elsewhere, weights of another length."""
    where = a.draw.choice(
        ["weight_0", "/x", "../weight_0", "opaque_obj_0", "weight_0\0", "weight_00", "tensor_0", "sub/weight_0", "weight_77", None, 3]
    )
    content = a.draw.choice([a.bomb(), a.read("data/weights/weight_0"), b"", b"\0" * 4096])

    def change(document: Any) -> None:
        weight = document["config"][a.draw.choice(sorted(document["config"]))]
        weight |= {"path_name": where, "use_pickle": a.draw.choice([False, True, "yes", 0, None, 1])}

    a.json(CONFIGS[0], change)
    if isinstance(where, str) and "\0" not in where:
        a.put(f"data/weights/{where}", content)


def examples(a: Archive) -> None:
    """Example inputs that are no tensors, too many, too large, or others than the program's."""
    nested: list[Any] = [torch.ones(1)]
    for _ in range(a.draw.choice([5, 60])):
        nested = [nested, nested]
    values = [
        nested,
        torch.ones(1).expand(2**20, 2**20),
        torch.ones(0, 4),
        torch.ones(3, 5),
        "text",
        {1: 2},
        torch.ones(3, 4).double(),
        10**30,
    ]
    values += [
        torch.ones(3, 4).to_sparse(),
        torch.ones(3, 4, device="meta"),
        torch.full((3, 4), float("nan")),
        torch.nn.Linear(2, 2),
        code(a.place),
    ]
    content = io.BytesIO()
    torch.save(((a.draw.choice(values),), {}), content)
    a.put(EXAMPLES, a.draw.choice([content.getvalue(), content.getvalue(), a.bomb()]))


def trees(a: Archive) -> None:
    """How arguments are nested is JSON inside of JSON."""
    text = code(a.place)
    leaf = '{"type": null, "context": null, "children_spec": []}'
    ways = [
        f'[1, {{"type": "{MARK}.evil", "context": "null", "children_spec": []}}]',
        f"[1, {leaf}]",
        "[2, null]",
        text,
        "[1, " + "[" * 5000,
    ]
    ways += [f'[1, {{"type": "collections.namedtuple", "context": {json.dumps(json.dumps(text))}, "children_spec": []}}]', "[1]", "{}", ""]
    ways += [f'[1, {{"type": "builtins.dict", "context": {json.dumps(json.dumps([text]))}, "children_spec": [{leaf}]}}]']
    every(a, ("in_spec", "out_spec"), ways)
    if a.draw.random() < 0.3:
        every(a, ("forward_arg_names",), [[text], ["x", "x"], ["import"], [], None, ["x" * 10_000]])


def versions(a: Archive) -> None:
    every(a, ("major", "minor", "aten", "torch_version", "verifiers"), [0, -1, 2**70, "99", None, [], ["x"], code(a.place)])


def zipped(a: Archive) -> None:
    """The container itself: compression, cuts, flips, thousands of entries, sizes that lie."""
    draw = a.draw

    def cut(content: bytes) -> bytes:
        return content[: draw.randrange(len(content))]

    def flipped(content: bytes) -> bytes:
        data = bytearray(content)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(data)

    def lying(content: bytes) -> bytes:
        """Sizes in the central directory."""
        data, at = bytearray(content), content.index(b"PK\x01\x02")
        struct.pack_into("<I", data, at + draw.choice([20, 24, 42]), draw.choice([0, 1, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 20]))
        return bytes(data)

    def many(content: bytes) -> bytes:
        a.parts += [(a.full(f"extra/{i}"), b"") for i in range(20_000)]
        a.after = bytes
        return a.bytes()

    a.after = draw.choice([cut, flipped, lying, many, lambda c: c + c, lambda c: b"#!/bin/sh\n" + c, lambda c: c + b"x" * 70_000])
    if draw.random() < 0.2:
        a.compression = zipfile.ZIP_DEFLATED


CHANGES: tuple[Change, ...] = (added, renamed, repeated, removed, replaced, field, field, field, sizes, kinds)
CHANGES += (expressions, operators, names, guards, payloads, examples, trees, versions, zipped, field)


def mutated(content: bytes, number: int, place: Path) -> tuple[str, bytes]:
    """The mutation of that number: what was done, and the file."""
    draw = random.Random(number)
    change, more = CHANGES[number % len(CHANGES)], draw.choice(CHANGES)
    a = Archive(content, draw, place)
    change(a)
    done = change.__name__
    if draw.random() < 0.2 and any(name == a.full(MODEL) for name, _ in a.parts):
        try:
            more(a)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError):
            pass  # the first left nothing for the second
        else:
            done += f" and {more.__name__}"
    return done, a.bytes()
