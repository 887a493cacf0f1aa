"""Files that numpy wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsec.errors import InvalidInput, unwritten


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or those of a .npz file by name. InvalidInput for anything else; pickled objects are never read."""
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # Of damaged files numpy raises what its parsers do.
        # It takes what is no file of its own for pickled objects, and advises to allow them.
        why = "It is no .npy or .npz file of numbers." if "pickle" in str(error) else str(error)
        raise InvalidInput("The data cannot be read.", where=str(path), why=why, hint="Write .npy or .npz with numpy.") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one array as .npy, or any number by name as .npz. InvalidInput where the file cannot be written or does not hold so many."""
    if path.suffix != ".npz" and len(arrays) != 1:
        raise InvalidInput(f"The network has {len(arrays)} results, a .npy file holds one.", hint=f"Write -o {path.stem}.npz.")
    try:
        if path.suffix == ".npz":
            np.savez(path, **arrays)  # type: ignore[arg-type]
        else:
            np.save(path, next(iter(arrays.values())))
    except OSError as error:
        raise InvalidInput("The results cannot be written.", where=str(path), **unwritten(error)) from error


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    found = read_arrays(path)
    if isinstance(found, dict):
        raise InvalidInput("An input file holds several arrays.", where=str(path), hint="Give one .npy file per input.")
    return found
