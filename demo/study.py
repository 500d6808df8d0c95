"""The page of the study: demo/study.md with the tables that the files of demo/study.sh give.

  python demo/study.py runs/study              # writes runs/study/RESULTS.md and runs/study/study.png
  python demo/study.py runs/study --out demo --again runs/further   # the repository's page and picture

Every number in a table comes from a file of a run: eval/*/results.json and predictions.jsonl, mps*/mps.jsonl,
ckpt/*/metrics.jsonl and args.json, done/* (seconds). What was not run is shown as –.
"""
import argparse
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import teacher
from plumbing.costs import in_records

Record = dict[str, Any]
Difference = tuple[float, float, float, int]           # mean, the ends of its 95 % interval, number of seeds

SCORE_SFT = ["demonstrate-bc", "bc", "mps", "sft"]
ARMS = {                                               # arm: name, the stages that made it
    "bc": ("BC-init", ["demonstrate-bc", "bc"]),
    "bc-all": ("BC on all data", ["demonstrate-bc", "demonstrate-mps", "bc-all"]),
    "dpo": ("DPO on the corrections", ["demonstrate-bc", "bc", "mps", "dpo"]),
    "resample": ("SFT, steps drawn again", ["demonstrate-bc", "bc", "mps-resample", "resample"]),
    "self": ("SFT, self-correction", ["demonstrate-bc", "bc", "mps-self", "self"]),
    "sft": ("SCoRe-SFT", SCORE_SFT),
    "sft-more": ("SCoRe-SFT, continued", [*SCORE_SFT, "sft-more"]),
    "dpo-rl": ("SCoRe-SFT, then DPO", [*SCORE_SFT, "dpo-rl"]),
    "arpo": ("SCoRe-SFT, then ARPO", [*SCORE_SFT, "arpo"]),
    "grpo-bc": ("plain GRPO from BC-init", ["demonstrate-bc", "bc", "grpo-bc"]),
    "rl-question": ("RL from the question (plain GRPO)", [*SCORE_SFT, "rl-question"]),
    "rl-no-key": ("SCoRe-RL without key-step reward", [*SCORE_SFT, "rl-no-key"]),
    "rl-step-credit": ("SCoRe-RL, credit on the key step", [*SCORE_SFT, "rl-step-credit"]),
    "rl-adaptive": ("SCoRe-RL, adaptive starts", [*SCORE_SFT, "rl-adaptive"]),
    "rl": ("SCoRe-RL", [*SCORE_SFT, "rl"])}
RL_ARMS = ["rl-question", "rl-no-key", "rl-step-credit", "rl-adaptive", "rl", "arpo", "grpo-bc"]
REMOVED = {"rl-adaptive", "rl-step-credit"}            # their flags went after the study of commit 78fb924
PAPER_TABLE_1 = "50.8 against 48.4 on average (Table 1)"
PAPER_HORIZON = "50.8 against 48.4 on average (Table 3)"
NOT_IN_PAPER = "no such comparison"
ORDERINGS = [                                          # better, worse, what the paper says
    ("sft", "bc", "44.5 against 41.7 on average (Table 3)"),
    ("sft", "bc-all", "45.8 against 42.5 on average (Table 1)"),
    ("sft", "dpo", "correction-based SFT and RL above DPO on the same pairs (Figure 5)"),
    ("sft", "resample", NOT_IN_PAPER),
    ("sft", "self", NOT_IN_PAPER),
    ("rl", "sft", "50.8 against 44.5 on average (Table 3)"),
    ("rl", "sft-more", "SFT on twice the data gives no clear gain, RL does (Figure 4)"),
    ("rl", "dpo-rl", "above DPO on the same pairs (Figure 5)"),
    ("rl", "arpo", "50.8 against 49.3 on average (Table 1)"),
    ("rl", "rl-question", PAPER_HORIZON),
    ("rl", "rl-no-key", "50.8 against 49.7 on average (Table 3)"),
    ("rl-adaptive", "rl-question", NOT_IN_PAPER),
    ("rl-adaptive", "rl", NOT_IN_PAPER),
    ("rl-step-credit", "rl", NOT_IN_PAPER)]
STUDENT_T = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # 95 %, by seeds
NOT_RUN = "Not run in this study."


# ---- files ----

def read_jsonl(path: Path) -> list[Record]:
    return [json.loads(line) for line in open(path, encoding="utf-8")] if path.exists() else []


class Run:
    """A seed's folder, or that of one of its controls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: dict[tuple[str, str], list[Record]] = {}
        probe = read_jsonl(folder / "probe" / "mps.jsonl")
        self.hard = {r["id"] for r in probe if r["outcome"] == "hard"}     # two corrections did not do

    def predictions(self, arm: str, how: str, **part: Any) -> list[Record]:
        """Of one evaluation those of the tasks with these fields; none if it was not run to its end."""
        if (arm, how) not in self.cache:
            path = self.folder / "eval" / f"{arm}-{how}"
            whole = (path / "results.json").exists()
            found = read_jsonl(path / "predictions.jsonl") if whole else []
            self.cache[arm, how] = [{**p, "hard": p["id"] in self.hard} for p in found]
        return [p for p in self.cache[arm, how] if part.items() <= p.items()]

    def scores(self, arm: str, how: str, **part: Any) -> dict[str, float] | None:
        """{task id: score in per cent}; None if there are none."""
        return {p["id"]: 100 * p["score"] for p in self.predictions(arm, how, **part)} or None

    def accuracy(self, arm: str, how: str, **part: Any) -> float | None:
        scores = self.scores(arm, how, **part)
        return scores and statistics.fmean(scores.values())

    def log(self, arm: str) -> list[Record]:
        """The steps of a training; none if it was not run to its end."""
        return read_jsonl(self.folder / "ckpt" / arm / "metrics.jsonl") if self.seconds(arm) is not None else []

    def settings(self, arm: str) -> Record:
        return json.loads((self.folder / "ckpt" / arm / "args.json").read_text(encoding="utf-8"))["args"]

    def at_step(self, arm: str, step: int) -> float | None:
        """Greedy accuracy on the `dev` tasks after this many steps of RL, in per cent."""
        found = [m["eval_accuracy"] for m in self.log(arm) if m["step"] == step and "eval_accuracy" in m]
        return 100 * found[0] if found else None

    def seconds(self, stage: str) -> float | None:
        """User and system seconds of a stage; None if it was not run."""
        path = self.folder / "done" / stage
        return sum(map(float, path.read_text().split()[1:3])) if path.exists() else None


def spread(values: Iterable[float | None], form: str = "{:.1f}") -> str:
    """mean ± standard deviation over seeds of what is there."""
    found = [v for v in values if v is not None]
    if not found:
        return "–"
    sd = f" ± {form.format(statistics.stdev(found))}" if len(found) > 1 else ""
    return form.format(statistics.fmean(found)) + sd


def markdown(head: list[Any], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(run: Run) -> str:
    return run.folder.name.removeprefix("seed-")


# ---- orderings ----

def interval(differences: list[float], over_seeds: bool, seeds: int) -> Difference:
    """The mean and its 95 % interval: Student's t over seeds, or the normal one over many tasks."""
    width = STUDENT_T[min(len(differences), 10)] if over_seeds else 1.96
    sd = statistics.stdev(differences) if len(differences) > 1 else 0
    half = width * sd / len(differences) ** 0.5
    mean = statistics.fmean(differences)
    return mean, mean - half, mean + half, seeds


def difference(runs: list[Run], better: str, worse: str, how: str, **part: Any) -> Difference | None:
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
    else:
        d = [a[i] - b[i] for a, b in pairs for i in a]
    return interval(d, len(pairs) > 2, len(pairs))


def last_common_step(runs: list[Run], arms: list[str]) -> int | None:
    """The last step after which all of these trainings, that were run, were evaluated."""
    looked = []
    for log in (run.log(arm) for run in runs for arm in arms):
        if log:
            looked.append({m["step"] for m in log if "eval_accuracy" in m})
    return max(set.intersection(*looked), default=None) if looked else None


def difference_at(runs: list[Run], better: str, worse: str, step: int | None) -> Difference | None:
    """The same of two arms of RL after as many steps, so as many rollouts: greedy, on the dev tasks."""
    if step is None:
        return None
    pairs = [(run.at_step(better, step), run.at_step(worse, step)) for run in runs]
    d = [a - b for a, b in pairs if a is not None and b is not None]
    return interval(d, True, len(d)) if len(d) > 2 else None


def verdict(found: Difference | None) -> str:
    if found is None:
        return "not run"
    _, low, high, _ = found
    return "holds" if low > 0 else "does not hold" if high < 1 else "not resolved by this much data"


def points(found: Difference | None) -> str:
    if found is None:
        return "–"
    mean, low, high, n = found
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}{'' if n > 2 else ', over tasks'})"


REFUTED = "held in these seeds, not in a further one"
Verdicts = dict[tuple[str, str], str]


def orderings(runs: list[Run], further: list[Run]) -> tuple[str, Verdicts]:
    """A table of all, and the verdicts {(better, worse): verdict}. `further`: runs of other seeds."""
    rows = []
    verdicts: Verdicts = {}
    for better, worse, claim in ORDERINGS:
        found = difference(runs, better, worse, "sampled")
        check = difference(further, better, worse, "sampled")
        said = verdict(found)
        if said == "holds" and check and check[0] <= 0:
            said = REFUTED
        verdicts[better, worse] = said
        rows.append([f"{ARMS[better][0]} above {ARMS[worse][0]}", claim, f"**{said}**", points(found),
                     found[3] if found else "–"])
    return markdown(["ordering", "the paper", "here", "points, sampled (95 %)", "seeds"], rows), verdicts


def equal_rollouts(runs: list[Run]) -> str:
    """The orderings among the arms of RL after equally many rollouts, from the evaluations during training."""
    step = last_common_step(runs, RL_ARMS[:5])
    if step is None:
        return NOT_RUN
    pairs = [(b, w) for b, w, _ in ORDERINGS if b in RL_ARMS[:5] and w in RL_ARMS[:5]]
    found = {pair: difference_at(runs, *pair, step) for pair in pairs}
    args = next(run.settings(arm) for run in runs for arm in RL_ARMS[:5] if run.log(arm))
    if len(runs) < 3:
        return "Read from three seeds and more."
    rows = [[f"{ARMS[better][0]} above {ARMS[worse][0]}", f"**{verdict(d)}**", points(d)]
            for (better, worse), d in found.items()]
    arms = [[ARMS[arm][0], spread([run.at_step(arm, step) for run in runs])] for arm in RL_ARMS[:5]]
    return (f"After {step} steps, {step * args['prompts'] * args['group']:,} rollouts:\n\n"
            + markdown(["ordering", "here", "points, greedy on dev (95 %)"], rows) + "\n\n"
            + markdown(["arm", "greedy on dev, %"], arms))


def again(further: list[Run], verdicts: Verdicts) -> str:
    """Were the orderings that hold reproduced by seeds that had no part in them?"""
    rows = []
    for pair in (pair for pair, said in verdicts.items() if said in ("holds", REFUTED)):
        found = difference(further, *pair, "sampled")
        said = "not run" if found is None else "no" if verdicts[pair] == REFUTED else "yes"
        rows.append([f"{ARMS[pair[0]][0]} above {ARMS[pair[1]][0]}", said, points(found)])
    return (f"{provenance(further)}\n\n{seeds_table(further)}\n\n"
            + markdown(["held above", "reproduced", "sampled, points (95 %)"], rows))


# ---- tables ----

LONGEST = dict(math=6, search=7)                         # amounts, searches of the longest tasks in training
STEPS_OF = dict(math="mathematics, amounts", search="search, searches")


def accuracy_table(runs: list[Run]) -> str:
    columns: dict[str, tuple[str, Record]] = {"all": ("sampled", {})}
    for kind, longest in LONGEST.items():
        columns[STEPS_OF[kind].split(",")[0]] = "sampled", dict(kind=kind)
        columns[f"{longest} {STEPS_OF[kind].split(', ')[1]}"] = "sampled", dict(kind=kind, horizon=longest)
    columns["longer, greedy"] = "beyond", {}
    rows = []
    for arm, (name, _) in ARMS.items():
        found = [[run.accuracy(arm, how, **part) for run in runs] for how, part in columns.values()]
        seeds = sum(value is not None for value in found[0])
        rows.append([name, seeds, *map(spread, found)])
    return markdown(["arm", "seeds", *columns], rows)


def seeds_table(runs: list[Run]) -> str:
    """The stages seed by seed; gains with their standard errors, paired over tasks."""
    rows = []
    for run in runs:
        scores = [run.scores(arm, "sampled") for arm in ("bc", "sft", "rl", "rl-adaptive")]
        cells = [f"{statistics.fmean(s.values()):.1f}" if s else "–" for s in scores]
        for worse, better in zip(scores, scores[1:3]):
            gains = [better[i] - worse[i] for i in better] if better and worse else []
            se = statistics.stdev(gains) / len(gains) ** 0.5 if gains else 0
            cells.append(f"{statistics.fmean(gains):+.1f} ± {se:.1f}" if gains else "–")
        rows.append([number(run), *cells])
    return markdown(["seed", "BC-init", "SCoRe-SFT", "SCoRe-RL", "adaptive starts", "SFT − BC-init", "RL − SFT"],
                    rows)


def costs(run: Run, arm: str) -> Counter | None:
    """What the arm took in one seed, all its stages together -> {column: number}, None if it was not run."""
    total: Counter = Counter()
    stages = ARMS[arm][1]
    files = {"demonstrate-bc": "bc.jsonl", "demonstrate-mps": "mps.jsonl", "mps": "mps/mps.jsonl",
             "mps-resample": "mps-resample/mps.jsonl", "mps-self": "mps-self/mps.jsonl"}
    if run.seconds(stages[-1]) is None:
        return None
    for stage in stages:
        total["seconds"] += run.seconds(stage) or 0
        if stage in files:
            found = in_records([run.folder / files[stage]])
            total.update(tasks=found["tasks"], teacher=found["teacher_completion_tokens"],
                         generated=found["student_tokens"])
            continue
        args = run.settings(stage)
        log = run.log(stage)
        if "group" in args:
            total["rollouts"] += len(log) * args["prompts"] * args["group"]
            total["generated"] += log[-1]["generated_tokens"]
        else:
            total["examples"] += len(log) * args["batch"]
    if arm == "grpo-bc":                             # its questions are those of SCoRe's RL data
        total["tasks"] += len({r["id"] for r in read_jsonl(run.folder / "mps" / "rl.jsonl")})
    return total


def budget_table(runs: list[Run]) -> str:
    columns = dict(tasks="tasks seen", teacher="tokens written by the teacher",
                   examples="examples in supervised steps", rollouts="RL rollouts",
                   generated="tokens generated by the student", seconds="CPU-seconds")
    rows = []
    for arm, (name, _) in ARMS.items():
        found = [c for c in (costs(run, arm) for run in runs) if c]
        rows.append([name, *(f"{statistics.fmean(c[k] for c in found):,.0f}" if found else "–"
                             for k in columns)])
    return markdown(["arm", *columns.values()], rows)


def course(logs: list[list[Record]], field: str, scale: float = 1, form: str = "{:.0f}") -> str:
    """A field's mean over the first and the last quarter of the steps, over seeds."""
    ends = []
    for log in logs:
        quarter = max(1, len(log) // 4)
        ends.append([scale * statistics.fmean(m[field] for m in part) for part in (log[:quarter], log[-quarter:])])
    return " → ".join(form.format(statistics.fmean(end)) for end in zip(*ends)) or "–"


TARGET = 35                                              # per cent of the groups, at most


def variance_table(runs: list[Run]) -> str:
    """What the groups of each arm of RL were worth: the share without variance, and the course of the run."""
    rows = []
    for arm in RL_ARMS:
        logs = [log for log in (run.log(arm) for run in runs) if log]
        args = [run.settings(arm) for run in runs if run.log(arm)]
        rollouts = [len(log) * a["prompts"] * a["group"] for log, a in zip(logs, args)]
        rows.append([ARMS[arm][0], spread(map(len, logs), "{:.0f}"), spread(rollouts, "{:,.0f}"),
                     spread([log[-1]["generated_tokens"] / 1000 for log in logs], "{:.0f}"),
                     spread([without_variance(log) for log in logs]), course(logs, "zero_variance", 100),
                     course(logs, "reward_correct", 100), course(logs, "entropy", form="{:.3f}")])
    table = markdown(["arm", "steps", "rollouts", "thousand tokens", "groups without variance, % of the run",
                      "first → last quarter", "rollouts right, %", "entropy, nats a token"], rows)
    shares = [without_variance(log) for run in runs if (log := run.log("rl-adaptive"))]
    if not shares:
        return table
    said = "holds" if statistics.fmean(shares) <= TARGET else "does not hold"
    return f"{table}\n\n**At most {TARGET} % without variance with adaptive starts: {said}** ({spread(shares)} %)."


def without_variance(log: list[Record]) -> float:
    """Share of the groups of a run whose rewards were all equal, in per cent."""
    return 100 * statistics.fmean(m["zero_variance"] for m in log)


def interventions_table(runs: list[Run]) -> str:
    """Figure 3a: shares of MPS tasks by the number of corrections, and corrections by the task's length."""
    def label(r: Record) -> str:
        return "not solved: hard" if r["outcome"] == "hard" else str(r["interventions"])

    def of(run: Run, **part: Any) -> list[Record]:
        records = read_jsonl(run.folder / "mps" / "mps.jsonl")
        return [r for r in records if r["outcome"] != "failed" and part.items() <= r.items()]

    shares, lengths, kinds = [], [], ("math", "search")
    most = max((r["interventions"] for run in runs for r in of(run)), default=0)
    for name in [*map(str, range(most + 1)), "not solved: hard"]:
        played = [[of(run, kind=kind) for run in runs] for kind in kinds]
        shares.append([name, *(spread([100 * statistics.fmean(label(r) == name for r in records)
                                       for records in seeds if records]) for seeds in played)])
    for length in range(2, max(LONGEST.values()) + 1):
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


def hard_table(runs: list[Run]) -> str:
    """Figure 3b: held-out tasks that two corrections of BC-init did not solve."""
    runs = [run for run in runs if run.seconds("probe") is not None]
    if not runs:
        return NOT_RUN
    rows = []
    for arm in ("bc", "bc-all", "sft", "sft-more", "rl-question", "rl-adaptive", "rl"):
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


def scale_table(runs: list[Run]) -> str:
    """Figure 4: more data for SFT, against RL on the other half."""
    names = {"sft-quarter": "SFT, a quarter", "sft-half": "SFT, half", "sft": "SFT (SCoRe-SFT)",
             "sft-all": "SFT, twice: the RL half too", "rl": "SFT, then RL on the other half (SCoRe-RL)"}
    files = dict.fromkeys(("sft", "rl"), "mps/sft.jsonl")
    runs = [run for run in runs if run.accuracy("sft-all", "sampled") is not None]
    if not runs:
        return NOT_RUN
    rows = []
    for arm, name in names.items():
        sizes = [len(read_jsonl(run.folder / files.get(arm, f"{arm}.jsonl"))) for run in runs]
        rows.append([name, f"{statistics.fmean(sizes):.0f}", spread([run.accuracy(arm, "sampled") for run in runs])])
    more, best = (difference(runs, b, w, "sampled") for b, w in (("sft-all", "sft"), ("rl", "sft-all")))
    said = "not run"
    if more:
        said = ("does not hold" if more[1] > 0 else "holds" if more[2] < 1 else "not resolved by this much data")
    return (f"{markdown(['data', 'corrected trajectories', 'sampled'], rows)}\n\n**Twice the SFT data, no clear "
            f"gain: {said}** ({points(more)} points). **RL above SFT on twice the data: {verdict(best)}** "
            f"({points(best)}).")


def wrong_steps(prediction: Record) -> int:
    """How many steps of a run the teacher finds wrong: the cost of the paper's equation 3."""
    task = teacher.Task(prediction["question"])
    steps = [m["content"] for m in prediction["messages"] if m["role"] == "assistant"]
    return sum(task.take(content, first=k == 0) == "wrong" for k, content in enumerate(steps))


def by_length(runs: list[Run], kind: str, arms: Iterable[str], form: str,
              measure: Callable[[list[Record]], float]) -> str:
    """A table of arms and lengths of tasks: what `measure` makes of a seed's predictions."""
    lengths = range(2, LONGEST[kind] + 1)
    rows = []
    for arm in arms:
        played = [[run.predictions(arm, "sampled", kind=kind, horizon=n) for run in runs] for n in lengths]
        rows.append([ARMS[arm][0], *(spread([measure(p) for p in of_length if p], form) for of_length in played)])
    return markdown([STEPS_OF[kind], *lengths], rows)


def cost_table(runs: list[Run]) -> str:
    arms = ("bc", "bc-all", "sft", "sft-more", "rl-question", "rl-adaptive", "rl")
    return by_length(runs, "math", arms, "{:.2f}", lambda played: statistics.fmean(map(wrong_steps, played)))


def horizon_table(runs: list[Run], kind: str) -> str:
    return by_length(runs, kind, ARMS, "{:.0f}", lambda played: 100 * statistics.fmean(p["score"] for p in played))


def leap_table(runs: list[Run]) -> str:
    """Control: a teacher that does not leap when it demonstrates."""
    pairs = [(run, Run(run.folder / "leap0")) for run in runs]
    pairs = [(run, control) for run, control in pairs if control.accuracy("sft", "sampled") is not None]
    if not pairs:
        return NOT_RUN
    rows = [[ARMS[arm][0], *(spread([run.accuracy(arm, "sampled") for run in of]) for of in zip(*pairs))]
            for arm in ("bc", "bc-all", "sft")]
    return markdown([f"arm (seeds: {len(pairs)})", "leaps, sampled", "no leaps, sampled"], rows)


def noise_table(runs: list[Run]) -> str:
    """Control: a teacher whose verdicts name another step than the first wrong one."""
    done = [run for run in runs if Run(run.folder / "noise40").accuracy("sft", "sampled") is not None]
    if not done:
        return NOT_RUN
    rows = []
    for share in (0, 20, 40):
        of = [Run(run.folder / f"noise{share}") if share else run for run in done]
        mps = [read_jsonl(run.folder / "mps" / "mps.jsonl") for run in of]
        hard = [100 * statistics.fmean(r["outcome"] == "hard" for r in records) for records in mps if records]
        kept = [len(read_jsonl(run.folder / "mps" / "sft.jsonl")) for run in of]
        rows.append([f"{share} %", spread([run.accuracy("sft", "sampled") for run in of]), spread(hard),
                     spread(kept, "{:.0f}")])
    return markdown([f"wrong steps named (seeds: {len(done)})", "SCoRe-SFT, sampled", "MPS tasks not solved, %",
                     "trajectories for SFT"], rows)


RECIPES = {"rl-lr-low": "lr 5e-5", "rl-lr-high": "lr 1e-3", "rl-cool": "temperature 0.6",
           "rl-no-negative": "negative advantages set to 0"}


def recipe_table(runs: list[Run]) -> str:
    """Settings of RL, one changed at a time: its log, and accuracy on dev."""
    done = [run for run in runs if any(run.accuracy(arm, "dev-sampled") is not None for arm in RECIPES)]
    if not done:
        return NOT_RUN
    rows = []
    for arm, name in RECIPES.items():
        logs = [log for log in (run.log(arm) for run in done) if log]
        rows.append([name, course(logs, "reward_correct", 100), course(logs, "zero_variance", 100),
                     course(logs, "entropy", 1, "{:.3f}"), spread([run.accuracy(arm, "dev-sampled") for run in done])])
    seeds = ", ".join(map(number, done))
    return markdown([f"RL, seed {seeds}", "rollouts right, %", "groups without variance, %",
                     "entropy, nats a token", "dev, sampled"], rows)


# ---- plot and page ----

def draw(runs: list[Run], path: Path) -> None:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    colors = {arm: f"C{i}" for i, arm in enumerate(("bc", "bc-all", "sft", "sft-more", *RL_ARMS[:5]))}

    def add(ax: Any, arm: str, xs: list[float], ys: list[list[float]]) -> None:
        ax.errorbar(xs, [statistics.fmean(y) for y in ys], capsize=2, ms=4, marker="o", color=colors[arm],
                    yerr=[statistics.stdev(y) / len(y) ** 0.5 if len(y) > 1 else 0 for y in ys], label=ARMS[arm][0])

    for ax, (kind, longest) in zip(axes, LONGEST.items()):
        for arm in colors:
            found = {n: [run.accuracy(arm, "sampled", kind=kind, horizon=n) for run in runs]
                     for n in range(2, longest + 1)}
            shown = {n: [a for a in of_seeds if a is not None] for n, of_seeds in found.items()}
            shown = {n: of_seeds for n, of_seeds in shown.items() if of_seeds}
            if shown:
                add(ax, arm, [*shown], [*shown.values()])
        ax.set(xlabel=STEPS_OF[kind].split(", ")[1], ylim=(-3, 103))
        ax.set_title(f"{STEPS_OF[kind].split(',')[0]}, sampled, %", fontsize=9)
    for arm in RL_ARMS[:5]:
        steps = sorted({m["step"] for run in runs for m in run.log(arm) if "eval_accuracy" in m})
        seen: dict[float, list[float]] = {}
        for step in steps:
            rows = [m for run in runs for m in run.log(arm) if m["step"] == step and "eval_accuracy" in m]
            if len(rows) == len(runs):                   # a point is a mean over the same seeds everywhere
                tokens = statistics.fmean(m["generated_tokens"] for m in rows) / 1000
                seen[tokens] = [100 * m["eval_accuracy"] for m in rows]
        if seen:
            add(axes[2], arm, [*seen], [*seen.values()])
    axes[2].set(xlabel="thousand tokens generated in RL")
    axes[2].set_title("dev, greedy, %, during RL", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7,
                  frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def provenance(runs: list[Run]) -> str:
    folders = [run.folder for run in runs]
    commits = {json.loads(path.read_text())["commit"][:12] for f in folders for path in f.glob("**/args.json")}
    times = [path.read_text().split()[1:3] for f in folders for path in f.glob("**/done/[!.]*")]
    tasks = {len(run.scores("sft", "sampled") or {}) for run in runs}
    return (f"Seeds {', '.join(map(number, runs))}, {'/'.join(map(str, tasks))} held-out tasks each; commit "
            f"{', '.join(sorted(commits)) or 'unknown'}"
            f"{' (not all of one state of the code)' if len(commits) > 1 else ''}; "
            f"{sum(float(t) for user_system in times for t in user_system) / 3600:.1f} CPU-hours.")


def load_runs(folder: Path, seeds: str | None = None) -> list[Run]:
    folders = sorted(folder.glob("seed-*"), key=lambda f: int(f.name.removeprefix("seed-")))
    if seeds:
        folders = [f for f in folders if f.name.removeprefix("seed-") in seeds.split()]
    runs = [run for run in map(Run, folders) if run.accuracy("sft", "sampled") is not None]
    if not runs:
        raise SystemExit(f"{folder} holds no seed with an evaluated SCoRe-SFT")
    return runs


def main(args: argparse.Namespace) -> None:
    runs, out = load_runs(args.run, args.seeds), args.out or args.run
    further = load_runs(args.again) if args.again else []
    text, verdicts = orderings(runs, further)
    parts = dict(provenance=provenance(runs), accuracy=accuracy_table(runs), seeds=seeds_table(runs),
                 budgets=budget_table(runs), orderings=text, rollouts=equal_rollouts(runs),
                 variance=variance_table(runs), interventions=interventions_table(runs), hard=hard_table(runs),
                 scale=scale_table(runs), cost=cost_table(runs), leap=leap_table(runs), noise=noise_table(runs),
                 recipes=recipe_table(runs), again=again(further, verdicts) if further else NOT_RUN,
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
