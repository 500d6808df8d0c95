"""The page of the study: demo/study.md with the tables that the files of demo/study.sh give.

  python demo/study.py runs/study              # writes runs/study/RESULTS.md and runs/study/study.png
  python demo/study.py runs/study --out demo --again runs/sixth     # the repository's page and picture

Every number in a table comes from a file of a run: eval/*/results.json and predictions.jsonl, mps/mps.jsonl,
ckpt/*/metrics.jsonl and args.json, done/* (seconds). What was not run is shown as –.
"""
import argparse
import json
import re
import statistics
from collections import Counter
from pathlib import Path

import teacher

SCORE_SFT = ["demonstrate-bc", "bc", "mps", "sft"]
ARMS = {                                               # arm: name, the stages that made it
    "bc": ("BC-init", ["demonstrate-bc", "bc"]),
    "bc-all": ("BC on all data", ["demonstrate-bc", "demonstrate-mps", "bc-all"]),
    "grpo-bc": ("plain GRPO from BC-init", ["demonstrate-bc", "bc", "grpo-bc"]),
    "sft": ("SCoRe-SFT", SCORE_SFT),
    "sft-more": ("SCoRe-SFT, continued", [*SCORE_SFT, "sft-more"]),
    "grpo-sft": ("plain GRPO from SCoRe-SFT", [*SCORE_SFT, "grpo-sft"]),
    "rl-no-horizon": ("SCoRe-RL without short horizon", [*SCORE_SFT, "rl-no-horizon"]),
    "rl-no-key": ("SCoRe-RL without key-step reward", [*SCORE_SFT, "rl-no-key"]),
    "rl": ("SCoRe-RL", [*SCORE_SFT, "rl"])}
ORDERINGS = [                                # better, worse, what the paper says
    ("sft", "bc", "44.5 against 41.7 on average (Table 3)"),
    ("sft", "bc-all", "45.8 against 42.5 on average (Table 1)"),
    ("rl", "sft", "50.8 against 44.5 on average (Table 3)"),
    ("rl", "sft-more", "SFT on twice the data gives no clear gain, RL does (Figure 4)"),
    ("rl", "grpo-bc", "50.8 against 48.4 on average (Table 1, which does not say where its GRPO starts)"),
    ("rl", "grpo-sft", "50.8 against 48.4 on average (Table 1, which does not say where its GRPO starts)"),
    ("rl", "rl-no-horizon", "50.8 against 48.4 on average (Table 3)"),
    ("rl", "rl-no-key", "50.8 against 49.7 on average (Table 3)")]
STUDENT_T = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # 95 %, by seeds


# ---- files ----

def read_jsonl(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")] if path.exists() else []


class Run:
    """A seed's folder, or that of one of its controls."""

    def __init__(self, folder):
        self.folder, self.cache = folder, {}
        probe = read_jsonl(folder / "probe" / "mps.jsonl")
        self.hard = {r["id"] for r in probe if r["outcome"] == "hard"}     # two corrections did not do

    def predictions(self, arm, how, **part):
        """Of one evaluation those of the tasks with these fields; none if it was not run to its end."""
        if (arm, how) not in self.cache:
            path = self.folder / "eval" / f"{arm}-{how}"
            whole = (path / "results.json").exists()
            found = read_jsonl(path / "predictions.jsonl") if whole else []
            self.cache[arm, how] = [{**p, "hard": p["id"] in self.hard} for p in found]
        return [p for p in self.cache[arm, how] if part.items() <= p.items()]

    def scores(self, arm, how, **part):
        """{task id: score in per cent}; None if there are none."""
        return {p["id"]: 100 * p["score"] for p in self.predictions(arm, how, **part)} or None

    def accuracy(self, arm, how, **part):
        scores = self.scores(arm, how, **part)
        return scores and statistics.fmean(scores.values())

    def seconds(self, stage):
        """User and system seconds of a stage; None if it was not run."""
        path = self.folder / "done" / stage
        return sum(map(float, path.read_text().split()[1:3])) if path.exists() else None


def spread(values, form="{:.1f}"):
    """mean ± standard deviation over seeds of what is there."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    sd = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + sd


def markdown(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# ---- orderings ----

def difference(runs, better, worse, how, **part):
    """Mean difference in points and its 95 % interval -> (mean, low, high, number of seeds) or None.

    Three seeds and more: Student's t over the seeds' differences, which holds all there is of chance. Fewer:
    over the tasks, paired, pooled over the seeds; the chance in a student's training is then left out.
    """
    pairs = [(run.scores(better, how, **part), run.scores(worse, how, **part)) for run in runs]
    pairs = [(a, b) for a, b in pairs if a and b]
    if not pairs:
        return None
    if len(pairs) > 2:
        d = [statistics.fmean(a.values()) - statistics.fmean(b.values()) for a, b in pairs]
        width = STUDENT_T[min(len(d), 10)]
    else:
        d, width = [a[i] - b[i] for a, b in pairs for i in a], 1.96
    half = width * (statistics.stdev(d) if len(d) > 1 else 0) / len(d) ** 0.5
    mean = statistics.fmean(d)
    return mean, mean - half, mean + half, len(pairs)


def verdict(found):
    if found is None:
        return "not run"
    _, low, high, _ = found
    return "holds" if low > 0 else "does not hold" if high < 1 else "not resolved by this much data"


def points(found):
    if found is None:
        return "–"
    mean, low, high, n = found
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}{'' if n > 2 else ', over tasks'})"


REFUTED = "held in these seeds, not in a further one"


def orderings(runs, further):
    """A paragraph on each, and the verdicts {(better, worse): verdict}. `further`: runs of other seeds."""
    text, verdicts = [], {}
    for better, worse, claim in ORDERINGS:
        found = {how: difference(runs, better, worse, how) for how in ("sampled", "greedy", "beyond")}
        said, check = verdict(found["sampled"]), difference(further, better, worse, "sampled")
        said = verdicts[better, worse] = REFUTED if said == "holds" and check and check[0] <= 0 else said
        text.append(f"**{ARMS[better][0]} above {ARMS[worse][0]}: {said}.** The paper: "
                    f"{claim}. Here: sampled {points(found['sampled'])} points, "
                    f"greedy {points(found['greedy'])}, on the longer tasks {points(found['beyond'])}.")
    return "\n\n".join(text), verdicts


def again(further, verdicts):
    """Were the orderings that hold reproduced by seeds that had no part in them?"""
    rows = []
    for pair in (pair for pair, said in verdicts.items() if said in ("holds", REFUTED)):
        found = [difference(further, *pair, how) for how in ("sampled", "greedy")]
        said = "not run" if found[0] is None else "no" if verdicts[pair] == REFUTED else "yes"
        rows.append([f"{ARMS[pair[0]][0]} above {ARMS[pair[1]][0]}", said, *map(points, found)])
    return (f"{provenance(further)}\n\n{seeds_table(further)}\n\n"
            + markdown(["held above", "reproduced", "sampled, points (95 %)", "greedy"], rows))


# ---- tables ----

def accuracy_table(runs):
    columns = {"greedy": ("greedy", {}), "sampled": ("sampled", {}),
               "mathematics, sampled": ("sampled", dict(kind="math")),
               "search, sampled": ("sampled", dict(kind="search")), "longer tasks, greedy": ("beyond", {})}
    rows = [[name, *(spread([run.accuracy(arm, how, **part) for run in runs])
                     for how, part in columns.values())] for arm, (name, _) in ARMS.items()]
    return markdown(["arm", *columns], rows)


def seeds_table(runs):
    """The three stages seed by seed; gains with their standard errors, paired over tasks."""
    rows = []
    for run in runs:
        for how in ("greedy", "sampled"):
            scores = [run.scores(arm, how) for arm in ("bc", "sft", "rl")]
            cells = [f"{statistics.fmean(s.values()):.1f}" if s else "–" for s in scores]
            for worse, better in zip(scores, scores[1:]):
                gains = [better[i] - worse[i] for i in better] if better and worse else []
                se = statistics.stdev(gains) / len(gains) ** 0.5 if gains else 0
                cells.append(f"{statistics.fmean(gains):+.1f} ± {se:.1f}" if gains else "–")
            rows.append([f"{run.folder.name.removeprefix('seed-')}, {how}", *cells])
    return markdown(["seed", "BC-init", "SCoRe-SFT", "SCoRe-RL", "SFT − BC-init", "RL − SFT"], rows)


def costs(run, arm):
    """What the arm took in one seed, all its stages together -> {column: number}, None if it was not run."""
    total, stages = Counter(), ARMS[arm][1]
    files = {"demonstrate-bc": "bc.jsonl", "demonstrate-mps": "mps.jsonl", "mps": "mps/mps.jsonl"}
    if run.seconds(stages[-1]) is None:
        return None
    for stage in stages:
        total["seconds"] += run.seconds(stage) or 0
        for record in read_jsonl(run.folder / files[stage]) if stage in files else []:
            total["tasks"] += 1
            total["teacher"] += record["usage"].get("teacher_completion_tokens", 0)
            total["generated"] += record["usage"].get("student_tokens", 0)
        settings = run.folder / "ckpt" / stage / "args.json"
        if stage not in files and settings.exists():
            args = json.loads(settings.read_text())["args"]
            metrics = read_jsonl(settings.parent / "metrics.jsonl")
            if "group" in args:
                rollouts = args["prompts"] * args["group"]             # of a step
                total["rollouts"] += len(metrics) * rollouts
                total["generated"] += sum(m["response_tokens"] for m in metrics) * rollouts
            else:
                total["examples"] += len(metrics) * args["batch"]
    if arm == "grpo-bc":                             # its questions are those of SCoRe's RL data
        total["tasks"] += len({r["id"] for r in read_jsonl(run.folder / "mps" / "rl.jsonl")})
    return total


def budget_table(runs):
    columns = dict(tasks="tasks seen", teacher="tokens written by the teacher",
                   examples="trajectories in SFT steps", rollouts="RL rollouts",
                   generated="tokens generated by the student", seconds="CPU-seconds")
    rows = []
    for arm, (name, _) in ARMS.items():
        found = [c for c in (costs(run, arm) for run in runs) if c]
        rows.append([name, *(f"{statistics.fmean(c[k] for c in found):,.0f}" if found else "–"
                             for k in columns)])
    return markdown(["arm", *columns.values()], rows)


def interventions_table(runs):
    """Figure 3a: shares of MPS tasks by the number of corrections, and corrections by the task's length."""
    def label(r):
        return "not solved: hard" if r["outcome"] == "hard" else str(r["interventions"])

    def of(run, **part):
        records = read_jsonl(run.folder / "mps" / "mps.jsonl")
        return [r for r in records if r["outcome"] != "failed" and part.items() <= r.items()]

    shares, lengths, kinds = [], [], ("math", "search")
    for name in [*map(str, range(6)), "not solved: hard"]:
        shares.append([name, *(spread([100 * statistics.fmean(label(r) == name for r in of(run, kind=kind))
                                       for run in runs]) for kind in kinds)])
    for length in range(2, 7):
        found = [[of(run, kind=kind, horizon=length) for run in runs] for kind in kinds]
        lengths.append([length, *(spread([statistics.fmean(r["interventions"] for r in records)
                                          for records in seeds if records], "{:.2f}") for seeds in found)])
    needed = [[r["interventions"] for r in of(run, outcome="corrected")] for run in runs]
    single = [100 * n.count(1) / len(n) for n in needed if n]
    said = "holds" if single and min(single) > 50 else "does not hold"
    return "\n\n".join([
        markdown(["teacher's corrections", "mathematics, % of tasks", "search, % of tasks"], shares),
        f"Of the tasks solved with corrections, {spread(single)} % needed a single one. **Most need a single "
        f"one: {said}** (the rule here: more than half, in every seed).",
        markdown(["amounts or searches in the task", "mathematics, corrections a task",
                  "search, corrections a task"], lengths)])


def hard_table(runs):
    """Figure 3b: held-out tasks that two corrections of BC-init did not solve."""
    rows = []
    for arm in ("bc", "bc-all", "sft", "sft-more", "grpo-sft", "rl"):
        cells = []
        for kind in ("math", "search"):
            scores = [score for run in runs
                      for score in (run.scores(arm, "sampled", hard=True, kind=kind) or {}).values()]
            se = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0
            cells += [f"{statistics.fmean(scores):.1f} ± {se:.1f}" if scores else "–", len(scores)]
        rows.append([ARMS[arm][0], *cells])
    table = markdown(["arm", "mathematics, sampled, % ± standard error", "n, all seeds", "search", "n"], rows)
    said = []
    for better, worse in ("sft", "bc"), ("rl", "sft"):
        found = difference(runs, better, worse, "sampled", hard=True)
        said.append(f"**{ARMS[better][0]} above {ARMS[worse][0]} on hard tasks: {verdict(found)}** "
                    f"({points(found)} points).")
    return f"{table}\n\n{' '.join(said)}"


def scale_points(runs):
    """Figure 4 -> {arm: (mean number of trajectories, {decoding: accuracies})}."""
    files, found = dict.fromkeys(("sft", "rl"), "mps/sft.jsonl"), {}
    for arm in ("sft-quarter", "sft-half", "sft", "sft-all", "rl"):
        used = [run for run in runs if run.accuracy(arm, "sampled") is not None]
        if used:
            file = files.get(arm, f"{arm}.jsonl")
            size = statistics.fmean(len(read_jsonl(run.folder / file)) for run in used)
            found[arm] = size, {how: [run.accuracy(arm, how) for run in used]
                                for how in ("greedy", "sampled")}
    return found


def scale_table(runs):
    names = {"sft-quarter": "SFT, a quarter", "sft-half": "SFT, half", "sft": "SFT (SCoRe-SFT)",
             "sft-all": "SFT, twice: the RL half too", "rl": "SFT, then RL on the other half (SCoRe-RL)"}
    table = markdown(["data", "corrected trajectories", "greedy", "sampled"],
                     [[names[arm], f"{size:.0f}", spread(a["greedy"]), spread(a["sampled"])]
                      for arm, (size, a) in scale_points(runs).items()])
    more = difference(runs, "sft-all", "sft", "sampled")
    said = ("not run" if more is None else "does not hold" if more[1] > 0 else "holds" if more[2] < 1
            else "not resolved by this much data")
    best = difference(runs, "rl", "sft-all", "sampled")
    return (f"{table}\n\n**Twice the SFT data, no clear gain: {said}** ({points(more)} points, sampled). "
            f"**RL above SFT on twice the data: {verdict(best)}** ({points(best)}).")


LONGEST = dict(math=(6, 8), search=(5, 7))               # in training, and among the longer tasks


def at_length(runs, arm, kind, length):
    """Greedy accuracies of the seeds on tasks of a length."""
    how = "greedy" if length <= LONGEST[kind][0] else "beyond"
    found = [run.accuracy(arm, how, kind=kind, horizon=length) for run in runs]
    return [a for a in found if a is not None]


def wrong_steps(prediction):
    """How many steps of a run the teacher finds wrong: the cost of the paper's equation 3."""
    task = teacher.Task(prediction["question"])
    steps = [m["content"] for m in prediction["messages"] if m["role"] == "assistant"]
    return sum(task.take(content, first=k == 0) == "wrong" for k, content in enumerate(steps))


def cost_table(runs):
    rows = []
    for arm in ("bc", "bc-all", "sft", "sft-more", "grpo-sft", "rl"):
        cells = []
        for n in range(2, LONGEST["math"][1] + 1):
            how = "greedy" if n <= LONGEST["math"][0] else "beyond"
            played = [run.predictions(arm, how, kind="math", horizon=n) for run in runs]
            cells.append(spread([statistics.fmean(map(wrong_steps, p)) for p in played if p], "{:.2f}"))
        rows.append([ARMS[arm][0], *cells])
    return markdown(["mathematics, amounts", *range(2, LONGEST["math"][1] + 1)], rows)


def horizon_table(runs, kind):
    trained, last = LONGEST[kind]
    rows = [[name, *(spread(at_length(runs, arm, kind, n), "{:.0f}") for n in range(2, last + 1))]
            for arm, (name, _) in ARMS.items()]
    return markdown([{"math": "mathematics, amounts", "search": "search, searches"}[kind],
                     *(f"{n}{' (longer)' if n > trained else ''}" for n in range(2, last + 1))], rows)


def leap_table(runs):
    """Control: a teacher that does not leap when it demonstrates."""
    pairs = [(run, Run(run.folder / "leap0")) for run in runs]
    pairs = [(run, control) for run, control in pairs if control.accuracy("sft", "sampled") is not None]
    rows = [[ARMS[arm][0], *(spread([run.accuracy(arm, how) for run in of])
                             for how in ("greedy", "sampled") for of in zip(*pairs))]
            for arm in ("bc", "bc-all", "sft") if pairs]
    return markdown([f"arm (seeds: {len(pairs)})", "leaps, greedy", "no leaps, greedy", "leaps, sampled",
                     "no leaps, sampled"], rows)


def noise_table(runs):
    """Control: a teacher whose verdicts name another step than the first wrong one."""
    done = [run for run in runs if Run(run.folder / "noise40").accuracy("sft", "sampled") is not None]
    rows = []
    for share in (0, 20, 40):
        of = [Run(run.folder / f"noise{share}") if share else run for run in done]
        mps = [read_jsonl(run.folder / "mps" / "mps.jsonl") for run in of]
        hard = [100 * statistics.fmean(r["outcome"] == "hard" for r in records) for records in mps if records]
        kept = [len(read_jsonl(run.folder / "mps" / "sft.jsonl")) for run in of]
        rows.append([f"{share} %", *(spread([run.accuracy("sft", how) for run in of])
                                     for how in ("greedy", "sampled")), spread(hard), spread(kept, "{:.0f}")])
    return markdown([f"wrong steps named (seeds: {len(done)})", "SCoRe-SFT, greedy", "SCoRe-SFT, sampled",
                     "MPS tasks not solved, %", "trajectories for SFT"], rows)


RECIPES = {"rl-again": "SCoRe-RL, drawn once more: lr 2e-4, temperature 1", "rl-lr-low": "lr 5e-5",
           "rl-lr-high": "lr 1e-3", "rl-cool": "temperature 0.6",
           "rl-no-horizon": "from the question, without short horizon",
           "rl-longer": "9/5 of the steps: as many tokens as from the question",
           "rl-no-negative": "negative advantages set to 0"}


def recipe_table(runs):
    """Settings of RL, one changed at a time: its log over the first and the last 8 steps, accuracy on dev."""
    done = [run for run in runs if run.accuracy("rl-again", "dev-sampled") is not None]
    rows = [["SCoRe-SFT, where all start", *"–––", *(spread([run.accuracy("sft", how) for run in done])
                                                      for how in ("dev-greedy", "dev-sampled"))]]
    for arm, name in RECIPES.items():
        logs = [read_jsonl(run.folder / "ckpt" / arm / "metrics.jsonl") for run in done]

        def course(field, scale=1, form="{:.0f}"):
            ends = [[scale * statistics.fmean(m.get(field, 0) for m in part) for part in (log[:8], log[-8:])]
                    for log in logs if log and field in log[0]]
            return " → ".join(form.format(statistics.fmean(end)) for end in zip(*ends)) or "–"
        rows.append([name, course("reward_correct", 100), course("zero_variance", 100),
                     course("entropy", 1, "{:.3f}"), *(spread([run.accuracy(arm, how) for run in done])
                                                       for how in ("dev-greedy", "dev-sampled"))])
    seeds = ", ".join(run.folder.name.removeprefix("seed-") for run in done)
    return markdown([f"RL, seed {seeds}", "rollouts right, %", "groups without variance, %",
                     "entropy, nats a token", "dev, greedy", "dev, sampled"], rows)


# ---- plot and page ----

def draw(runs, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)

    def add(ax, xs, ys, **how):
        ax.errorbar(xs, [statistics.fmean(y) for y in ys], capsize=2,
                    yerr=[statistics.stdev(y) if len(y) > 1 else 0 for y in ys], **dict(ms=4) | how)

    for ax, (kind, (trained, last)) in zip(axes, LONGEST.items()):
        for arm in ("bc", "bc-all", "sft", "sft-more", "grpo-sft", "rl"):
            points = [(n, y) for n in range(2, last + 1) if (y := at_length(runs, arm, kind, n))]
            if points:
                add(ax, *zip(*points), marker="o", label=ARMS[arm][0])
        ax.axvline(trained + 0.5, color="0.7", linestyle=":")
        ax.set(xlabel=dict(math="amounts", search="searches")[kind], ylim=(-3, 103))
        ax.set_title(f"{kind}, greedy; right of the line: longer than trained", fontsize=9)
    for how, color in ("greedy", "C0"), ("sampled", "C1"):
        points = {arm: (size, accuracies[how]) for arm, (size, accuracies) in scale_points(runs).items()}
        rl = points.pop("rl", None)
        add(axes[2], *zip(*points.values()), marker="o", color=color, label=f"SFT, {how}")
        if rl and "sft-all" in points:                   # SFT on half of these, RL on the other half
            shift = 15 if how == "greedy" else 35
            add(axes[2], [points["sft-all"][0] + shift], [rl[1]], marker="*", color=color, linestyle="",
                label=f"SFT on half, RL on the rest, {how}", ms=11)
    axes[2].set(xlabel="corrected trajectories, or tasks of RL", ylim=(None, 103))
    axes[2].set_title("Figure 4: data for SFT, and RL", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=6, fontsize=7,
                  frameon=False)
    axes[2].legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def provenance(runs):
    folders = [run.folder for run in runs]
    commits, others, of_others = set(), set(), re.compile("|".join([*RECIPES, "-dev-"]))
    for path in (path for f in folders for path in f.glob("**/args.json")):
        commit = json.loads(path.read_text())["commit"][:12]
        (others if of_others.search(str(path)) else commits).add(commit)
    times = [path.read_text().split()[1:3] for f in folders for path in f.glob("**/done/[!.]*")]
    tasks = {len(run.scores("sft", "greedy")) for run in runs}
    return (f"Seeds {', '.join(f.name.removeprefix('seed-') for f in folders)}, {'/'.join(map(str, tasks))} "
            f"held-out tasks each; commit {', '.join(sorted(commits)) or 'unknown'}"
            f"{' (not all of one state of the code)' if len(commits) > 1 else ''}"
            f"{', settings of RL: ' + ', '.join(sorted(others - commits)) if others - commits else ''}; "
            f"{sum(float(t) for user_system in times for t in user_system) / 3600:.1f} CPU-hours.")


def load_runs(folder, seeds=None):
    folders = sorted(folder.glob("seed-*"), key=lambda f: int(f.name.removeprefix("seed-")))
    if seeds:
        folders = [f for f in folders if f.name.removeprefix("seed-") in seeds.split()]
    runs = [run for run in map(Run, folders) if run.accuracy("sft", "greedy") is not None]
    if not runs:
        raise SystemExit(f"{folder} holds no seed with an evaluated SCoRe-SFT")
    return runs


def main(args):
    runs, out = load_runs(args.run, args.seeds), args.out or args.run
    further = load_runs(args.again) if args.again else []
    text, verdicts = orderings(runs, further)
    parts = dict(provenance=provenance(runs), accuracy=accuracy_table(runs), seeds=seeds_table(runs),
                 budgets=budget_table(runs), orderings=text, interventions=interventions_table(runs),
                 hard=hard_table(runs), scale=scale_table(runs), cost=cost_table(runs),
                 leap=leap_table(runs), noise=noise_table(runs), recipes=recipe_table(runs),
                 again=again(further, verdicts) if further else "Not run.",
                 horizon="\n\n".join(horizon_table(runs, kind) for kind in LONGEST))
    page = (Path(__file__).parent / "study.md").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], page)
    (out / "RESULTS.md").write_text(page, encoding="utf-8")
    draw(runs, out / "study.png")
    print(parts["accuracy"], *(f"{b} above {w}: {v}" for (b, w), v in verdicts.items()), sep="\n")
    print(f"{out}/RESULTS.md, {out}/study.png: {parts['provenance']}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("run", type=Path, help="folder of demo/study.sh")
    p.add_argument("--out", type=Path, help="folder for RESULTS.md and study.png (default: RUN itself)")
    p.add_argument("--seeds", help="only these seeds, as \"5\" or \"0 1\" (default: all)")
    p.add_argument("--again", type=Path, help="another folder, of other seeds: does what holds hold there? (default: none)")
    main(p.parse_args())
