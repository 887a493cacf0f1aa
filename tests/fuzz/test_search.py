"""The search itself, a slice of it with a fresh seed, and the cases it has found before."""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fuzz import child, prelude
from tests.fuzz.case import Case, Picks, Step, replace
from tests.fuzz.child import Outcome
from tests.fuzz.emit import Emitter, Idiom
from tests.fuzz.findings import idioms_of
from tests.fuzz.generate import draw_case
from tests.fuzz.idioms import ALL, IDIOMS
from tests.fuzz.inputs import SETS
from tests.fuzz.script import module_lines, script
from tests.fuzz.search import Search
from tests.fuzz.shrink import shrink

ROOT = Path(__file__).parents[2]
CASES = sorted(Path(__file__).with_name("cases").glob("*.py"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_was_found_stays_mended(strict, without_inductor, path):
    outcome = child.outcome_of(lambda: exec(compile(path.read_text(), path.name, "exec"), dict(vars(prelude))))
    assert outcome.kind == "ok", outcome


class Steep(torch.nn.Module):
    """Two normalisations of two features: what rounding changes in the first layer is multiplied by thousands."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.steep = torch.nn.Linear(8, 2), torch.nn.LayerNorm(2, eps=1e-9, elementwise_affine=False)

    def forward(self, x):
        return self.steep(1e-3 * self.linear(x)) if self.training else self.linear(x)


@pytest.mark.parametrize(("steep", "error", "passes"), [(False, 1e-3, False), (False, 1e-5, True), (True, 2e-4, True), (True, 0.3, False)])
def test_what_rounding_explains_is_no_failure(steep, error, passes):
    model = Steep().train(steep)

    def inputs(number=0, dtype=torch.float32):
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
        w = (model.linear.weight[0] - model.linear.weight[1]).detach().to(dtype)
        b = (model.linear.bias[0] - model.linear.bias[1]).detach().to(dtype)
        return (x - ((x @ w + b) / w.square().sum())[:, None] * w * (1 - 1e-3),)

    with contextlib.nullcontext() if passes else pytest.raises(prelude.Wrong):
        prelude.check(lambda x: model(x) * (1 + error), model, inputs)


@pytest.mark.slow
def test_two_minutes_of_the_search_find_nothing():
    seed = os.environ.get("SPARSEC_FUZZ_SEED") or str(random.SystemRandom().randrange(100_000))
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "2", "--seed", seed, "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"SPARSEC_FUZZ_SEED={seed} shows it again:\n{done.stdout}\n{done.stderr}"


def appears(idiom: Idiom, kinds: tuple[str, ...]) -> bool:
    """Whether the idiom fits some of the values that inputs of these kinds and two steps on them give."""
    emitter = Emitter(Case(0, "object", kinds, ((2, 4, 4, 4, 8),), writes=True))
    refs = [(-1 - i, 0) for i in range(len(kinds))]
    for number, first in enumerate(("embedding", "scalar", "pool to a pixel", "pool of tokens", "flatten")):
        emitter.step(Step(number, first, (refs[0],)), IDIOMS[first], Picks())
        refs.append((number, 0))
    tries = ((x, y) for x in refs for y in refs)
    return any(emitter.step(Step(9, idiom.name, pair[: idiom.operands]), idiom, Picks()) for pair in tries)


@pytest.mark.parametrize("idiom", ALL, ids=lambda idiom: idiom.name)
def test_every_idiom_fits_something(idiom):
    assert any(appears(idiom, kinds) for kinds in SETS)


@pytest.mark.parametrize("seed", range(6))
def test_a_case_is_data_and_every_part_of_it_a_program(seed):
    case = draw_case(seed)
    assert Case.from_json(case.to_json()) == case
    assert draw_case(seed) == case
    compile(script(case), "script", "exec")
    for gone in range(len(case.steps)):
        part = replace(case, steps=tuple(replace(s, idiom="") if i == gone else s for i, s in enumerate(case.steps)))
        compile("\n".join(module_lines(part)), "script", "exec")


def test_the_smallest_case_has_only_what_fails():
    case = next(c for c in map(draw_case, range(1000)) if {"sum", "activation"} <= idioms_of(c) and len(c.steps) > 4)
    smallest = shrink(case, lambda c: {"sum", "activation"} <= idioms_of(c))
    assert idioms_of(smallest) == {"sum", "activation"}
    assert len(smallest.actions) == 1
    assert smallest.zeros == "none"


class Judged(Search):
    """Sums go wrong; torch alone fails in the way that is given, for cases with an activation too and for those without."""

    alone = ("ok", "ok")

    def execute(self, case: Case, second: bool = False) -> Outcome:
        found = idioms_of(case)
        if second:
            return Outcome(self.alone["activation" not in found])
        return Outcome("wrong" if "sum" in found else "ok")


@pytest.mark.parametrize(
    ("alone", "found"),
    [
        (("ok", "ok"), {"sum"}),
        (("wrong", "wrong"), None),
        (("raised", "raised"), {"sum"}),
        (("ok", "wrong"), {"sum", "activation"}),
        (("raised", "wrong"), None),
    ],
)
def test_what_shrinks_to_a_fault_of_torch_is_told_from_ours(alone, found):
    case = next(c for c in map(draw_case, range(1000)) if {"sum", "activation"} <= idioms_of(c) and len(c.steps) > 4)
    search = Judged(0)
    search.alone = alone
    search._judge(case, search.execute(case))
    assert [idioms_of(failure.case) for failure in search.findings.failures] == ([] if found is None else [found])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("pass", "ok"),
        ("raise Wrong('result 0: relative error 1')", "wrong"),
        ("raise Skip('eager')", "skip"),
        ("raise sparsec.errors.UnsupportedModel('It is none.')", "refused"),
        ("raise sparsec.errors.VerificationError('Broken.')", "raised"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("import time; time.sleep(60)", "hang"),
        ("import logging; logging.getLogger('sparsec').warning('Compiled dense after an internal error')", "dense"),
    ],
)
def test_a_child_says_how_a_script_ended(text, kind):
    assert child.run(text, limit=3).kind == kind


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (lambda x: (x * 2, x + 1), None),
        (lambda x: (x * 2 * (1 + 1e-3), x + 1), "relative error"),
        (lambda x: [x * 2, x + 1], "TreeSpec"),
        (lambda x: (x * 2, (x + 1).double()), "float64"),
        (lambda x: (x.mul_(2), x / 2 + 1), "after the call, input"),
    ],
)
def test_the_comparison_sees(found, wrong):
    import torch

    def inputs(number=0, dtype=torch.float32):
        return (torch.arange(1.0, 5.0).to(dtype),)

    class Model(torch.nn.Module):
        def forward(self, x):
            return x * 2, x + 1

    if wrong is None:
        prelude.check(found, Model(), inputs)
    else:
        with pytest.raises(prelude.Wrong, match=wrong):
            prelude.check(found, Model(), inputs)


def test_the_comparison_sees_results_that_share_no_memory():
    import torch

    def inputs(number=0, dtype=torch.float32):
        return (torch.ones(2, 3, dtype=dtype),)

    class Model(torch.nn.Module):
        def forward(self, x):
            y = x * 2
            return y, y.flatten()

    prelude.check(lambda x: Model()(x), Model(), inputs)
    with pytest.raises(prelude.Wrong, match="after a write to result 0"):
        prelude.check(lambda x: (x * 2, (x * 2).flatten()), Model(), inputs)
