"""bench/gpu.py, which needs a GPU to say anything, runs through on CPUs."""
import importlib.util
import json
import os

import pytest

from conftest import ROOT, script


@pytest.mark.slow
def test_the_check_for_gpus_runs_through(tmp_path):
    sections = ["parity", "attend", "sft", "grpo", "decode", "memory"]       # without cli: other tests run those
    script("bench/gpu.py", "--cpu-smoke", "--out", tmp_path, "--only", *sections)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["ok"] for row in found["sections"]["parity"]) and len(found["sections"]["parity"]) == 25
    assert not found["faults"]
    printed = script("bench/gpu.py", "--table", "--out", tmp_path).stdout
    without = [] if importlib.util.find_spec("vllm") else ["| decoding 8 prompts x 16, VLLMEngine | not run | |"]
    assert [line for line in printed.splitlines() if "not run" in line and "a group" not in line] == [
        *without, "| real runs of `sft.py` and `grpo_short.py` (small models) | not run | |"]


def test_the_page_has_every_line_of_the_table(tmp_path):
    printed = script("bench/gpu.py", "--table", "--out", tmp_path).stdout.splitlines()
    with open(os.path.join(ROOT, "bench", "README.md"), encoding="utf-8") as file:
        page = [line.split("|")[1] for line in file if line.startswith("|")]
    assert len(printed) == 19 and all(line.split("|")[1] in page for line in printed[2:])
