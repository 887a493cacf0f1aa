"""What may be in a file of torch.export.save: entries by an allow-list, tensors and plain containers, names that are identifiers.

torch reads such an archive with pickle where safer ways fail, and finds entries by rules of its own: by folder, whatever the depth; with
paths joined, so that an absolute one leaves its folder; without regard to case. What is not on the list, and what two rules could read
differently, is refused.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_torch.size_expressions import refused_size
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.run.files import contents

#: Entries of torch.export.save for the model {model}, below the archive's root.
_ENTRIES = (
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id",
    r"models/{model}\.json",
    r"data/weights/(weight_[0-9]+|{model}_weights_config\.json)",
    r"data/constants/(tensor_[0-9]+|{model}_constants_config\.json)",
    r"data/sample_inputs/{model}\.pt",
    r"extra/[^/\\]+",
)
_MODEL = re.compile(r"models/([\w.-]+)\.json")
_PAYLOAD = re.compile(r"(weight|tensor)_[0-9]+")
#: Keys of names that become Python code.
_IDENTIFIERS = frozenset(
    {"name", "as_name", "forward_arg_names", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"}
)
#: Elements that tensors may have beyond the bytes that the file holds of them (expanded views); values in nested containers of examples.
MOST_EXPANDED, MOST_VALUES = 1 << 26, 100_000
AGAIN = "Export the model again with torch.export.save."


def checked_content(path: Path) -> bytes:
    """The bytes of a file that torch may read. UnsupportedModel for one that may run code, else InvalidInput."""
    try:
        content = contents(path)
    except OSError as error:
        raise InvalidInput("The file cannot be read.", where=str(path), why=str(error.strerror), hint=AGAIN) from error
    if not content.startswith(b"PK\x03\x04"):
        raise InvalidInput("The file is no exported program: it is no zip archive.", where=str(path), hint=AGAIN)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _check_archive(path, archive)
    return content


def unsafe(path: Path, why: str) -> UnsupportedModel:
    """The refusal of a file that may run code."""
    hint = "Export a model of tensors and torch operators only."
    return UnsupportedModel("The file may run code and is not read.", where=str(path), why=why, hint=hint)


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    entries = _entries(path, archive)
    model = _check_names(path, entries)
    damaged = archive.testzip()
    if damaged is not None:
        raise InvalidInput("The file is damaged.", where=str(path), why=f"The check sum of {damaged} is wrong.", hint=AGAIN)
    for name, entry in entries.items():
        if name.endswith("_config.json"):
            _check_payloads(path, entries, name, json.loads(archive.read(entry)))
    _check_model(path, json.loads(archive.read(entries[f"models/{model}.json"])))
    _check_examples(path, archive.read(entries[f"data/sample_inputs/{model}.pt"]))


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries by name below the root: plainly stored, no name twice in any case, one folder."""
    infos = archive.infolist()
    if len({info.filename.casefold() for info in infos}) != len(infos) or len({info.filename.partition("/")[0] for info in infos}) != 1:
        raise InvalidInput("The archive has the same name twice or several roots.", where=str(path), hint=AGAIN)
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise InvalidInput("The archive is compressed, which torch.export.save never does.", where=str(path), hint=AGAIN)
    return {info.filename.partition("/")[2]: info for info in infos}


def _check_names(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """The one model's name."""
    models = [found[1] for name in entries if (found := _MODEL.fullmatch(name))]
    if not models:
        why = "It has no models/*.json, so it was not written by torch.export.save of this version."
        raise InvalidInput("The archive holds no exported program.", where=str(path), why=why, hint=AGAIN)
    if len(models) > 1:
        raise InvalidInput("The file holds several programs.", where=str(path), why=", ".join(models), hint="Save them one by one.")
    allowed = re.compile("|".join(_ENTRIES).format(model=re.escape(models[0])))
    for name in entries:
        if not allowed.fullmatch(name):
            raise unsafe(path, f"It holds {name[:80]!r}, which torch.export.save does not write for tensors and operators.")
    return models[0]


def _check_payloads(path: Path, entries: Mapping[str, zipfile.ZipInfo], config: str, content: Any) -> None:
    """Every weight is raw bytes of this folder, and not much larger than they are."""
    folder = config.rpartition("/")[0]
    expanded = 0
    for name, payload in content["config"].items():
        entry = payload["path_name"]
        if not _PAYLOAD.fullmatch(entry):
            raise unsafe(path, f"The weight {name[:80]!r} is in {str(entry)[:80]!r}.")
        if payload["use_pickle"]:
            raise unsafe(path, f"The weight {name[:80]!r} is pickled.")
        stored, sizes = entries[f"{folder}/{entry}"].file_size, [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
        if not stored and 0 not in sizes:
            raise InvalidInput("The file is damaged.", where=str(path), why=f"{folder}/{entry} is empty.", hint=AGAIN)
        expanded += max(0, math.prod(sizes) - stored)
    if expanded > MOST_EXPANDED:
        why = f"They say {expanded:,} elements more than the file has bytes for."
        raise InvalidInput("The file's weights are views that are far larger than what is stored.", where=str(path), why=why, hint=AGAIN)


def _check_examples(path: Path, content: bytes) -> None:
    """Tensors and plain containers only, where torch would fall back to running the pickle."""
    if not content:
        return
    if not content.startswith(b"PK\x03\x04"):
        raise unsafe(path, "Its example inputs are in a format that torch.export.save does not write.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InvalidInput("The example inputs are compressed, which torch.export.save never does.", where=str(path), hint=AGAIN)
    try:
        found = torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise unsafe(path, "Its example inputs hold more than tensors.") from error
    left: deque[Any] = deque([found])
    values = elements = 0
    while left:
        value = left.popleft()
        values += 1
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            left.extend(value)
        elif isinstance(value, Tensor):
            elements += max(0, value.numel() - value.untyped_storage().nbytes())
        if max(values, len(left)) > MOST_VALUES or elements > MOST_EXPANDED:
            raise InvalidInput("The file's example inputs are far larger than what is stored.", where=str(path), hint=AGAIN)


def _check_model(path: Path, content: Any) -> None:
    for key, text in _texts(content):
        if key == "expr_str":
            if reason := refused_size(text):
                raise unsafe(path, f"The size {text[:80]!r} {reason}.")
        elif key in _IDENTIFIERS and text and not text.isidentifier():
            raise unsafe(path, f"The name {text[:80]!r} is no identifier.")


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in JSON with the key that leads to it; entries of lists and names of values with that of the list or dictionary."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, dict):
        for name, value in content.items():
            yield key if key.endswith("_values") else "", name
            yield from _texts(value, name)
