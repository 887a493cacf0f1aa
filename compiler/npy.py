"""Files that numpy wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsec.errors import InvalidInput


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or those of a .npz file by name. InvalidInput for anything else; pickled objects are never read."""
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # Of damaged files numpy raises what its parsers do.
        # It takes what is no file of its own for pickled objects, and advises to allow them.
        why = "It is no .npy or .npz file of numbers." if "pickle" in str(error) else str(error)
        raise InvalidInput("The data cannot be read.", where=str(path), why=why, hint="Write .npy or .npz with numpy.") from error


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    found = read_arrays(path)
    if isinstance(found, dict):
        raise InvalidInput("An input file holds several arrays.", where=str(path), hint="Give one .npy file per input.")
    return found
