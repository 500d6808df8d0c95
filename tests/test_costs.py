"""What a run costs: what the stages write of it while they go on, and what `eval.py cost` makes of that."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import eval as evaluate
from conftest import ROOT, script
from plumbing import costs, spending
from sandbox import Interpreter, seconds_of_sessions, set_sandbox
from test_stages import lines, tasks, write


def row_of(text, name):
    """{column: value} of the first row of a table whose first cell is `name`."""
    head = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and head is None or cells[0] in ("stage", "per solved task"):
            head = cells
        if head and cells[0] == name:
            return dict(zip(head[1:], cells[1:]))
    raise AssertionError(f"no row {name} in\n{text}")


# ---- what a process spends ----

BUSY = "total = 0\nfor k in range(6000000): total += k\nprint(total)"


def test_the_seconds_of_sessions_are_counted_while_they_live_and_after_a_kill():
    set_sandbox("auto", preload=False)
    before = seconds_of_sessions()
    one = Interpreter()
    one.run(BUSY)
    alive = seconds_of_sessions() - before
    two = one.fork()                                       # replays the step in a process of its own
    two.run("print(total)")
    both = seconds_of_sessions() - before
    one.close()
    two.close()
    assert alive > 0.1 and both > 1.5 * alive
    assert both <= seconds_of_sessions() - before < 1.5 * both + 0.1
    stuck = Interpreter(seconds=0.5)
    stuck.run("while True: pass")                          # killed within its step
    assert seconds_of_sessions() - before > both + 0.2


def test_children_count_while_they_run_and_after():
    before = spending.processor_seconds()
    busy = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\nprint(1, flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert spending.processor_seconds() - before > 0.5
    child.communicate(b"\n")
    assert 0.5 < spending.processor_seconds() - before < 3


TWO_CALLS = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from plumbing import spending
spending.EVERY = 0.1
spending.keep_spending({folder!r})
spending.count(student_tokens=7, teacher_calls=1)
kept = {folder!r} + "/rank0.jsonl"
while not os.path.exists(kept) or '"student_tokens": 7' not in open(kept).read():
    time.sleep(0.05)
if {kill}:
    os.kill(os.getpid(), signal.SIGKILL)
spending.count(student_tokens=100)                         # written at the end
"""


def test_a_killed_call_and_the_next_one_add_up(tmp_path):
    for kill in True, False:
        code = TWO_CALLS.format(root=ROOT, folder=str(tmp_path / "costs"), kill=kill)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    killed, ended = lines(tmp_path / "costs" / "rank0.jsonl")
    assert killed["student_tokens"] == 7 and ended["student_tokens"] == 107
    assert min(killed["seconds"], ended["seconds"]) > 0 and ended["processor_seconds"] > 0
    total = costs.spent(tmp_path / "costs")
    assert total["student_tokens"] == 114 and total["teacher_calls"] == 2
    assert total["seconds"] == pytest.approx(killed["seconds"] + ended["seconds"])


def test_a_second_run_in_one_process_counts_only_its_own(tmp_path):
    spending.keep_spending(str(tmp_path / "a"))
    spending.count(student_tokens=3)
    spending.keep_spending(str(tmp_path / "b"))
    spending.count(student_tokens=4)
    spending.end_spending()
    spending.count(student_tokens=5)
    assert lines(tmp_path / "a" / "rank0.jsonl")[0]["student_tokens"] == 3
    second, = lines(tmp_path / "b" / "rank0.jsonl")
    assert second["student_tokens"] == 4 and second["seconds"] < 5


def test_of_several_ranks_the_wall_clock_counts_once(tmp_path):
    for rank in range(3):
        write(tmp_path / f"rank{rank}.jsonl", [dict(began="t", seconds=10, processor_seconds=4, student_tokens=5)])
    assert costs.spent(tmp_path) == dict(seconds=10, processor_seconds=12, student_tokens=15)


def test_a_folder_that_has_gone_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(spending, "EVERY", 0.05)
    folder = tmp_path / "costs"
    spending.keep_spending(str(folder))
    time.sleep(0.2)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    time.sleep(0.2)
    spending.end_spending()
    assert not folder.exists()


# ---- the stages ----

@pytest.mark.slow
def test_stages_write_what_they_spend(tmp_path, teacher_url, checkpoint, capsys):
    """Demonstrations, a training, mentoring and an evaluation, with a cache of replies."""
    write(tmp_path / "tasks.jsonl", tasks(6))
    asked = ["--teacher-url", teacher_url, "--teacher-cache", tmp_path / "cache.sqlite"]
    world = ["--search", f"http:{teacher_url}/search", "--no-preload"]
    script("bc.py", "--tasks", tmp_path / "tasks.jsonl", "--out", tmp_path / "bc.jsonl", *asked, *world)
    script("sft.py", "--model", checkpoint, "--data", tmp_path / "bc.jsonl", "--out", tmp_path / "ckpt/bc", "--steps", 2,
           "--batch", 4, "--dtype", "fp32", "--lr", "1e-3")
    limits = ["--max-tokens", 40, *world]
    script("mps.py", "--tasks", tmp_path / "tasks.jsonl", "--student", tmp_path / "ckpt/bc", "--out", tmp_path / "mps",
           "--corrections", 1, *asked, *limits, ranks=2)
    script("eval.py", "run", "--model", tmp_path / "ckpt/bc", "--tasks", tmp_path / "tasks.jsonl", "--out",
           tmp_path / "eval/bc", "--greedy", "--metric", "rule", *limits)
    said = script("eval.py", "cost", tmp_path).stdout

    shown = [line.split("|")[1].strip() for line in said.split("| per solved")[0].splitlines() if line.startswith("|")]
    assert shown[2:] == ["bc.jsonl", "ckpt/bc", "mps", "eval/bc", "all but evaluations"]
    usage = [record["usage"] for record in lines(tmp_path / "bc.jsonl")]
    bc = row_of(said, "bc.jsonl")
    assert bc["tasks"] == bc["solved"] == "6" and bc["student tokens"] == bc["trained tokens"] == "0"
    for name, column in dict(calls="teacher calls", prompt_tokens="prompt tokens", completion_tokens="reply tokens").items():
        assert bc[column] == f"{sum(u[f'teacher_{name}'] for u in usage):,}"
    trained = sum(row["tokens"] for row in lines(tmp_path / "ckpt/bc/metrics.jsonl"))
    sft = row_of(said, "ckpt/bc")
    assert sft["trained tokens"] == f"{trained:,}" and sft["tasks"] == "-" and sft["teacher calls"] == "0"
    mps = row_of(said, "mps")
    tokens = sum(record["usage"]["student_tokens"] for record in lines(tmp_path / "mps/mps.jsonl"))
    assert mps["student tokens"] == f"{tokens:,}" and int(mps["teacher calls"]) > 0
    assert len(list((tmp_path / "mps/costs").iterdir())) == 2                  # a file for each rank
    assert float(mps["CPU s"]) > 1 and float(mps["wall s"]) > 1
    played = sum(record["usage"]["student_tokens"] for record in lines(tmp_path / "eval/bc/predictions.jsonl"))
    assert row_of(said, "eval/bc")["student tokens"] == f"{played:,}"

    # the same demonstrations elsewhere come from the cache, and cost nothing
    script("bc.py", "--tasks", tmp_path / "tasks.jsonl", "--out", tmp_path / "again/bc.jsonl", *asked, *world)
    again = script("eval.py", "cost", tmp_path / "again", tmp_path).stdout
    assert row_of(again, "bc.jsonl")["teacher calls"] == "0" and "further replies came from a cache" in again
    assert f"| {tmp_path}" in again                                            # the runs side by side
    evaluate.report(evaluate.parse_args(["report", str(tmp_path)]))
    assert "per solved task" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_killed_run_is_counted_to_the_last_ten_seconds(tmp_path, teacher_url):
    """Killed on its way and given again, bc.py has paid for each reply once, and says so."""
    import teacher
    slow, url = teacher.serve(teacher.parse_args(["--port", "0", "--latency", "0.2"]))
    write(tmp_path / "tasks.jsonl", tasks(12))
    command = [sys.executable, os.path.join(ROOT, "bc.py"), "--tasks", str(tmp_path / "tasks.jsonl"), "--out",
               str(tmp_path / "bc.jsonl"), "--teacher-url", url, "--search", f"http:{url}/search", "--no-preload",
               "--teacher-cache", str(tmp_path / "cache.sqlite"), "--concurrency", "1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "bc.costs/rank0.jsonl"
    until = time.time() + 60
    while time.time() < until and not (path.exists() and "teacher_calls" in path.read_text()):
        time.sleep(0.2)
    running.kill()
    running.wait()
    killed, = lines(path)
    assert subprocess.run(command, capture_output=True).returncode == 0
    slow.shutdown()
    both = lines(path)
    assert both[0] == killed and len(both) == 2
    asked = sum(record["usage"]["teacher_calls"] for record in lines(tmp_path / "bc.jsonl"))
    paid = killed["teacher_calls"] + both[1]["teacher_calls"]
    lost = both[1].get("teacher_cached", 0) - killed["teacher_calls"]          # paid in the last seconds before the kill
    assert paid <= asked and 0 < killed["teacher_calls"] < asked and lost <= 60


# ---- tables from files ----

@pytest.fixture
def run(tmp_path):
    """A run of known numbers: bc.py, mps.py (torn while it is written), grpo_short.py, eval.py."""
    def stage(place, flags, **spent):
        base = tmp_path / f"{place}args.json"
        base.parent.mkdir(parents=True, exist_ok=True)
        base.write_text(json.dumps(dict(args=flags, commit="0" * 40)))
        if spent:
            folder = tmp_path / f"{place}costs"
            folder.mkdir()
            write(folder / "rank0.jsonl", [spent])
    stage("bc.", dict(attempts=2), began="2026-01-01T00:00:00", seconds=20.0, processor_seconds=10.0, teacher_calls=40,
          teacher_prompt_tokens=4000, teacher_completion_tokens=400, teacher_cached=3)
    write(tmp_path / "bc.jsonl", [dict(id=f"t{i}", correct=True) for i in range(4)])
    write(tmp_path / "bc.rejected.jsonl", [dict(id="t9", faults=["no"])])
    stage("ckpt/rl/", dict(group=8), began="2026-01-03T00:00:00", seconds=100.0, processor_seconds=190.0,
          student_tokens=900, judge_calls=6, judge_prompt_tokens=60, judge_completion_tokens=12)
    write(tmp_path / "ckpt/rl/metrics.jsonl", [dict(step=1, trained_tokens=300, generated_tokens=400),
                                              dict(step=2, trained_tokens=350, generated_tokens=800)])
    stage("mps/", dict(corrections=5), began="2026-01-02T00:00:00", seconds=30.0, processor_seconds=60.0, student_tokens=600,
          teacher_calls=10, teacher_prompt_tokens=1000, teacher_completion_tokens=100)
    write(tmp_path / "mps/mps.jsonl", [dict(id="a", correct=False), dict(id="b", correct=True)])
    with open(tmp_path / "mps/mps.rank0.jsonl", "w") as file:
        file.write(json.dumps(dict(id="a", correct=True)) + '\n{"id": "c", "corr')
    stage("eval/rl/", dict(command="run", metric="auto"), began="2026-01-04T00:00:00", seconds=5.0, processor_seconds=5.0,
          student_tokens=50)
    write(tmp_path / "eval/rl/predictions.jsonl", [dict(group="g", id=str(i), run=0, correct=i < 1) for i in range(4)])
    return tmp_path


def test_costs_by_stage_and_solved_task(run, capsys):
    evaluate.cost(evaluate.parse_args(["cost", str(run)]))
    said = capsys.readouterr().out
    by_stage, per_solved = said.split("| per solved task")
    per_solved = "| per solved task" + per_solved
    assert re.findall(r"(?m)^\| ([\w./ ]+?) +\|", by_stage)[1:] == ["bc.jsonl", "mps", "ckpt/rl", "eval/rl",
                                                                     "all but evaluations"]
    assert row_of(by_stage, "bc.jsonl") == {
        "tasks": "5", "solved": "4", "wall s": "20", "CPU s": "10", "student tokens": "0", "trained tokens": "0",
        "teacher calls": "40", "prompt tokens": "4,000", "reply tokens": "400", "judge calls": "0",
        "its prompt tokens": "0", "its reply tokens": "0"}
    assert row_of(by_stage, "mps")["tasks"] == row_of(by_stage, "mps")["solved"] == "2"
    assert row_of(by_stage, "ckpt/rl")["trained tokens"] == "650" and row_of(by_stage, "ckpt/rl")["judge calls"] == "6"
    total = row_of(by_stage, "all but evaluations")
    assert (total["solved"], total["wall s"], total["CPU s"], total["teacher calls"]) == ("6", "150", "260", "50")
    assert row_of(per_solved, "bc.jsonl")["teacher calls"] == "10"
    assert row_of(per_solved, "mps")["student tokens"] == "300"
    assert row_of(per_solved, "eval/rl")["CPU s"] == "5"
    assert row_of(per_solved, "all but evaluations")["CPU s"] == "43.33"
    assert "ckpt/rl" not in per_solved and "3 further replies" in said
    assert (run / "mps/mps.rank0.jsonl").read_text().endswith('"corr')        # a run may be writing it: it is only read


def test_older_files_show_what_they_hold(run):
    for path in sorted(run.rglob("costs/*")) + sorted(run.rglob("bc.costs/*")):
        path.unlink()
    usage = dict(teacher_calls=3, teacher_prompt_tokens=30, teacher_completion_tokens=9, student_tokens=20)
    write(run / "mps/mps.jsonl", [dict(id="a", correct=True, usage=usage), dict(id="b", correct=False, usage=usage)])
    said = costs.cost_tables(run)
    mps = row_of(said, "mps *")
    assert mps["wall s"] == mps["CPU s"] == "-" and mps["student tokens"] == "40" and mps["teacher calls"] == "6"
    assert row_of(said, "ckpt/rl *")["student tokens"] == "800" and row_of(said, "bc.jsonl *")["teacher calls"] == "-"
    assert row_of(said, "all but evaluations *")["wall s"] == "-" and "kept no costs" in said


def test_one_stage_alone_is_a_run_too(run):
    said = costs.cost_tables(run / "mps")
    assert row_of(said, "mps")["CPU s"] == "60" and "all but" not in said


@pytest.mark.parametrize("make, said", [
    (lambda path: None, "is no folder"), (lambda path: path.mkdir(), "holds no args.json of a stage"),
    (lambda path: (path.mkdir(), (path / "args.json").write_text('{"args": [1]}')), "holds no args.json of a stage"),
    (lambda path: (path.mkdir(), (path / "args.json").write_text("{")), "holds no args.json of a stage")])
def test_what_is_no_run_is_one_sentence(tmp_path, make, said):
    make(tmp_path / "run")
    done = script("eval.py", "cost", tmp_path / "run", check=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
