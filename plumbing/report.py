"""What `eval.py report` writes: one HTML page that opens from disk, and the same charts as PNG files.

A chart is a panel {"section", "title", "series": {name: [[x, y, error, n]…]}}, drawn as bars where x is a
name and as lines where it is a number. The page is assets/report.html; it holds the panels as JSON
and the trajectories as gzipped JSON, which the browser unpacks.
"""
import base64
import gzip
import json
import math
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from plumbing.costs import cost_tables, stages_of
from plumbing.records import MPS_FIELDS, PREDICTION_FIELDS, Record, read_jsonl
from plumbing.results import read_results, results_table, short_name, summarize

COLORS = ["#2563b8", "#d97706", "#178a5c", "#b0378a", "#6d5bd0", "#64748b"]              # --c0… of the page
TEMPLATE = Path(__file__).resolve().parent.parent / "assets" / "report.html"
STAGES = ["base", "bc", "mps", "sft", "dpo", "grpo", "rl"]                               # in order of charts
LARGEST_PACK = 4.5e6                                       # bytes of the page that trajectories may take

Panels = dict[tuple[str, str], Record]                     # (section, title) -> panel
Series = dict[str, list[list]]                             # name -> [[x, y, error, n]…]
Axes = Any                                                 # matplotlib's


# ---- what a run folder holds ----

def read_records(path: Path, *fields: str) -> list[Record]:
    """The records of a file, none if there is no such file. fields: what they all have."""
    if not path.exists():
        return []
    return [record for _, record in read_jsonl(path, fields)]


def order(name: str) -> tuple[int, str]:
    """Sorts stages as they are trained, the unknown ones last: base, bc, sft, sft-n500, rl, mine."""
    stage = name.split("-")[0]
    if stage in STAGES:
        return STAGES.index(stage), name
    return len(STAGES), name


def collect(run_dir: str | Path) -> tuple[list[Record], list[Record], dict[str, list[Record]]]:
    """-> panels of charts, results, trajectories by source."""
    run_dir = Path(run_dir)
    mps = []
    for path in (run_dir / "mps.jsonl", run_dir / "mps" / "mps.jsonl"):
        mps = mps or read_records(path, *MPS_FIELDS)
    checkpoints = sorted(run_dir.glob("ckpt/*"), key=lambda folder: order(folder.name))
    all_results = [read_results(path.parent) for path in run_dir.glob("eval/*/results.json")]
    all_results.sort(key=lambda results: (order(results["stage"]), results["decoding"]))
    predictions = []
    for results in all_results:
        path = results["folder"] / "predictions.jsonl"
        predictions.append(read_records(path, *PREDICTION_FIELDS))

    sources = {"bc": read_records(run_dir / "bc.jsonl", "messages"), "mps": mps}
    for results, predicted in zip(all_results, predictions):
        sources[f"eval {results['name']}"] = predicted
    for folder in checkpoints:
        sources[f"rollouts {folder.name}"] = read_records(folder / "rollouts.jsonl", "messages")

    panels: Panels = {}
    played = [task for task in mps if task["outcome"] != "failed"]
    hard = {task["id"] for task in played if task["outcome"] == "hard"}
    for results, predicted in zip(all_results, predictions):
        unsolved = [p for p in predicted if p["id"] in hard]
        add_accuracy(panels, results, all_results, unsolved)
    add_interventions(panels, played)
    for folder in checkpoints:
        add_training(panels, folder)
    return list(panels.values()), all_results, {name: found for name, found in sources.items() if found}


# ---- points of charts ----

def add_point(panels: Panels, section: str, title: str, series: str, point: list) -> None:
    """Append [x, y, error, n] to a series of the panel, which is made if it is not there yet."""
    panel = panels.setdefault((section, title), {"section": section, "title": title, "series": {}})
    panel["series"].setdefault(series, []).append(point)


def add_accuracy(panels: Panels, results: Record, all_results: list[Record], unsolved: list[Record]) -> None:
    """Accuracy by stage, by horizon and by size of the data (Figure 4), where the stage is named as sft-n500.

    unsolved: predictions on tasks that mentored problem-solving left unsolved (Figure 3b).
    """
    stage = results["stage"]
    decoding = results["decoding"]
    size = re.fullmatch(r"(.+)-n(\d+)", stage)
    rows = list(results["rows"])
    if unsolved:
        rows.append(summarize(unsolved, "hard", {}))
    for row in rows:
        name, _, horizon = short_name(row, all_results).partition(", horizon ")
        measured = [row["mean"], row["se"], row["n"]]
        if size and not horizon:
            add_point(panels, "Accuracy by data", name, f"{size[1]}, {decoding}", [int(size[2]), *measured])
        elif horizon and not size:
            add_point(panels, "Accuracy by horizon", f"{name}, {decoding}", stage, [int(horizon), *measured])
        elif not horizon:
            section = "Hard tasks" if row["group"] == "hard" else "Accuracy by stage"
            add_point(panels, section, f"{name} ({row['metric']})", decoding, [stage, *measured])


def add_interventions(panels: Panels, mps: list[Record]) -> None:
    """How many corrections the tasks of a kind needed, in per cent of the tasks (Figure 3a)."""
    needed = []                                            # of a task: "hard" or corrections, and its kind
    for task in mps:
        label = "hard" if task["outcome"] == "hard" else str(task["interventions"])
        needed.append((label, task.get("kind", "all")))
    labels = sorted({label for label, _ in needed})
    tasks_of_kind = Counter(kind for _, kind in needed)
    for label in labels:
        for kind in sorted(tasks_of_kind):
            n = needed.count((label, kind))
            share = 100 * n / tasks_of_kind[kind]
            add_point(panels, "Teacher interventions", "per cent of tasks", kind, [label, share, 0, n])


def add_training(panels: Panels, folder: Path) -> None:
    """The numbers of metrics.jsonl over the steps, at most about 400 points of each."""
    metrics = read_records(folder / "metrics.jsonl", "step")
    for row in metrics[::1 + len(metrics) // 400]:
        for field, number in row.items():
            if field == "step" or not isinstance(number, (int, float)) or not math.isfinite(number):
                continue
            title = field.replace("_", " ")
            for together in ("reward", "seconds"):         # one chart for reward, reward_correct …
                if field.startswith(together):
                    title = together
            section = f"Training: {folder.name}"
            if "reward" not in row:
                section = "Training, supervised"
                title = f"{folder.name}, {title}"
            add_point(panels, section, title, field, [row["step"], number, 0, 1])


# ---- trajectories on the page ----

def choose(sources: dict[str, list[Record]], total: int) -> list[Record]:
    """Up to `total` trajectories: of each source equally many if it has them, taken at even distances."""
    shares: dict[str, int] = {}
    for i, name in enumerate(sorted(sources, key=lambda name: len(sources[name]))):    # the smallest first
        equal_share = (total - sum(shares.values())) // (len(sources) - i)
        shares[name] = min(len(sources[name]), equal_share)
    chosen = []
    for name, trajectories in sources.items():
        for k in range(shares[name]):
            chosen.append(trajectories[k * len(trajectories) // shares[name]] | {"source": name})
    return chosen


def cut(value: Any, characters: int) -> Any:
    """The same value, with every text in it cut to that many characters."""
    if isinstance(value, dict):
        return {name: cut(part, characters) for name, part in value.items()}
    if isinstance(value, list):
        return [cut(part, characters) for part in value]
    if isinstance(value, str):
        return value[:characters]
    return value


def pack(trajectories: list[Record], characters: int) -> tuple[str, int]:
    """-> gzipped JSON in base64, and the characters that it holds of a text: halved until it is small."""
    while True:
        text = json.dumps(cut(trajectories, characters))
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        if len(packed) <= LARGEST_PACK or characters <= 50:
            return packed, characters
        characters //= 2


# ---- drawing ----

def draw_bars(ax: Axes, series: Series) -> None:
    """A group of bars for each name on the x axis, one bar for each series."""
    labels = list(dict.fromkeys(point[0] for points in series.values() for point in points))
    width = 0.8 / len(series)
    for i, (name, points) in enumerate(series.items()):
        x, y, error, _ = zip(*points)
        at = [labels.index(label) + (i + 0.5) * width - 0.4 for label in x]
        bars = ax.bar(at, y, width * 0.94, yerr=error if any(error) else None, label=name,
                      color=COLORS[i % len(COLORS)])
        if width / len(labels) > 0.1:
            ax.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    if sum(map(len, labels)) > 30:
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    else:
        ax.set_xticks(range(len(labels)), labels, rotation=0, ha="center")


def draw_lines(ax: Axes, series: Series) -> None:
    """A line for each series; points are marked where there are few."""
    for i, (name, points) in enumerate(series.items()):
        x, y, error, _ = zip(*sorted(points))
        few = len(x) <= 12
        marker_size = 4
        if len(series) <= 4:                               # smaller and smaller: equal points look like rings
            marker_size = 2 + 2 * (len(series) - i)
        ax.errorbar(x, y, yerr=error if any(error) else None, label=name.replace("_", " "),
                    color=COLORS[i % len(COLORS)], linestyle="-" if i < len(COLORS) else "--", clip_on=False,
                    linewidth=1.6 if few else 1, marker="o" if few else None, markersize=marker_size)
    ax.set_xticks(x if few else [x[0], x[len(x) // 2], x[-1]])


def draw_legend(ax: Axes, series: Series) -> None:
    """Above the chart for up to four series, below it for more; none for one."""
    style = {"fontsize": 8, "frameon": False, "borderpad": 0, "columnspacing": 1, "handlelength": 1}
    if 1 < len(series) < 5:
        ax.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.02, 1), **style)
    elif len(series) >= 5:
        ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), **style)


def draw(panels: list[Record], path: Path) -> None:
    """One PNG of the panels of a section."""
    from matplotlib.figure import Figure
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    for at, panel in enumerate(panels, 1):
        ax = figure.add_subplot(rows, columns, at)
        series = panel["series"]
        first_point = next(iter(series.values()))[0]
        if isinstance(first_point[0], str):
            draw_bars(ax, series)
        else:
            draw_lines(ax, series)
        ax.set_title(panel["title"], fontsize=10, fontweight="bold", loc="left")
        if panel["section"].startswith(("Accuracy", "Hard")):
            ax.set_ylim(0, 108)                            # per cent, with room for the numbers on the bars
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="y", color="#dfe3e8")
        ax.tick_params(length=0, labelsize=9, colors="#5b6470")
        ax.set_axisbelow(True)
        draw_legend(ax, series)
    figure.savefig(path, dpi=110)


def make_page(run_dir: Path, panels: list[Record], all_results: list[Record],
              sources: dict[str, list[Record]], trajectories: int, characters: int) -> None:
    """Write RUN/report.html and RUN/plots/*.png from what `collect` found.

    trajectories: how many are on the page; characters: how many of a text at most.
    """
    tables = [results_table(results) for results in all_results]
    if stages_of(run_dir):
        tables.append(cost_tables(run_dir))
    shown = choose(sources, trajectories)
    packed, characters = pack(shown, characters)
    summary = {"name": run_dir.absolute().name, "created": f"{datetime.now():%Y-%m-%d %H:%M}",
               "panels": panels, "tables": tables,
               "characters": characters,
               "counts": {name: len(found) for name, found in sources.items()}}
    page = TEMPLATE.read_text(encoding="utf-8").replace("__TRAJECTORIES__", packed)
    page = page.replace("__SUMMARY__", json.dumps(summary).replace("<", "\\u003c"))    # no </script> inside
    (run_dir / "report.html").write_text(page, encoding="utf-8")
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    for section in dict.fromkeys(panel["section"] for panel in panels):
        name = re.sub(r"\W+", "-", section.lower()) + ".png"
        draw([panel for panel in panels if panel["section"] == section], plots / name)
    print(f"{run_dir}/report.html: {len(page) / 1e6:.1f} MB, {len(shown)} trajectories; plots: {plots}")
