"""What the stages of a run cost: `eval.py cost`, from the files that they wrote.

  wall seconds     of all calls with that --out, from the start of the process on
  CPU seconds      user and system, of all ranks, their children and the interpreters of model-written code
  student tokens   sampled by the student, also for tasks that were played again after a kill
  trained tokens   tokens with loss in the updates that count (metrics.jsonl)
  teacher, judge   requests that were answered, tokens of the prompts and of the replies. Replies from a
                   --teacher-cache cost nothing here: whoever paid for them has counted them
  tasks, solved    tasks with a result; trajectories kept by bc.py, tasks that mps.py ends with the right
                   answer (unaided or corrected), right answers of eval.py

The servers of the teacher and of the search are not part of a run: their seconds are not counted.
"""
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from plumbing.cli import InputError
from plumbing.records import Record, objects_of, ranks_files
from plumbing.results import markdown

COLUMNS = {"tasks": "tasks", "solved": "solved", "seconds": "wall s", "processor_seconds": "CPU s",
           "student_tokens": "student tokens", "trained_tokens": "trained tokens",
           "teacher_calls": "teacher calls", "teacher_prompt_tokens": "prompt tokens",
           "teacher_completion_tokens": "reply tokens", "judge_calls": "judge calls",
           "judge_prompt_tokens": "its prompt tokens", "judge_completion_tokens": "its reply tokens"}
COUNTS = ("tasks", "solved")                               # what no solved task costs
ASKED = [column for column in COLUMNS if column.startswith(("student", "teacher", "judge"))]
OLD = " *"                                                 # marks a stage without a folder of costs


class Stage(NamedTuple):
    """A stage of a run: its name, and what it cost; a quantity that was not recorded is missing."""
    name: str
    costs: dict[str, float]
    is_evaluation: bool
    cached: int                                            # replies that were paid for before


# ---- files, some of which a run may be writing now ----

def whole_lines(path: Path) -> Iterator[Record]:
    """The objects of a file of JSON lines, but for a torn last line; none if there is no such file."""
    if not path.exists():
        return
    data = path.read_bytes()
    text = data[:data.rfind(b"\n") + 1].decode("utf-8-sig", "replace")
    for _, record in objects_of(path, io.StringIO(text)):
        yield record


def spent(folder: Path) -> Counter:
    """Sums over all calls in a folder of costs, of all ranks; the wall clock is that of rank 0."""
    total: Counter = Counter()
    for path in sorted(folder.glob("rank*.jsonl")):
        for row in whole_lines(path):
            numbers = {name: n for name, n in row.items() if name != "began"}
            if path.name != "rank0.jsonl":
                numbers.pop("seconds", None)
            total.update(numbers)
    return total


def in_records(paths: Iterable[Path]) -> Counter:
    """tasks, solved, and what the records of bc.py, mps.py or eval.py say of their own cost ("usage").

    A task that stands there twice, as it was tried again, is one.
    """
    total: Counter = Counter()
    solved: dict[tuple, bool] = {}
    for path in paths:
        for record in whole_lines(path):
            key = (record.get("group"), record.get("id", len(solved)), record.get("run"))
            solved[key] = solved.get(key, False) or bool(record.get("correct"))
            total.update({name: n for name, n in record.get("usage", {}).items() if n})
    total.update(tasks=len(solved), solved=sum(solved.values()))
    return total


# ---- stages ----

def stage_of(path: Path, run: Path) -> Stage | None:
    """The stage whose flags are in this file, an args.json; None for a file of something else."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        saved = None
    if not isinstance(saved, dict) or not isinstance(saved.get("args"), dict):
        return None
    flags = saved["args"]
    base = path.name.removesuffix("args.json")             # "", or "bc." of bc.args.json
    out = path.parent if not base else path.parent / f"{base}jsonl"
    is_evaluation = flags.get("command") == "run"
    records = records_of(out, flags)
    from_records = in_records(records)
    kept = spent(path.parent / f"{base}costs")
    costs: dict[str, float] = {}
    if records:
        costs.update(tasks=from_records["tasks"], solved=from_records["solved"], trained_tokens=0)
    name = str(out.relative_to(run)) if out != run else out.absolute().name
    rows = list(whole_lines(out / "metrics.jsonl")) if out.is_dir() else []
    trained = [row.get("trained_tokens", row.get("tokens")) for row in rows]
    if trained and None not in trained:
        costs["trained_tokens"] = sum(trained)
    if kept:
        costs.update({column: 0 for column in ASKED})      # nobody was asked where nothing was counted
        costs.update({column: kept[column] for column in COLUMNS if kept[column]})
        return Stage(name, costs, is_evaluation, kept["teacher_cached"] + kept["judge_cached"])
    costs.update({column: from_records[column] for column in COLUMNS if from_records[column]})
    if rows and "generated_tokens" in rows[-1]:
        costs["student_tokens"] = rows[-1]["generated_tokens"]
    return Stage(name + OLD, costs, is_evaluation, 0)


def records_of(out: Path, flags: Record) -> list[Path]:
    """The files with a record for each task of a stage; none for training."""
    if not out.is_dir():
        return [out, out.with_suffix(".rejected.jsonl")]
    for name, flag in (("mps", "corrections"), ("predictions", "metric")):
        if flag in flags:
            return [out / f"{name}.jsonl", *ranks_files(out, name)]
    return []


def flags_in(run: Path) -> Iterator[Path]:
    """The args.json of all stages in a folder. Hidden ones in it are left out: of .venv, say."""
    for folder, inside, files in os.walk(run):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in files:
            if name == "args.json" or name.endswith(".args.json"):
                yield Path(folder) / name


def stages_of(run: Path) -> list[Stage]:
    """The stages whose files are in a folder, in the order in which they were begun."""
    found = []
    for path in flags_in(run):
        stage = stage_of(path, run)
        if stage is not None:
            costs = path.parent / f"{path.name.removesuffix('args.json')}costs" / "rank0.jsonl"
            began = next(whole_lines(costs), {}).get("began", "")
            found.append((began, path.stat().st_mtime, stage))
    return [stage for *_, stage in sorted(found, key=by_time)]


def by_time(found: tuple[str, float, Stage]) -> tuple[str, float]:
    """Sorts stages by their first call; those of older versions come first, by their args.json."""
    began, changed, _ = found
    return began, changed


# ---- tables ----

def total_of(name: str, stages: list[Stage]) -> Stage:
    """The sums over stages. The seconds are missing if those of one stage are."""
    costs: Counter = Counter()
    for stage in stages:
        costs.update(stage.costs)
    if not all("seconds" in stage.costs for stage in stages):
        del costs["seconds"], costs["processor_seconds"]
    if any(stage.name.endswith(OLD) for stage in stages):
        name += OLD
    return Stage(name, dict(costs), False, sum(stage.cached for stage in stages))


def with_total(stages: list[Stage]) -> list[Stage]:
    """The stages, and the sum over those that make the student (the last one measures it)."""
    making = [stage for stage in stages if not stage.is_evaluation]
    if len(making) < 2:
        return stages
    return [*stages, total_of("all but evaluations", making)]


def number(value: float | None) -> str:
    """12,345, or 0.25 of a small number that is not whole; - for what was not recorded."""
    if value is None:
        return "-"
    if value == round(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:,.2f}"


def table(stages: list[Stage], first: str, per_solved: bool = False) -> str:
    """A row for each stage; per_solved: only of stages that solve tasks, what one of these cost."""
    shown = [column for column in COLUMNS
             if not column.startswith("judge") or any(stage.costs.get(column) for stage in stages)]
    if per_solved:
        stages = [stage for stage in stages if stage.costs.get("solved")]
        shown = [column for column in shown if column not in COUNTS]
    rows = []
    for stage in stages:
        values = [stage.costs.get(column) for column in shown]
        if per_solved:
            solved = stage.costs["solved"]
            values = [None if value is None else value / solved for value in values]
        rows.append([stage.name, *map(number, values)])
    return markdown([first, *[COLUMNS[column] for column in shown]], rows)


def cost_tables(run: Path) -> str:
    """The cost of a run by stage and by solved task, as text; InputError for a folder without a stage."""
    if not run.is_dir():
        raise InputError(f"{run} is no folder: give that of a run")
    stages = stages_of(run)
    if not stages:
        raise InputError(f"{run} holds no args.json of a stage: it is not the folder of a run")
    shown = with_total(stages)
    parts = [f"what {run} cost", table(shown, "stage")]
    if any(stage.costs.get("solved") for stage in shown):
        parts.append(table(shown, "per solved task", per_solved=True))
    cached = sum(stage.cached for stage in stages)
    if cached:
        parts.append(f"{cached:,} further replies came from a cache: they were paid for before.")
    if any(stage.name.endswith(OLD) for stage in stages):
        parts.append("* made by a version that kept no costs: the tokens are those of the records that it "
                     "left; what no record tells is -")
    return "\n\n".join(parts)


def comparison(runs: list[Path]) -> str:
    """What making the student cost in each of several runs, side by side."""
    totals = []
    for run in runs:
        making = [stage for stage in stages_of(run) if not stage.is_evaluation]
        totals.append(total_of(str(run), making))
    return table(totals, "run, without evaluations")
