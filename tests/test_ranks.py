"""Ranks that wait for one another: for as long as it takes, and saying for whom."""
import subprocess
import sys

import pytest

from conftest import ROOT

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from plumbing import ranks
ranks.EVERY = 0.3
if {trainer}:
    ranks.start_distributed()
else:                                       # whoever made the first group: its time-out does not count
    import datetime, torch
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=1))
rank, world = ranks.rank_and_world()
ranks.wait_for_ranks("starting")
if rank == 1:
    time.sleep(2)
start = time.monotonic()
ranks.wait_for_ranks("its rollouts")
if rank == 0:
    print("waited", time.monotonic() - start > 1.5)
"""


@pytest.mark.parametrize("trainer", [False, True])
def test_rank_0_says_for_whom_it_waits(trainer, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(PROGRAM.format(root=ROOT, trainer=trainer))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "waited True" in done.stdout
    assert "rank 0 waits for rank 1: its rollouts, " in done.stderr


def test_states_are_saved_every_so_many_steps_or_after_ten_minutes(monkeypatch):
    from plumbing import checkpoints
    assert [step for step in range(1, 10) if checkpoints.SaveTimes(4).come(step)] == [4, 8]
    clock, asked = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "sum_over_ranks", lambda late: [asked.append(late) or float(late)])
    times = checkpoints.SaveTimes(None)
    found = []
    for minute in (5, 11, 12, 20, 22):
        clock[0] = 60.0 * minute
        found.append(times.come(1))
    assert found == [False, True, False, False, True] and len(asked) == 5
