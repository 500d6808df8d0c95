"""bench/gpu.py, which needs a GPU to say anything, runs through on CPUs."""
import json

import pytest

from conftest import script


@pytest.mark.slow
def test_the_check_for_gpus_runs_through(tmp_path):
    sections = ["parity", "attend", "sft", "grpo", "decode", "memory"]       # without cli: other tests run those
    script("bench/gpu.py", "--cpu-smoke", "--out", tmp_path, "--only", *sections)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["ok"] for row in found["sections"]["parity"]) and len(found["sections"]["parity"]) == 25
    assert not found["faults"]
