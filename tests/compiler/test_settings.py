"""Options of a compilation: the same number of threads at every door where nobody says how many, and clear errors."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import sparsec
from sparsec.errors import InvalidInput
from sparsec.report.doctor import examine
from sparsec.run.artifact import load, save
from sparsec.settings import Options, Settings, default_threads
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, strips

SAID = "import sys; from sparsec.settings import default_threads; assert 'torch' not in sys.modules; print(default_threads())"


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("3,2", 3), ("", None), ("0", None), ("many", None), (None, None)])
def test_without_torch_the_environment_says_or_the_cores(variable: str | None, threads: int | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if variable is None else {"OMP_NUM_THREADS": variable}
    done = subprocess.run([sys.executable, "-c", SAID], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (threads or len(os.sched_getaffinity(0)))


def test_where_torch_is_loaded_it_says(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        folder = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
        assert default_threads() == Settings().thread_count == load(folder).threads == 2
        assert any("programs run on 2 unless told otherwise" in check.detail for check in examine(Settings(cache_dir=tmp_path)))
        assert load(folder, threads=1).threads == Settings(threads=1).thread_count == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (None, 1), (2, 2)])
def test_an_artifact_takes_no_more_by_itself_than_it_has_room_for(tmp_path: Path, slots: int | None, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        folder = save(tmp_path / "net.sparsec", strips(slots=slots), library(), None, {"output": "leaf"}, ANY_MACHINE)
        assert load(folder).threads == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(tmp_path: Path, threads: int) -> None:
    folder = save(tmp_path / "net.sparsec", dataclasses.replace(chain()), library(), None, {"output": "leaf"}, ANY_MACHINE)
    for call in (lambda: load(folder, threads=threads), lambda: Settings(threads=threads)):
        with pytest.raises(InvalidInput):
            call()


def test_unknown_options_are_named_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"'tuen'.*\n.*'tune'"):
        Settings.from_options({"tuen": "off"})


def test_the_typed_options_are_the_fields_of_settings() -> None:
    """Paths may be texts, which a Settings turns into paths."""
    options, held = get_type_hints(Options), get_type_hints(Settings)
    assert Options.__optional_keys__ == options.keys() == {entry.name for entry in dataclasses.fields(Settings)}
    assert options == {name: kind | str if name.endswith("_dir") else kind for name, kind in held.items()}
    assert Settings(cache_dir="there").cache_dir == Path("there")


def test_compile_takes_the_typed_options() -> None:
    assert sparsec.compile.__annotations__["options"] == "Unpack[Options]"
    documented = sparsec.compile.__doc__ or ""
    assert all(heading in documented for heading in ("Args:", "Returns:", "Raises:"))
