"""ONNX files and messages as ModelProto: the one module that needs the `onnx` package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.doors.from_onnx.nodes import OLDEST, OPSETS, STANDARD
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.run.files import contents
from sparsec.tools.needs import lacking

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
        return current(source, "a model in memory"), None
    if not isinstance(source, str | Path):
        raise InvalidInput(f"A {type(source).__name__} is no ONNX model.", hint="Give a path or an onnx.ModelProto.")
    path = Path(source)
    return current(_parsed(onnx.ModelProto(), _content(path), path), str(path)), path.parent


def current(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model with operators of an opset that is read here; as it is where it has one already, or none that onnx converts.

    UnsupportedModel where onnx cannot convert it.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    if len(versions) != 1 or not OLDEST <= versions[0] < OPSETS[0]:
        return model
    import onnx.helper
    import onnx.version_converter

    try:
        found = onnx.version_converter.convert_version(model, OPSETS[0])
    except Exception as error:
        raise UnsupportedModel(
            f"The model uses opset {versions[0]} of the ONNX operators, which cannot be converted.",
            where=where,
            why=next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__),
            hint=f"Export it again with opset {OPSETS[0]} or later.",
        ) from error
    if versions[0] < 11:
        # Elements lie at multiples of the scale there, and places are rounded down; onnx leaves the later defaults in their stead.
        for node in found.graph.node:
            if node.op_type == "Resize":
                node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
    return found


def _content(path: Path) -> bytes:
    try:
        return contents(path)
    except (OSError, ValueError) as error:
        raise InvalidInput("The ONNX file cannot be read.", where=str(path), why=str(error), hint="Give the path of a file.") from error


def _parsed(model: onnx.ModelProto, content: bytes, path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise UnsupportedModel("The file is no ONNX model.", where=str(path), why=str(error), hint="It may be truncated.") from error
    return model
