"""ONNX files and messages as ModelProto: the one module that needs the `onnx` package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.files import contents
from sparsec.needs import lacking

if TYPE_CHECKING:
    import onnx


def read_model(source: Path | str | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder of its external data (None for a model in memory).

    MachineError without the onnx package, InvalidInput where there is no such file, UnsupportedModel for one that is no ONNX model.
    """
    try:
        import onnx
    except ImportError as error:
        raise lacking("onnx") from error
    if isinstance(source, onnx.ModelProto):
        return source, None
    if not isinstance(source, str | Path):
        raise InvalidInput(f"A {type(source).__name__} is no ONNX model.", hint="Give a path or an onnx.ModelProto.")
    path = Path(source)
    return _parsed(onnx.ModelProto(), _content(path), path), path.parent


def _content(path: Path) -> bytes:
    try:
        return contents(path)
    except (OSError, ValueError) as error:
        raise InvalidInput("The ONNX file cannot be read.", where=str(path), why=str(error)) from error


def _parsed(model: onnx.ModelProto, content: bytes, path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise UnsupportedModel("The file is no ONNX model.", where=str(path), why=str(error), hint="It may be truncated.") from error
    return model
