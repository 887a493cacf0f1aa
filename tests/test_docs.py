"""The documentation: every block of its pages runs, and the site builds without a warning and shows nothing from elsewhere."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tests.autotune import boards
from tests.backends.arm import emulated
from tests.documents import DOCS, NOT_RUN, ROOT, RUN, SHOWN, blocks, run_page

PAGES = sorted(DOCS.glob("*.md"))
#: What a page's commands need beside this environment; the board that they speak of is a folder.
NEEDS = {"board": (emulated.needed, emulated.python_needed, boards.needs_arm)}
#: Pages that compile nothing.
QUICK = ("api", "errors", "glossary", "security")
#: What the site is made of besides docs/: its configuration, a text that it includes, and the source of the reference.
SITE = ("mkdocs.yml", "Makefile", "SECURITY.md", "compiler", "passes", "backends", "autotune", "models")


@pytest.fixture
def pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Path) -> Iterator[Path]:
    """An empty folder to work in, with a cache of kernels that pages share; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(kernels))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    torch._dynamo.reset()
    yield tmp_path
    for started in tmp_path.rglob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), signal.SIGTERM)
    torch._dynamo.reset()
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[*NEEDS.get(p.stem, ()), *[pytest.mark.slow] * (p.stem not in QUICK)]) for p in PAGES]
)
def test_the_blocks_of_a_page_run(page: Path, pasted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem == "board":
        monkeypatch.setenv("PATH", f"{ROOT / 'tests/backends/arm/board'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("BOARD", str(pasted / "board"))
        (pasted / "board").mkdir()
    python = [block.text for block in blocks(page, "python") if not (block.title or block.reason)]
    assert not python or "assert " in "".join(python), "a page whose code asserts nothing shows nothing"
    run_page(page, pasted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert sum("```" in line for line in lines) == 2 * len(blocks(page)), "an indented fence, or one of another form"
    assert {block.language for block in blocks(page)} <= {*RUN, *SHOWN}
    assert sum(line.startswith(NOT_RUN) for line in lines) == sum(len(block.reason) > 20 for block in blocks(page))
    assert all(block.title for block in blocks(page, "c"))


WRONG = {
    "assertion": "```python\nassert 1 == 2\n```\n",
    "name of another page": "```python\nprint(x)\n```\n",
    "exit code": "```sh\nsparsec explain nothing.sparsec\n```\n",
    "no exit code": "```sh\nsparsec --version # exits with 1\n```\n",
    "program": "```sh\nls nothing\n```\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_a_page_gets_wrong_is_found(text: str, pasted: Path) -> None:
    page = pasted / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, NameError)) as found:
        run_page(page, pasted)
    if "python" in text:
        assert (found.traceback[-1].path, found.traceback[-1].lineno) == (page, 1)
    page.write_text(f"{NOT_RUN} it is wrong, and meant to be.\n\n{text}")
    run_page(page, pasted)


SHARED = """
```python
x = 2
```
```python title="theirs.py"
y = 3
```
```python
from theirs import y

open("sum", "w").write(str(x + y))
```
"""


def test_blocks_share_a_namespace_and_import_the_files_before_them(pasted: Path) -> None:
    (pasted / "page.md").write_text(SHARED)
    run_page(pasted / "page.md", pasted)
    assert (pasted / "sum").read_text() == "5"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the site is made of, its pages as copies."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra docs is not installed: pip install '.[docs]'")
    for name in SITE:
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(DOCS, tmp_path / "docs")
    return tmp_path


def built(source: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, with this environment."""
    command = ["make", "-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}", "docs"]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=280, check=False)


class References(HTMLParser):
    """What a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and value]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(source: Path) -> None:
    done = built(source)
    assert done.returncode == 0, done.stdout + done.stderr
    site = source / "build" / "docs"
    assert {path.stem for path in site.glob("*.html")} == {page.stem for page in PAGES} | {"404"}
    for path in site.rglob("*.html"):
        loaded = References(path.read_text()).found
        assert loaded and not [each for each in loaded if re.match(r"(https?:)?//", each)], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text()), path.name
    reference = (site / "api.html").read_text()
    assert all(f'id="sparsec.{name}"' in reference for name in ("compile", "LoadedModel.__call__", "errors.TuningError"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "said"), [("[x](nonesuch.md) [x](options.md#nonesuch)", "2 warnings"), ("::: sparsec.nonesuch", "sparsec.nonesuch")]
)
def test_a_page_that_refers_to_nothing_fails_the_build(source: Path, lines: str, said: str) -> None:
    with (source / "docs" / "glossary.md").open("a") as page:
        page.write(f"\n{lines}\n")
    done = built(source)
    assert done.returncode != 0 and said in done.stdout + done.stderr
