"""A compiled network as a directory that runs without torch and without TVM.

name.sparsec/
  manifest.json             format, versions, the machine it needs, inputs, outputs, tables, explanation, digests
  kernels-<digest>.so       kernel library, of C functions; a process never mistakes it for another one loaded from the same place
  weights.safetensors       packed weights, record and group tables
  program.bin               the tables once more, for C (see ``sparsec.run.flat_program``)
  sparsec.[hc], *.h         load and run the directory from C; example.c does so
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from sparsec.errors import ArtifactError, MachineError, unwritten
from sparsec.run.explanation import Explanation
from sparsec.run.files import contents, open_to_others
from sparsec.run.flat_program import flat_program
from sparsec.run.loaded_artifact import LoadedModel, check_structure
from sparsec.run.processor import LINUX_NAMES, lacking
from sparsec.run.program import Program, check_tables
from sparsec.run.runtime import Runner
from sparsec.settings import default_threads

FORMAT = 6
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FLAT = "program.bin"
_C_FILES = ("sparsec.h", "sparsec.c", "processor.h", "sha256.h", "example.c")
_AGAIN = "Save the model again, or copy the artifact again from where it was whole."


def save(
    path: Path | str,
    program: Program,
    library: Path,
    explanation: Explanation | None,
    signature: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Path:
    """Write an artifact; one already at ``path`` is replaced when the new one is complete, and untouched if that fails.

    ``signature["output"]`` is the structure of the result: "leaf", None, {"list": [...]}, {"tuple": [...]} or
    {"dict": {...}}, nested, with one leaf per output of the program. ``machine`` has "arch", "features" and maybe "mcpu" (LLVM names).

    Raises:
        ArtifactError: the place is taken by something else or cannot be written, tables or signature do not fit, or the program is for
            another executor than that of loaders.
    """
    target = Path(path).absolute()
    if program.executor != Runner.executor:
        why, hint = f"Loaders are executors {Runner.executor!r}.", "Compile the model with target='native' (--target native)."
        raise ArtifactError(f"A program for the executor {program.executor!r} cannot be saved.", why=why, hint=hint)
    check_tables(program)
    check_structure(signature["output"], program)
    _check_place(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        files = _write_files(partial, program, library)
        files.append(_write_flat(partial / FLAT, program, files[0], machine))
        manifest = {
            "format": FORMAT,
            "sparsec": _own_version(),
            "machine": {"arch": machine["arch"], "cpu": machine.get("mcpu", ""), "features": sorted(machine["features"])},
            "library": files[0].name,
            "program": program.described(),
            "signature": {"output": signature["output"]},
            "explanation": (explanation or Explanation()).described(),
            "files": {file.name: _digest(file.read_bytes()) for file in files},
        }
        (partial / MANIFEST).write_text(json.dumps({**manifest, "digest": _own_digest(manifest)}, indent=1))
        _swap(partial, target)
    except OSError as error:
        raise ArtifactError("The artifact cannot be written.", where=str(target), **unwritten(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_files(folder: Path, program: Program, library: Path) -> list[Path]:
    """Everything but the manifest and the flat program; the kernel library first."""
    kernels = folder / _library_name(_digest(library.read_bytes()))
    copies = {kernels: library} | {folder / name: Path(__file__).parent / "c" / name for name in _C_FILES}
    for copy, source in copies.items():
        shutil.copyfile(source, copy)
    save_file(program.arrays(), folder / WEIGHTS)
    open_to_others(folder / WEIGHTS)
    return [*copies, folder / WEIGHTS]


def _write_flat(path: Path, program: Program, kernels: Path, machine: Mapping[str, Any]) -> Path:
    files = {name: (path.parent / name).read_bytes() for name in (kernels.name, WEIGHTS)}
    flags = [LINUX_NAMES.get(name, name) for name in sorted(machine["features"])]
    path.write_bytes(flat_program(program, files, _weights_offset(files[WEIGHTS]), [machine["arch"], *flags]))
    return path


def _weights_offset(content: bytes) -> int:
    """First byte of the weights in a safetensors file: eight bytes with the header's length, the header, the tensors."""
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])["weights"]["data_offsets"][0])


def _check_place(target: Path) -> None:
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ArtifactError("This place holds something that is not an artifact.", where=str(target), hint="Choose another name.")


def _swap(partial: Path, target: Path) -> None:
    """Put ``partial`` in the place of ``target``; a failure puts the old one back."""
    old = partial.with_name(f"{partial.name}.old")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(path: Path | str, threads: int | None = None) -> LoadedModel:
    """Load an artifact. Imports neither torch nor TVM.

    Args:
        path: the directory that ``save`` or ``sparsec compile`` wrote.
        threads: of one call. None: torch's number if torch is loaded, else OMP_NUM_THREADS, else all cores; at most those that it was
            compiled for.

    Returns:
        The network, called with numpy arrays.

    Raises:
        ArtifactError: missing, incomplete, altered, of a format that this version does not read, or a program that would leave its memory.
        MachineError: compiled for another processor, or for another executor.
        InvalidInput: more threads than it was compiled for.
    """
    folder = Path(path).absolute()
    manifest = read_manifest(folder)
    _check_machine(manifest, folder)
    try:
        names = [str(name) for name in manifest["files"]]
        read = {name: _verified(folder, name, manifest["files"][name]) for name in names}
        library = str(manifest["library"])
        if library not in read:
            raise ArtifactError("The artifact's list of files is incomplete.", where=str(folder), hint=_AGAIN)
        if library != _library_name(str(manifest["files"][library])):
            raise ArtifactError("The artifact names another file as its kernel library.", where=library, hint=_AGAIN)
        program = Program.restored(manifest["program"], load_tensors(read[WEIGHTS]))
        check_structure(manifest["signature"]["output"], program)
        explanation = Explanation.restored(manifest["explanation"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, SafetensorError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ArtifactError("The artifact is malformed.", where=str(folder), why=why, hint=_AGAIN) from error
    most = 1 if program.has_strips and program.thread_slots is None else program.thread_slots
    if threads is None:
        threads = min(default_threads(), most or default_threads())
    if threads > 1 and program.has_strips and program.thread_slots is None:
        why = "It does not say how many threads its buffers have room for."
        raise ArtifactError(f"The artifact cannot run on {threads} threads.", where=str(folder), why=why, hint="Load it with threads=1.")
    runner = Runner(program, folder / library, threads)
    return LoadedModel(runner, manifest["signature"]["output"], explanation, (load, (str(folder), threads)))


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of the artifact at ``path``, of this format and unaltered; ArtifactError otherwise."""
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError("There is no artifact here.", where=str(folder), why="No such directory.", hint="`sparsec compile` makes one.")
    try:
        manifest = json.loads(contents(folder / MANIFEST))
        form, digest = manifest["format"], manifest.pop("digest", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError("The artifact has no readable manifest.", where=str(folder / MANIFEST), why=str(error), hint=_AGAIN) from error
    if form != FORMAT:
        hint = "Use the version of sparsec that wrote it, or compile the model again."
        raise ArtifactError(f"The artifact has format {form!r}, this version reads {FORMAT}.", where=str(folder), hint=hint)
    if digest != _own_digest(manifest):
        raise ArtifactError("The manifest has been altered.", where=str(folder / MANIFEST), why="Its digest differs.", hint=_AGAIN)
    return manifest


def read_explanation(path: Path | str) -> Explanation:
    """What the artifact at ``path`` says of its layers, on any machine. ArtifactError as for ``load``."""
    manifest = read_manifest(path)
    try:
        return Explanation.restored(manifest["explanation"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError("The artifact's explanation is malformed.", where=str(path), why=str(error), hint=_AGAIN) from error


def _verified(folder: Path, name: str, digest: Any) -> bytes:
    """What is in a file of the artifact, links out of it not followed."""
    file = folder / name
    if Path(name).name != name or (file.is_symlink() and Path(os.path.realpath(file)).parent != Path(os.path.realpath(folder))):
        raise ArtifactError("The artifact names a file outside its directory.", where=str(file), hint=_AGAIN)
    try:
        content = contents(file)
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ArtifactError(f"A file of the artifact {what}.", where=str(file), why=str(error), hint=_AGAIN) from error
    if _digest(content) != digest:
        raise ArtifactError("A file of the artifact is incomplete or altered.", where=str(file), why="Its digest differs.", hint=_AGAIN)
    return content


def _library_name(digest: str) -> str:
    """A name that no other library has: a process takes one that it has loaded for the next of the same name."""
    return f"kernels-{digest[:16]}.so"


def _check_machine(manifest: Mapping[str, Any], folder: Path) -> None:
    try:
        arch, features = str(manifest["machine"]["arch"]), [str(f) for f in manifest["machine"]["features"]]
    except (KeyError, TypeError) as error:
        raise ArtifactError("The artifact does not say which machine it needs.", where=str(folder), hint=_AGAIN) from error
    if why := lacking(arch, features):
        raise MachineError(
            "The artifact cannot run on this machine.", where=str(folder), why=why, hint="Compile the model for this machine."
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return _digest(json.dumps(manifest, sort_keys=True).encode())


def _own_version() -> str:
    try:
        return version("sparsec")
    except PackageNotFoundError:
        return "unknown"
