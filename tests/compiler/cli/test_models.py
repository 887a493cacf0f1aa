"""What the command line names: factories and files, with the shapes of their inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsec.doors.factories import make_model
from tests.compiler.cli.shop import Compiled, Invoke, Two, save_program


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("input2=3,4", "input1=3,8"), [(3, 8), (3, 4)]),
        (("3,8", "input2=3,4"), [(3, 8), (3, 4)]),
        (("3x8", "3x4"), [(3, 8), (3, 4)]),
    ],
)
def test_shapes_of_inputs(invoke: Invoke, calls: list[Compiled], arguments: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
    options = [part for shape in arguments for part in ("--input", shape)]
    assert invoke("explain", "shop_of_models:bare", *options).exit_code == 0
    assert [tuple(x.shape) for x in calls[0].inputs] == shapes


@pytest.mark.parametrize("command", ["compile", "explain", "tune"])
def test_programs_are_compiled_from_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path, command: str) -> None:
    save_program(tmp_path / "two.pt2")
    output = ("-o", "out.sparsec") if command == "compile" else ()
    done = invoke(command, "two.pt2", *output)
    assert done.exit_code == 0, done.output
    assert isinstance(calls[0].model, torch.export.ExportedProgram)
    assert [tuple(x.shape) for x in calls[0].inputs] == [(3, 8), (3, 4)]


@pytest.mark.parametrize("shapes", [("right=5,4", "left=5,8"), ("5,8", "right=5x4")])
def test_shapes_of_inputs_of_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path, shapes: tuple[str, ...]) -> None:
    save_program(tmp_path / "two.pt2")
    options = [part for shape in shapes for part in ("--input", shape)]
    assert invoke("explain", "two.pt2", *options).exit_code == 0
    assert [tuple(x.shape) for x in calls[0].inputs] == [(5, 8), (5, 4)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(("middle=1,8",), "no input named middle"), (("1,8", "1,4", "1,4"), "has 2 inputs"), (("left=a",), "not a shape")],
)
def test_shapes_that_no_input_of_a_file_has(
    invoke: Invoke, calls: list[Compiled], tmp_path: Path, shapes: tuple[str, ...], message: str
) -> None:
    save_program(tmp_path / "two.pt2")
    done = invoke("explain", "two.pt2", *(part for shape in shapes for part in ("--input", shape)))
    assert done.exit_code == 2
    assert message in done.stderr
    assert not calls


def test_onnx_models_are_compiled_from_files(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    torch.onnx.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)), tmp_path / "two.onnx", dynamo=True, verbose=False)
    assert invoke("explain", "two.onnx").exit_code == 0
    assert (str(calls[0].model), calls[0].inputs) == ("two.onnx", None)
    assert invoke("explain", "two.onnx", "--input", "right=3,4").exit_code == 0
    assert {name: tuple(x.shape) for name, x in calls[1].inputs.items()} == {"left": (3, 8), "right": (3, 4)}


def test_a_file_is_a_factory_for_benchmarks(tmp_path: Path) -> None:
    from sparsec.bench.program import load_program
    from sparsec.doors.file_factories import name_of

    path = save_program(tmp_path / "two.pt2")
    for batch in (1, 5):
        program = load_program(name_of(path, batch), batch, tmp_path, 1, "off")
        with torch.no_grad():
            expected = Two().eval()(*program.inputs).numpy()
        np.testing.assert_allclose(program.expected[0], expected, rtol=1e-6, atol=1e-6)
        assert [tuple(x.shape) for x in program.inputs] == [(batch, 8), (batch, 4)]


def test_a_file_with_another_batch_is_no_factory(invoke: Invoke, tmp_path: Path) -> None:
    program = torch.export.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)))
    torch.export.save(program, tmp_path / "fixed.pt2")
    done = invoke("bench", "fixed.pt2", "--batch", "2")
    assert done.exit_code == 2
    assert "[3, 8]" in done.stderr or "(3, 8)" in done.stderr


@pytest.mark.parametrize("name", ["alone", "listed", "in_lists", "named", "mixed", "arrays"])
def test_factories_return_what_people_return(invoke: Invoke, name: str) -> None:
    model, args, kwargs = make_model(f"shop_of_models:{name}")
    assert model(*map(torch.as_tensor, args), **kwargs).shape == (2, 24)


@pytest.mark.parametrize("name", ["of_a_number", "of_nothing", "of_three"])
def test_what_is_no_input_is_said(invoke: Invoke, name: str) -> None:
    done = invoke("compile", f"shop_of_models:{name}", "-o", "y")
    assert done.exit_code == 2
    assert "Return (model" in done.stderr and "Traceback" not in done.output


def test_models_of_named_inputs_are_compiled_and_timed(invoke: Invoke, calls: list[Compiled], tmp_path: Path) -> None:
    from sparsec.bench.program import load_program

    assert invoke("explain", "shop_of_models:named").exit_code == 0
    assert calls[0].inputs == () and {*calls[0].kwargs} == {"right", "left"}
    program = load_program("shop_of_models:named", 3, tmp_path, 1, "off")
    assert [tuple(x.shape) for x in program.inputs] == [(3, 24), (3, 24)]
    np.testing.assert_allclose(program.model(*program.inputs).detach(), program.expected[0], rtol=1e-6)
