"""A `.pt2` archive in parts, to be changed and put together again, and payloads that write a file when anything runs them."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.watched import MARK

Parts = list[tuple[str, bytes]]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return exec, (code(self.place),)


def code(place: Path) -> str:
    """Python, one expression, that writes the file ``place``."""
    return f"[{MARK} for {MARK} in [__import__('pathlib').Path({str(place)!r}).touch()]]"


class Archive:
    """The parts of an archive in order, to be changed; ``place`` is the file that payloads write."""

    def __init__(self, content: bytes, draw: random.Random, place: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self.parts: Parts = [(name, archive.read(name)) for name in archive.namelist()]
        self.draw, self.place = draw, place
        self.root = self.parts[0][0].partition("/")[0]
        self.compression = zipfile.ZIP_STORED
        self.after: Callable[[bytes], bytes] = bytes

    def full(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        return dict(self.parts)[self.full(name)]

    def put(self, name: str, content: bytes) -> None:
        """Replace an entry, or add it."""
        found = [i for i, (each, _) in enumerate(self.parts) if each == self.full(name)]
        for i in found or [len(self.parts)]:
            self.parts[i : i + 1] = [(self.full(name), content)]

    def json(self, name: str, change: Callable[[Any], None]) -> None:
        document = json.loads(self.read(name))
        change(document)
        self.put(name, json.dumps(document).encode())

    def bomb(self) -> bytes:
        """A payload as pickle has it, as torch.save has it, or as old torch.save had it."""
        kind, content = self.draw.randrange(3), io.BytesIO()
        if not kind:
            return pickle.dumps(Payload(self.place))
        torch.save(((Payload(self.place),), {}), content, _use_new_zipfile_serialization=kind == 1)
        return content.getvalue()

    def bytes(self) -> bytes:
        content = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(content, "w", self.compression) as archive:
            warnings.simplefilter("ignore")
            for name, part in self.parts:
                archive.writestr(name, part)
        return self.after(content.getvalue())


MODEL = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
EXAMPLES = "data/sample_inputs/model.pt"


def places(document: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container of a JSON document with a key in it."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        found.append((document, key))
        places(document[key], found)
    return found


def named(keys: tuple[str, ...]) -> Callable[[Any], list[tuple[Any, Any]]]:
    return lambda document: [(here, key) for here, key in places(document, []) if key in keys]


def every(a: Archive, keys: tuple[str, ...], values: list[Any], name: str = MODEL) -> None:
    """Some fields of these names, wherever they are, with one of these values."""

    def change(document: Any) -> None:
        found = named(keys)(document)
        for here, key in a.draw.sample(found, min(len(found), a.draw.choice([1, 1, 2, 100]))):
            here[key] = copy.deepcopy(a.draw.choice(values))

    a.json(name, change)
