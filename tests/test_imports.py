"""Imports point down only: front, doors, report → autotune → backends → lower, ir, facts, tokens ← passes; tools and run are below all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"compiler": "sparsec", "passes": "sparsec.passes", "backends": "sparsec.backends", "autotune": "sparsec.autotune"}
# Rooms of `compiler/`; what lies at its top is the front, but for what all may import.
ROOMS = {"run", "tools", "ir", "facts", "lower", "tokens", "doors", "report", "bench", "cli"}
FOR_ALL = {"errors", "settings"}
CORE = {"ir", "facts", "lower", "tokens"}
BELOW = {
    "run": {"run"},
    "tools": {"run", "tools"},
    **{room: {"run", "tools", *CORE} for room in CORE},
    "passes": {"run", "tools", *CORE, "passes"},
    "backends": {"run", "tools", *CORE, "backends"},
    "autotune": {"run", "tools", *CORE, "backends", "autotune"},
    "doors": {"run", "tools", *CORE, "doors"},
    **{room: {*ROOMS, "passes", "backends", "autotune", "front"} for room in ("front", "report", "bench", "cli")},
}
# The door of torch.compile compiles at the first call; settings read what `token_pruning` means.
ALSO = {"sparsec.doors.torch_compile.backend": {"front", "backends"}, "sparsec.settings": {"tokens"}}
WITHOUT_TORCH = ["sparsec", "sparsec.cli", "sparsec.errors", "sparsec.settings", "sparsec.run"]


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__"]
            found[".".join([package, *parts])] = path
    return found


MODULES = modules()


def layer(module: str) -> str:
    room = module.split(".")[1] if "." in module else "front"
    return "all" if room in FOR_ALL else room if room in BELOW else "front"


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from executed(child)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in MODULES else str(node.module) for name in full}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    mine = layer(module)
    for name in imported(MODULES[module]):
        top = name.split(".")[0]
        if top == "sparsec" and name != "sparsec":
            assert layer(name) in {"all", *BELOW.get(mine, ()), *ALSO.get(module, ())}, f"{module} ({mine}) imports {name} ({layer(name)})"
        if top == "tvm":
            assert mine in ("backends", "autotune"), f"{module} imports {name}"
        if top in ("onnx", "onnxscript", "onnxruntime", "openvino"):
            assert module.startswith(("sparsec.doors.from_onnx.", "sparsec.bench.")), f"{module} imports {name}"


def test_nothing_outside_backends_names_a_target() -> None:
    """The one exception is text for people: options and their documentation."""
    rooms = [path.name for path in (ROOT / "backends").iterdir() if (path / "__init__.py").is_file()]
    for module, path in MODULES.items():
        if layer(module) != "backends":
            found = {n for n in imported(path) if n.startswith(tuple(f"sparsec.backends.{room}" for room in rooms))}
            assert not found, f"{module} imports {found}"


# What machines of one kind share.
SHARED = {"arm": {"arm", "cpu"}, "x86": {"x86", "cpu"}}


def test_backends_do_not_import_each_other() -> None:
    for module, path in MODULES.items():
        parts = module.split(".")
        if parts[1:2] == ["backends"] and len(parts) > 3:
            others = {n for n in imported(path) if n.startswith("sparsec.backends.") and (ROOT / "backends" / n.split(".")[2]).is_dir()}
            assert {n.split(".")[2] for n in others} <= SHARED.get(parts[2], {parts[2]}), module


@pytest.mark.parametrize("module", [name for name in MODULES if name in WITHOUT_TORCH or name.startswith("sparsec.run.")])
def test_what_runs_an_artifact_needs_neither_torch_nor_tvm(module: str) -> None:
    program = f"import sys; sys.modules.update(torch=None, tvm=None); import {module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tvm_waits_for_the_first_kernel_that_is_made() -> None:
    """A library from the cache needs none of it."""
    program = "import sys, sparsec.driver; from sparsec.backends import backend_for; backend_for('x86'); assert 'tvm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
