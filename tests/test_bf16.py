"""bf16, as on GPUs: every ZeRO stage on one rank and on two."""
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from test_stages import grpo_records, lines, write


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def runs(request, tmp_path_factory, trained_student, demonstrations, teacher_url):
    """(folder with N/sft and N/rl of each stage N, what was printed)"""
    out = tmp_path_factory.mktemp("bf16")
    records = write(out / "rl.jsonl", grpo_records())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               str(request.param), os.path.join(ROOT, "tests", "bf16_driver.py"), trained_student,
               str(demonstrations), str(records), str(out), teacher_url]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out, done.stdout


def test_all_stages_train_alike(runs):
    out, _ = runs
    curves = [[row["loss"] for row in lines(out / str(zero) / "sft" / "metrics.jsonl")] for zero in range(4)]
    for curve in curves:
        assert curve == pytest.approx(curves[1], abs=0.01) and len(curve) == 3


def test_engine_and_trainer_agree(runs):
    out, _ = runs
    for zero in range(4):
        rows = lines(out / str(zero) / "rl" / "metrics.jsonl")
        assert len(rows) == 2 and any(row["updates"] for row in rows)
        for row in rows:
            assert row["logp_gap"] < 0.03 and row["sync_gap"] < 0.03 and abs(row["kl"]) < 0.1
        assert (rows[0]["sync_gap"] > 0) == (zero == 3)                     # the copy is checked, too


def test_gradients_are_summed_in_fp32(runs):
    _, printed = runs
    if "gradient" not in printed:
        pytest.skip("on one rank")
    found = [line.split() for line in printed.splitlines() if line.startswith("gradient ")]
    assert [line[1] for line in found] == ["1", "2", "3"]
    for _, zero, one, many in found:
        assert float(many) == pytest.approx(float(one), rel=0.02), zero
