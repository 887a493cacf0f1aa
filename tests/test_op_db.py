"""PyTorch's operator database through both doors: equal to eager, or the same exception.

A run takes a shard of the operators: SPARSEC_OPDB_SHARD=i/n, or one drawn from a seed that is printed. ``make opdb`` runs all of them.
"""

import os
import random
import time

import pytest
import torch

from tests.opdb.outcomes import difference, outcome
from tests.opdb.reports import failures, table
from tests.opdb.runs import Plan, supervise
from tests.opdb.samples import strided, twins

SHARDS, SECONDS = 40, 60.0


def test_copies_share_memory_as_the_originals_do_and_keep_strides():
    base = torch.arange(12.0).view(3, 4)
    copy = twins([base, base.T[1:], base[:, 1].expand(2, 3)])
    copy[0].add_(1)
    for before, after in zip([base, base.T[1:], base[:, 1].expand(2, 3)], copy, strict=True):
        assert torch.equal(before + 1, after) and before.stride() == after.stride()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 1, 3), (0, 2)])
def test_strided_values_are_the_same_and_not_contiguous(shape):
    value = torch.randn(shape)
    assert torch.equal(strided(value), value)
    assert strided(value).is_contiguous() == (value.numel() == 0)


def test_differences_are_seen():
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    eager = outcome(lambda x: (x.view(16), x + 1), [x])
    assert not difference(outcome(lambda x: (x.flatten(), x + 1), [x]), eager)
    assert difference(outcome(lambda x: (x.view(16), x + 1.001), [x]), eager).startswith("wrong: [0][1]")
    assert difference(outcome(lambda x: (x.clone().view(16), x + 1), [x]), eager).startswith("memory: lost")
    assert difference(outcome(lambda x: (x.view(16), x.add_(1)), [x]), eager).startswith("wrong")
    assert difference(outcome(lambda x: [x.view(16), (x + 1).int()], [x]), eager).startswith("wrong: [0][1]")
    assert difference(outcome(lambda x: x @ y[:3], [x]), eager).startswith("raised: RuntimeError")
    assert difference(eager, outcome(lambda x: x @ y[:3], [x])).startswith("answered")


@pytest.mark.slow
def test_a_shard_of_the_operator_database(tmp_path, capsys):
    day = int(time.time() // 86400)
    chosen = os.environ.get("SPARSEC_OPDB_SHARD") or f"{random.Random(day).randrange(SHARDS)}/{SHARDS}"
    shard, shards = map(int, chosen.split("/"))
    records = supervise(Plan(shard=shard, shards=shards, seed=day), tmp_path, SECONDS)
    with capsys.disabled():
        print(f"\nSPARSEC_OPDB_SHARD={chosen}, order {day}\n{table(records)}")
    assert records and not failures(records), "\n".join(failures(records))
