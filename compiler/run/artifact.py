"""A compiled network as a directory that runs without torch and without TVM.

name.sparsec/
  manifest.json             format, versions, the machine it needs, inputs, outputs, tables, explanation, digests
  kernels-<digest>.so       kernel library, of C functions; a process never mistakes it for another one loaded from the same place
  weights.safetensors       packed weights, record and group tables
  program.bin               the tables once more, for C (see ``sparsec.run.flat_program``)
  sparsec.[hc], *.h         load and run the directory from C; example.c does so

For several processors: see ``sparsec.run.variants``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from sparsec.errors import ArtifactError
from sparsec.run.explanation import Explanation
from sparsec.run.files import open_to_others
from sparsec.run.flat_program import flat_program, flat_variants
from sparsec.run.loaded_artifact import LoadedModel, check_structure
from sparsec.run.manifest import AGAIN, FORMAT, digest, verified, write_manifest
from sparsec.run.processor import LINUX_NAMES
from sparsec.run.program import Program, check_tables
from sparsec.run.replacing import replacing
from sparsec.run.runtime import Runner
from sparsec.run.variants import VARIANTS, best_of, variant_here
from sparsec.settings import default_threads

WEIGHTS = "weights.safetensors"
FLAT = "program.bin"
C_FILES = ("sparsec.h", "sparsec.c", "processor.h", "sha256.h", "example.c")


@dataclass(frozen=True)
class Variant:
    """A program for one processor. ``machine`` has "arch", "features" and "mcpu" (LLVM names), which a lone variant may leave out."""

    program: Program
    library: Path
    explanation: Explanation | None
    machine: Mapping[str, Any]


def save(
    path: Path | str,
    program: Program,
    library: Path,
    explanation: Explanation | None,
    signature: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Path:
    """``save_variants`` of one."""
    return save_variants(path, [Variant(program, library, explanation, machine)], signature)


def save_variants(path: Path | str, variants: Sequence[Variant], signature: Mapping[str, Any]) -> Path:
    """Write an artifact; one already at ``path`` is replaced when the new one is complete, and untouched if that fails.

    ``variants``: one for each processor, the best first. ``signature["output"]`` is the structure of the result: "leaf", None,
    {"list": [...]}, {"tuple": [...]} or {"dict": {...}}, nested, with one leaf per output of each program.

    Raises:
        ArtifactError: the place is taken by something else or cannot be written, tables or signature do not fit, or a program is for
            another executor than that of loaders.
    """
    for variant in variants:
        _check(variant.program, signature)
    target = Path(path).absolute()
    with replacing(target) as folder:
        if len(variants) == 1:
            _write(folder, variants[0], signature, _copied(folder))
        else:
            _write_list(folder, {str(variant.machine["mcpu"]): variant for variant in variants}, signature)
    return target


def _check(program: Program, signature: Mapping[str, Any]) -> None:
    if program.executor != Runner.executor:
        why, hint = f"Loaders are executors {Runner.executor!r}.", "Compile the model with target='native' (--target native)."
        raise ArtifactError(f"A program for the executor {program.executor!r} cannot be saved.", why=why, hint=hint)
    check_tables(program)
    check_structure(signature["output"], program)


def _write(folder: Path, variant: Variant, signature: Mapping[str, Any], beside: Sequence[Path] = ()) -> str:
    """The artifact of one processor, ``beside`` in its list of files; the digest of its manifest."""
    program, machine = variant.program, variant.machine
    kernels = folder / _library_name(digest(variant.library.read_bytes()))
    shutil.copyfile(variant.library, kernels)
    save_file(program.arrays(), folder / WEIGHTS)
    open_to_others(folder / WEIGHTS)
    write_flat(folder, program, kernels.name, machine)
    manifest = {
        "machine": {"arch": machine["arch"], "cpu": machine.get("mcpu", ""), "features": sorted(machine["features"])},
        "library": kernels.name,
        "program": program.described(),
        "signature": {"output": signature["output"]},
        "explanation": (variant.explanation or Explanation()).described(),
    }
    return _write_manifest(folder, manifest, [kernels, folder / WEIGHTS, folder / FLAT, *beside])


def _write_list(folder: Path, variants: Mapping[str, Variant], signature: Mapping[str, Any]) -> None:
    """An artifact in a folder for each variant, and beside them what they share and where they are."""
    rows = []
    for name, variant in variants.items():
        (folder / name).mkdir()
        rows.append({"folder": name, "digest": _write(folder / name, variant, signature)})
    (folder / FLAT).write_bytes(flat_variants({name: (folder / name / FLAT).read_bytes() for name in variants}))
    _write_manifest(folder, {VARIANTS: rows}, [folder / FLAT, *_copied(folder)])


def _write_manifest(folder: Path, manifest: Mapping[str, Any], files: Sequence[Path]) -> str:
    listed = {file.name: digest(file.read_bytes()) for file in files}
    return write_manifest(folder, {"format": FORMAT, "sparsec": _own_version(), **manifest, "files": listed})


def _copied(folder: Path) -> list[Path]:
    """The files for C, which need nothing of the model, copied there."""
    return [Path(shutil.copyfile(Path(__file__).parent / "c" / name, folder / name)) for name in C_FILES]


def write_flat(folder: Path, program: Program, library: str, machine: Mapping[str, Any]) -> None:
    """program.bin, of what lies in the folder otherwise."""
    files = {name: (folder / name).read_bytes() for name in (library, WEIGHTS)}
    flags = [LINUX_NAMES.get(name, name) for name in sorted(machine["features"])]
    (folder / FLAT).write_bytes(flat_program(program, files, _weights_offset(files[WEIGHTS]), [machine["arch"], *flags]))


def _weights_offset(content: bytes) -> int:
    """First byte of the weights in a safetensors file: eight bytes with the header's length, the header, the tensors."""
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])["weights"]["data_offsets"][0])


def load(path: Path | str, threads: int | None = None) -> LoadedModel:
    """Load an artifact; of one for several processors, the first variant that this one can run. Imports neither torch nor TVM.

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
    place, manifest = variant_here(folder)
    try:
        names = [str(name) for name in manifest["files"]]
        read = {name: verified(place, name, manifest["files"][name]) for name in names}
        library = str(manifest["library"])
        if library not in read:
            raise ArtifactError("The artifact's list of files is incomplete.", where=str(place), hint=AGAIN)
        if library != _library_name(str(manifest["files"][library])):
            raise ArtifactError("The artifact names another file as its kernel library.", where=library, hint=AGAIN)
        program = Program.restored(manifest["program"], load_tensors(read[WEIGHTS]))
        check_structure(manifest["signature"]["output"], program)
        explanation = Explanation.restored(manifest["explanation"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, SafetensorError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ArtifactError("The artifact is malformed.", where=str(place), why=why, hint=AGAIN) from error
    most = 1 if program.has_strips and program.thread_slots is None else program.thread_slots
    if threads is None:
        threads = min(default_threads(), most or default_threads())
    if threads > 1 and program.has_strips and program.thread_slots is None:
        why = "It does not say how many threads its buffers have room for."
        raise ArtifactError(f"The artifact cannot run on {threads} threads.", where=str(place), why=why, hint="Load it with threads=1.")
    runner = Runner(program, place / library, threads)
    return LoadedModel(runner, manifest["signature"]["output"], explanation, (load, (str(folder), threads)))


def read_explanation(path: Path | str) -> Explanation:
    """What the artifact at ``path`` says of its layers, on any machine. ArtifactError as for ``load``.

    Of an artifact for several processors: what it says of the variant that runs here, of the first where none does.
    """
    _, manifest = best_of(Path(path))
    try:
        return Explanation.restored(manifest["explanation"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError("The artifact's explanation is malformed.", where=str(path), why=str(error), hint=AGAIN) from error


def _library_name(digest: str) -> str:
    """A name that no other library has: a process takes one that it has loaded for the next of the same name."""
    return f"kernels-{digest[:16]}.so"


def _own_version() -> str:
    try:
        return version("sparsec")
    except PackageNotFoundError:
        return "unknown"
