"""The page of errors explains every kind of error and every message that a user can cause, and quotes what the code says."""

import ast
import re
from collections.abc import Iterator

from tests.documents import ROOT
from tests.pages import SOURCES, TREES, rows, spans, text


def families() -> set[str]:
    """Names of all subclasses of SparsecError."""
    bases = {c.name: {getattr(b, "id", "") for b in c.bases} for t in TREES for c in ast.walk(t) if isinstance(c, ast.ClassDef)}
    found = {"SparsecError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def test_every_kind_of_error_is_explained() -> None:
    assert {"InvalidInput", "BenchError", "InvalidArgument"} < families()
    for name in families():
        assert re.search(rf"^##+ {name}$|`{name}`, a subclass", text("errors"), re.MULTILINE) or name == "SparsecError", name


def messages() -> Iterator[str]:
    """All texts of the code."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        yield from texts(node)


def texts(node: ast.AST) -> Iterator[str]:
    """The text of a literal, with … for what varies."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_quoted_messages_are_those_of_the_code() -> None:
    known = "\n".join(messages())
    wrong = [message for message in quoted() if not pattern(message).search(known)]
    assert not wrong


def quoted() -> list[str]:
    """The messages and reasons that the page has rows for."""
    return [span for row in rows(text("errors")) for span in spans(row[0])]


def pattern(message: str) -> re.Pattern[str]:
    """Finds a line of the code's texts that has these parts in this order; what varies may be anything."""
    return re.compile("[^\n]*?".join(map(re.escape, message.split("…"))))


#: Mistakes of ours, and files of operators of ours, whose callers have checked their arguments.
INTERNAL = {"PassRefused", "VerificationError"}
CALLED_BY_US = {"compiler/ir/ops.py", "compiler/tokens/ops.py", "compiler/tokens/pruning_ops.py"}


def raised() -> Iterator[str]:
    """What the errors that a user can cause say first, where the code says it in one place and it is more than a name and a number."""
    kinds = families() - INTERNAL
    for path, tree in zip(SOURCES, TREES, strict=True):
        if path.relative_to(ROOT).as_posix() in CALLED_BY_US:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
                yield from (said for said in texts(node.args[0]) if len(re.findall(r"[A-Za-z]+", said)) > 1)


def test_every_error_that_a_user_can_cause_has_a_row() -> None:
    patterns = [pattern(message) for message in quoted()]
    found = list(raised())
    assert len(found) > 180
    missing = sorted({said for said in found if not any(each.search(said) for each in patterns)})
    assert not missing, missing
