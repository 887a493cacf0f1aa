"""Files of arrays: what numpy wrote is read, everything else is an error of ours."""

from pathlib import Path

import numpy as np
import pytest

from sparsec.doors.npy import read_arrays, write_arrays
from sparsec.errors import InvalidInput


def test_one_array_and_several(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.ones(1))
    assert list(read_arrays(tmp_path / "one.npy")) == [0, 1, 2]
    found = read_arrays(tmp_path / "two.npz")
    assert isinstance(found, dict) and {name: x.tolist() for name, x in found.items()} == {"a": [0, 0], "b": [1]}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O',\n"])
def test_what_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_arrays(path)
    assert str(path) in str(caught.value) and "allow_pickle" not in str(caught.value)


def test_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInput, match=r"no \.npy or \.npz file of numbers"):
        read_arrays(tmp_path / "x.npy")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"No such file"):
        read_arrays(tmp_path / "none.npy")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_arrays(tmp_path / "one.npy", {"a": np.arange(3)})
    write_arrays(tmp_path / "two.npz", {"a": np.zeros(2), "b": np.ones(1)})
    assert list(read_arrays(tmp_path / "one.npy")) == [0, 1, 2]
    assert list(read_arrays(tmp_path / "two.npz")) == ["a", "b"]
    with pytest.raises(InvalidInput, match=r"2 results(.|\n)*two\.npz"):
        write_arrays(tmp_path / "two.npy", {"a": np.zeros(2), "b": np.ones(1)})


@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none" / name, tmp_path / "file" / name):
        with pytest.raises(InvalidInput, match=r"cannot be written(.|\n)*(No such file|Not a directory)(.|\n)*next") as caught:
            write_arrays(place, {"a": np.zeros(2)})
        assert str(place) in str(caught.value)
