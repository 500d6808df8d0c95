"""Reward = - length has to shorten responses, whatever generates them and in whichever dtype.

A ratio that is off from the start, as with log-probs of another program, would leave tokens without a gradient
(clipped although the policy has not changed): the log has to show it, and the trainer as anchor to mend it.
"""
import os

import pytest

from conftest import script
from test_stages import lines, write

STEPS = 16


def shorten(folder, student, noise, *flags, driver="tests/length_driver.py"):
    """-> the rows of metrics of a run from questions, of STEPS steps if no flag says otherwise."""
    os.makedirs(folder, exist_ok=True)
    data = write(folder / "rl.jsonl", [dict(id=str(i), question=f"Cy has {i} pears.", answer="6",
                                            messages=[{"role": "user", "content": f"Cy has {i} pears."}])
                                       for i in range(4)])
    script(driver, noise, "--model", student, "--data", data, "--out", folder / "out", "--steps", STEPS, "--prompts", 4,
           "--mini-batch", 2, "--group", 16, "--lr", "3e-4", "--max-tokens", 40,
           "--max-failed", 1, *flags)
    return lines(folder / "out" / "metrics.jsonl")


def first_and_last(rows):
    """Mean length of the responses in the first and the last three steps."""
    of = [row["response_tokens"] for row in rows]
    return sum(of[:3]) / 3, sum(of[-3:]) / 3


@pytest.mark.parametrize("dtype, most", [("fp32", 1e-5), ("bf16", 0.1)])
def test_responses_become_shorter(dtype, most, tmp_path, trained_student):
    rows = shorten(tmp_path, trained_student, 0, "--dtype", dtype)
    before, after = first_and_last(rows)
    assert len(rows) == STEPS and after < 0.6 * before
    assert all(row["logp_gap_p99"] <= most for row in rows)
    if dtype == "fp32":
        assert all(row["outside_first"] == 0 for row in rows)


@pytest.mark.parametrize("whose", ["trainer", "engine"])
def test_an_engine_that_is_off_is_seen_and_mended_by_the_anchor(whose, tmp_path, trained_student):
    steps = STEPS if whose == "trainer" else 4
    rows = shorten(tmp_path, trained_student, 0.5, "--dtype", "fp32", "--anchor", whose, "--max-logp-gap", 9,
                   "--steps", steps)
    trained = [row for row in rows if row["trained_tokens"] > 100]
    assert len(trained) >= 4 and all(0.3 < row["logp_gap"] < 0.5 < 1 < row["logp_gap_p99"] for row in trained)
    if whose == "trainer":
        assert all(row["outside_first"] == 0 for row in trained)
        before, after = first_and_last(rows)
        assert after < 0.6 * before
    else:
        assert all(row["outside_first"] > 0.5 for row in trained)
