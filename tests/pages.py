"""Pages of docs/ as text, sections and tables, and the source that they are compared with."""

import ast
import re
from ast import literal_eval

from tests.documents import DOCS, ROOT

FOLDERS = ("compiler", "passes", "backends", "autotune", "models")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = [ast.parse(path.read_text()) for path in SOURCES]


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text()


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.index(" ")
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page}.md has no {heading!r}"
    return found[1]


def rows(markdown: str) -> list[list[str]]:
    """The cells of all tables but their headings."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    ruled = [i for i, line in enumerate(lines) if set(line) <= set("|- ")]
    kept = [line for i, line in enumerate(lines) if i not in ruled and i + 1 not in ruled]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in kept]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def values(cell: str) -> set[object]:
    """The values in code spans, as Python has them."""
    return {literal_eval(span) for span in spans(cell)}
