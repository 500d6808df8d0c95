"""What `eval.py report` writes: one HTML page that opens from disk, and the same charts as PNG files.

A chart is a panel {"section", "title", "series": {name: [[x, y, error, n]…]}}, drawn as bars where x is a
name and as lines where it is a number. The page is assets/report.html; it holds the panels as JSON
and the trajectories as gzipped JSON, which the browser unpacks.
"""
import base64
import gzip
import json
import re
from datetime import datetime
from pathlib import Path

COLORS = ["#2563b8", "#d97706", "#178a5c", "#b0378a", "#6d5bd0", "#64748b"]                # --c0… of the page
TEMPLATE = Path(__file__).resolve().parent.parent / "assets" / "report.html"


def choose(sources, total):
    """Up to `total` trajectories, at even distances; shares of sources as equal as sizes allow."""
    shares = {}
    for i, name in enumerate(sorted(sources, key=lambda name: len(sources[name]))):
        shares[name] = min(len(sources[name]), (total - sum(shares.values())) // (len(sources) - i))
    return [sources[name][k * len(sources[name]) // shares[name]] | dict(source=name)
            for name in sources for k in range(shares[name])]


def cut(value, characters):
    """The same, every text in it no longer than that."""
    if isinstance(value, dict):
        return {name: cut(part, characters) for name, part in value.items()}
    if isinstance(value, list):
        return [cut(part, characters) for part in value]
    return value[:characters] if isinstance(value, str) else value


def pack(trajectories, characters):
    """-> gzipped JSON in base64, and the characters a text may have so that it is at most 4.5 MB."""
    while True:
        text = json.dumps(cut(trajectories, characters))
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        if len(packed) <= 4.5e6 or characters <= 50:
            return packed, characters
        characters //= 2


def draw_bars(ax, series):
    labels = list(dict.fromkeys(point[0] for points in series.values() for point in points))
    width, tilted = 0.8 / len(series), sum(map(len, labels)) > 30
    for i, (name, points) in enumerate(series.items()):
        at = [labels.index(label) + (i + 0.5) * width - 0.4 for label, *_ in points]
        _, y, error, _ = zip(*points)
        bars = ax.bar(at, y, width * 0.94, yerr=error if any(error) else None, label=name,
                      color=COLORS[i % 6])
        if width / len(labels) > 0.1:
            ax.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    ax.set_xticks(range(len(labels)), labels, rotation=40 * tilted, ha="right" if tilted else "center")


def draw_lines(ax, series):
    for i, (name, points) in enumerate(series.items()):
        x, y, error, _ = zip(*sorted(points))
        few = len(x) <= 12
        ax.errorbar(x, y, yerr=error if any(error) else None, label=name.replace("_", " "),
                    color=COLORS[i % 6], linewidth=1.6 if few else 1, marker="o" if few else None,
                    linestyle="--" if i > 5 else "-", clip_on=False,
                    markersize=4 if len(series) > 4 else 2 + 2 * (len(series) - i))    # equal points: rings
    ax.set_xticks(x if few else [x[0], x[len(x) // 2], x[-1]])


def draw(panels, path):
    """One PNG of the panels of a section."""
    from matplotlib.figure import Figure
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    for at, panel in enumerate(panels, 1):
        ax, series = figure.add_subplot(rows, columns, at), panel["series"]
        bars = isinstance(next(iter(series.values()))[0][0], str)
        (draw_bars if bars else draw_lines)(ax, series)
        ax.set_title(panel["title"], fontsize=10, fontweight="bold", loc="left")
        if panel["section"].startswith(("Accuracy", "Hard")):
            ax.set_ylim(0, 108)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="y", color="#dfe3e8")
        ax.tick_params(length=0, labelsize=9, colors="#5b6470")
        ax.set_axisbelow(True)
        if len(series) > 1:
            beside = dict(ncols=4, loc="lower right", bbox_to_anchor=(1.02, 1))
            below = dict(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
            ax.legend(fontsize=8, frameon=False, borderpad=0, columnspacing=1, handlelength=1,
                      **beside if len(series) < 5 else below)
    figure.savefig(path, dpi=110)


def make_page(run_dir, panels, tables, sources, trajectories, characters):
    """Writes RUN/report.html and RUN/plots/; `sources`: name -> its trajectories, up to so many are shown."""
    shown = choose(sources, trajectories)
    packed, characters = pack(shown, characters)
    summary = dict(name=run_dir.absolute().name, created=f"{datetime.now():%Y-%m-%d %H:%M}", panels=panels,
                   tables=tables, characters=characters,
                   counts={name: len(found) for name, found in sources.items()})
    page = TEMPLATE.read_text(encoding="utf-8").replace("__TRAJECTORIES__", packed)
    page = page.replace("__SUMMARY__", json.dumps(summary).replace("<", "\\u003c"))
    (run_dir / "report.html").write_text(page, encoding="utf-8")
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    for section in dict.fromkeys(panel["section"] for panel in panels):
        name = re.sub(r"\W+", "-", section.lower()) + ".png"
        draw([panel for panel in panels if panel["section"] == section], plots / name)
    print(f"{run_dir}/report.html: {len(page) / 1e6:.1f} MB, {len(shown)} trajectories; plots: {plots}")
