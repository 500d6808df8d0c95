"""What `eval.py report` writes: one HTML page that opens from disk, and the same charts as PNG files.

A chart is a panel {"section", "title", "series": {name: [[x, y, error, n]…]}}, drawn as bars where x is a
name and as lines where it is a number. The page is report.html of this folder; it holds the panels as JSON
and the trajectories as gzipped JSON, which the browser unpacks.
"""
import base64
import gzip
import json
import re
from datetime import datetime
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent / "report.html"


def choose(sources, total, characters):
    """Up to `total` trajectories, at even distances; shares of sources as equal as sizes allow."""
    shares = {}
    for i, name in enumerate(sorted(sources, key=lambda name: len(sources[name]))):
        shares[name] = min(len(sources[name]), (total - sum(shares.values())) // (len(sources) - i))
    for name, k in [(name, k) for name in sources for k in range(shares[name])]:
        t = sources[name][k * len(sources[name]) // shares[name]]
        messages = [m | dict(content=m["content"][:characters]) for m in t["messages"]]
        yield t | dict(source=name, messages=messages)


def draw(panels, path):
    """One PNG of the panels of a section."""
    from matplotlib.figure import Figure
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    for at, panel in enumerate(panels, 1):
        ax, series = figure.add_subplot(rows, columns, at, title=panel["title"]), panel["series"]
        labels = list(dict.fromkeys(point[0] for points in series.values() for point in points))
        for i, (name, points) in enumerate(series.items()):
            x, y, error, _ = zip(*points)
            how, width = dict(yerr=error if any(error) else None, capsize=2, label=name), 0.8 / len(series)
            if isinstance(x[0], str):
                ax.bar([labels.index(v) + (i + 0.5) * width - 0.4 for v in x], y, width * 0.92, **how)
                ax.set_xticks(range(len(labels)), labels)
            else:
                ax.errorbar(x, y, marker="o" if len(x) <= 12 else None, markersize=4, **how)
        if len(series) > 1:
            ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def make_page(run_dir, panels, tables, sources, trajectories, characters):
    """Writes RUN/report.html and RUN/plots/; `sources`: name -> its trajectories, up to so many are shown."""
    shown = list(choose(sources, trajectories, characters))
    packed = base64.b64encode(gzip.compress(json.dumps(shown).encode(), mtime=0)).decode()
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
