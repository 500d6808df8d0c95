"""What eval.py measured, as rows and as Markdown tables: results.json, our rows below the paper's.

A prediction is a trajectory with the `group` (benchmark) of its task, its `run`, and `score`, `correct`,
`verdict` and `metric`. A row of results.json sums up the predictions of a group, or of one of its parts.
"""
import math
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from plumbing.cli import InputError
from plumbing.records import Record, read_jsonl
from plumbing.trajectory import step_of

PAPER_TABLES = Path(__file__).resolve().parent.parent / "assets" / "paper_tables.md"
REASONS = ("unanswered", "truncated", "failed")


# ---- rows ----

def why_zero(prediction: Record) -> str | None:
    """"failed", "truncated" or "unanswered"; None for a trajectory that was answered and scored."""
    if prediction["stop"] == "failed" or prediction["verdict"] == "failed":
        return "failed"
    if prediction["prediction"] is not None:
        return None
    if prediction["stop"] == "max_tokens":
        return "truncated"
    return "unanswered"


def pass_at(solved: list[int], runs: int) -> dict[str, float]:
    """pass@k in per cent for k = 1, 2, 4 … and the number of runs: the chance that k of a task's runs, drawn
    at random, hold a solved one (Chen et al., 2021). `solved`: in how many of the runs each task was solved.

    solved [3, 0, 1] of 4 runs -> pass@2 is the mean of 1, 0 and 1/2: 50.0
    """
    powers_of_two = [2 ** i for i in range(runs.bit_length())]
    found: dict[str, float] = {}
    for k in sorted({*powers_of_two, runs}):
        all_wrong = [math.comb(runs - n, k) / math.comb(runs, k) for n in solved]
        found[str(k)] = 100 * statistics.fmean(1 - chance for chance in all_wrong)
    return found


def summarize(predictions: list[Record], group: str, part: Record) -> Record:
    """One row: mean and standard error over tasks in per cent, and how many trajectories have no answer."""
    by_task = defaultdict(list)
    scores_of_run = defaultdict(list)
    for p in predictions:
        by_task[p["id"]].append(p)
        scores_of_run[p["run"]].append(100 * p["score"])
    means = [100 * statistics.fmean(p["score"] for p in of_task) for of_task in by_task.values()]
    solved = [sum(p["correct"] for p in of_task) for of_task in by_task.values()]
    mean_of_run = [statistics.fmean(scores_of_run[run]) for run in sorted(scores_of_run)]
    standard_error = 0.0
    if len(means) > 1:
        standard_error = statistics.stdev(means) / len(means) ** 0.5
    deviation_of_runs = None
    if len(mean_of_run) > 1:
        deviation_of_runs = statistics.stdev(mean_of_run)
    reasons = Counter(why_zero(p) for p in predictions)
    return {"group": group, "part": part, "metric": predictions[0]["metric"], "n": len(means),
            "mean": statistics.fmean(means), "se": standard_error,
            "runs": mean_of_run, "sd": deviation_of_runs, "pass_at": pass_at(solved, len(mean_of_run)),
            **{reason: reasons[reason] for reason in REASONS},
            "steps": statistics.fmean(step_of(p["messages"]) for p in predictions)}


def parts_of(predictions: list[Record]) -> list[Record]:
    """The parts that get a row: all ({}), each kind of task, GAIA's levels, each horizon of a kind."""
    parts: list[Record] = [{}]
    for fields in (["kind"], ["Level"], ["kind", "horizon"]):
        found = set()
        for p in predictions:
            if p.get(fields[-1]):
                found.add(tuple((field, p[field]) for field in fields if p.get(field)))
        in_order = sorted(found, key=lambda part: [str(value).rjust(9) for _, value in part])
        parts += [dict(part) for part in in_order]
    return parts


def result_rows(predictions: list[Record]) -> list[Record]:
    """The rows of results.json: every group with its parts."""
    groups = defaultdict(list)
    for p in predictions:
        groups[p["group"]].append(p)
    rows = []
    for group, members in groups.items():
        for part in parts_of(members):
            of_part = [p for p in members if all(p.get(field) == part[field] for field in part)]
            rows.append(summarize(of_part, group, part))
    return rows


def row_name(row: Record) -> str:
    """GAIA-2, or `eval, math, horizon 3`."""
    name = row["group"]
    part = row["part"]
    if "Level" in part:
        name += f"-{part['Level']}"
    if "kind" in part:
        name += f", {part['kind']}"
    if "horizon" in part:
        name += f", horizon {part['horizon']}"
    return name


def short_name(row: Record, all_results: list[Record]) -> str:
    """The row's name, without its group where all results are of one group."""
    groups = {row["group"] for results in all_results for row in results["rows"]}
    if len(groups) == 1:
        return row_name(row).removeprefix(f"{row['group']}, ")
    return row_name(row)


# ---- tables ----

def cell(value: Any) -> str:
    """A value as a table shows it: one decimal, – for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)


def with_error(row: Record) -> str:
    """50.0 ± 1.5: the mean and its standard error."""
    return f"{row['mean']:.1f} ± {row['se']:.1f}"


def markdown(head: list, rows: list[list]) -> str:
    """A Markdown table, aligned for the terminal as well: the first column left, the others right."""
    cells = [[cell(value) for value in row] for row in [head, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for first, *others in [cells[0], rule, *cells[1:]]:
        aligned = [first.ljust(widths[0])]
        aligned += [text.rjust(width) for text, width in zip(others, widths[1:])]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines)


def results_table(results: Record) -> str:
    """The table that `eval.py run` prints."""
    k = str(results["runs"])
    head = ["tasks", "metric", "n", "mean ± se", "sd of runs", f"pass@{k}", *REASONS, "steps"]
    rows = []
    for row in results["rows"]:
        counts = [row[reason] for reason in REASONS]
        rows.append([row_name(row), row["metric"], row["n"], with_error(row), row["sd"],
                     row["pass_at"].get(k), *counts, row["steps"]])
    return f"{results['name']}: {results['model']}, {results['sampling']}, runs: {k}\n{markdown(head, rows)}"


def is_results(found: Record) -> bool:
    """Whether an object has the form of results.json."""
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return False
    if not all({"group", "part", "metric", "mean"} <= set(row) for row in rows):
        return False
    return {"name", "decoding"} <= set(found)


def read_results(folder: Path) -> Record:
    """results.json of a folder, with its `folder` and its `stage`: the name without -greedy or -sampled."""
    path = folder / "results.json"
    lines = [results for _, results in read_jsonl(path)]
    if len(lines) != 1 or not is_results(lines[0]):
        raise InputError(f"{path}: not the results of eval.py run, which are one line")
    results = lines[0]
    return results | {"stage": re.sub(r"-(greedy|sampled)$", "", results["name"]), "folder": folder}


def combined_table(all_results: list[Record]) -> str:
    """One table of several results: a row for a model; a column for a kind of tasks, greedy or sampled."""
    decodings = defaultdict(set)                           # name of tasks -> greedy, sampled
    cells = defaultdict(dict)                              # model -> (name of tasks, decoding) -> text
    for results in all_results:
        for row in results["rows"]:
            if "horizon" in row["part"]:
                continue
            name = short_name(row, all_results)
            decodings[name].add(results["decoding"])
            cells[results["stage"]][name, results["decoding"]] = with_error(row)
    columns = []
    for name, found in decodings.items():
        columns += [(name, decoding) for decoding in sorted(found)]
    head = ["model", *[f"{name}, {decoding}" for name, decoding in columns]]
    rows = [[stage, *[of_model.get(column) for column in columns]] for stage, of_model in cells.items()]
    return markdown(head, rows)


# ---- the paper's tables ----

# The paper's method -> what a run of it is called, as baselines/README.md tells.
NAMES = {
    "TIR prompting": "tir-prompting",
    "CoT prompting": "cot-prompting",
    "Agent prompting": "agent-prompting",
    "BC": "bc-all",
    "Initial distillation": "bc",
    "GRPO": "grpo",
    "ARPO": "arpo",
    "SCoRe-SFT": "sft",
    "SCoRe-RL": "rl",
    "RL w/o short horizon": "rl-no-horizon",
    "RL w/o key-step rewards": "rl-no-key",
    "CoT distillation": "cot",
    "CoT distillation + RAG": "cot-rag",
    "Agent distillation": "agent-distillation"}


def place_of(stage: str, titles: list[str]) -> int:
    """Index of the paper's row that a run belongs below, by its name; below all of them where none is meant.

    arpo -> the first row "…, ARPO"; 3b-arpo -> the first "Qwen2.5-3B, ARPO"; dpo, my-arpo -> len(titles)
    """
    for at, title in enumerate(titles):
        model, _, method = title.rpartition(", ")
        which, is_method, rest = f"-{stage}".rpartition(f"-{NAMES[method]}")
        if is_method and not rest and which.removeprefix("-").lower() in model.lower():
            return at
    return len(titles)

def our_row(results: Record, number: str, names: list[str]) -> list | None:
    """Our row for a table of the paper whose columns are `names`, "Avg." last; None if we have none of them.

    The average stands there only if every benchmark does; GAIA's levels are not averaged, as in the paper,
    and one or two levels alone are not GAIA.
    """
    means: dict[str, float] = {}
    levels = {row["part"]["Level"] for row in results["rows"] if "Level" in row["part"]}
    for row in results["rows"]:
        if (row["metric"] == "rule") == (number == "5"):                  # Table 5 compares by rule alone
            means[row_name(row)] = float(row["mean"])
    if 0 < len(levels) < 3:
        means.pop("GAIA", None)
    if not any(name in means for name in names):
        return None
    averaged = [name for name in names[:-1] if not name.startswith("GAIA-")]
    if all(name in means for name in averaged):
        means["Avg."] = statistics.fmean(means[name] for name in averaged)
    title = f"ours: {results['stage']}, {results['decoding']}"
    return [title, *[means.get(name) for name in names]]


def paper_tables(all_results: list[Record], which: str) -> list[str]:
    """The paper's tables in which we have a benchmark, each row of ours below the paper's for its method, or
    else below all. `which`: auto, none, or as 1,3."""
    tables = []
    text = PAPER_TABLES.read_text(encoding="utf-8")
    for number, caption, lines in re.findall(r"## Table (\d)(: .*)\n\n((?:\|.*\n?)+)", text):
        if which != "auto" and number not in which.split(","):
            continue
        cells = [[value.strip() for value in line.strip("|").split("|")] for line in lines.splitlines()]
        head, _, *rows = cells                             # the second line is the rule
        titles = [row[0] for row in rows]
        below = defaultdict(list)                          # index of a row of the paper -> our rows below it
        for results in all_results:
            ours = our_row(results, number, head[1:])
            if ours is not None:
                below[place_of(results["stage"], titles)].append(ours)
        if below:
            placed = []
            for at, row in enumerate(rows):
                placed += [row, *below[at]]
            placed += below[len(rows)]
            tables.append(f"Table {number} of the paper{caption}\n\n{markdown(head, placed)}")
    return tables
