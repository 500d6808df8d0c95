"""Measure an agent on task files, set the numbers beside the paper's, and show what the agent did.

  run     a model, task files -> OUT/predictions.jsonl (a line per task and run), OUT/results.json, a table
  table   OUT folders         -> one table, and the paper's with our rows where benchmarks are the paper's
  report  a RUN folder        -> RUN/report.html (one file that opens from disk) and RUN/plots/*.png

  CPU     python eval.py run --model ckpt/rl --tasks tasks/eval.jsonl --out eval/rl-greedy --greedy
  1 GPU   python eval.py run --model ckpt/rl --tasks bench/*/test.jsonl --out eval/rl --engine vllm --runs 4
  8 GPUs  torchrun --nproc_per_node 8 eval.py run …the same flags…       (each rank takes an eighth of the tasks)

Public sets are read as they are; the name of a file (of its folder, for a test.jsonl) is its benchmark and
decides the metric. ± is the standard error over tasks. A task without an answer scores 0 and is counted as
unanswered (steps ran out, or a turn broke the grammar), truncated (tokens ran out) or failed (search or
judge; the next call tries again). The same command resumes a killed run.

Models that were not trained here take part by --prompt agent, tir or cot (the paper's baselines), and
--self-consistent N takes each step from N candidates: baselines/prompting.py. Sizes of data (the paper's
Figure 4) are read from names: --name sft-n500-greedy stands at 500 in the report.

Differences from the paper: rules compare answers, a judge model (--teacher-url) only where rules cannot
decide. The paper does not say how many runs it made; --runs is 1.
"""
import argparse
import itertools
import json
import math
import os
import re
import statistics
import string
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import env
import judge
from baselines import prompting
from plumbing.chat_api import BadReply
from plumbing.cli import (Help, InputError, add_env_flags, add_sampling_flags, add_teacher_flags, cli,
                          sampling_from_args)
from plumbing.engines import load_engine
from plumbing.records import (append_jsonl, as_list, part_of_rank, read_jsonl, read_tasks, resume_jsonl, save_args,
                              wait_for_ranks)
from plumbing.search import search_from_args
from plumbing.trajectory import step_of
from sandbox.interpreter import set_sandbox

ASSETS = Path(__file__).resolve().parent / "assets"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | table | report")
    show = dict(formatter_class=Help)
    p = commands.add_parser("run", help="evaluate a model on task files", **show)
    add = p.add_argument_group("what is measured").add_argument
    add("--model", required=True, help="checkpoint folder, or the model's name at --student-url")
    add("--tasks", required=True, nargs="+", metavar="FILE", help="JSONL files of tasks with answers")
    add("--out", required=True, type=Path, help="folder for the results; a second call resumes")
    add("--name", help="the row's name in tables; else the name of the folder OUT")
    add("--benchmark", metavar="NAME", help="benchmark of all files; else by their names")
    add("--limit", type=int, metavar="N", help="only the first N tasks of each file")
    add("--runs", type=int, default=1, metavar="K", help="independent runs of every task")
    add("--chunk", type=int, default=256, help="tasks rolled out together between two saves")
    add("--prompt", choices=["react", "agent", "tir", "cot"], default="react",
        help="react: the trained grammar; others put instructions before the question: baselines/prompting.py")
    add("--self-consistent", type=int, default=1, metavar="N",
        help="candidates for every step; the most frequent output wins")
    add("--greedy", action="store_true", help="the same as --temperature 0")
    add_sampling_flags(p)
    add_env_flags(p)
    add = p.add_argument_group("scoring").add_argument
    add("--metric", choices=["auto", "f1", "em", "judge", "rule"], default="auto",
        help="auto: the benchmark's; judge: rules, then the teacher, if given; rule: rules alone (Table 5)")
    add("--variant", choices=["arpo", "squad"], default="arpo",
        help="of f1 and em; arpo keeps punctuation, squad drops it and has HotpotQA's yes/no rule")
    add_teacher_flags(p, required=False)
    p = commands.add_parser("table", help="one table of several result folders", **show)
    p.add_argument("results", nargs="+", type=Path, metavar="OUT", help="folders of `run`, in order of rows")
    p.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables to this file too")
    p.add_argument("--paper", default="auto", help="the paper's tables to show, as 1,3; auto; none")
    p = commands.add_parser("report", help="an HTML page and plots of a whole run", **show)
    p.add_argument("run_dir", type=Path, metavar="RUN", help="folder with bc.jsonl, mps/, ckpt/, eval/")
    p.add_argument("--trajectories", type=int, default=1000, help="number of trajectories on the page")
    p.add_argument("--characters", type=int, default=4000, help="characters shown of one message")
    args = parser.parse_args(argv)
    if args.command == "run":
        args.temperature = 0.0 if args.greedy else args.temperature
        if min(args.runs, args.chunk, args.max_steps, args.max_tokens, args.self_consistent) < 1:
            parser.error("--runs, --chunk, --max-steps, --max-tokens and --self-consistent are at least 1")
        if args.self_consistent > 1 and not args.temperature:
            parser.error("--self-consistent needs a temperature: greedy candidates are all the same")
        if args.engine == "url" and not args.student_url:
            parser.error("--engine url needs --student-url")
    return args


# ---- benchmarks ----

BENCHMARKS = {   # the paper's name: other names of its files
    "AIME24": "aime2024", "AIME25": "aime2025", "AIME": "", "MATH500": "", "OlymMATH": "olymm",
    "GSM-Hard": "", "HotpotQA": "hqa", "2Wiki": "2wikimultihopqa", "MuSiQue": "musiq", "Bamboogle": "bamb",
    "GAIA": "", "HLE": "", "xBench": "xbenchdeepsearch", "WebWalker": "webwalkerqa"}
METRICS = dict.fromkeys(("HotpotQA", "2Wiki", "MuSiQue", "Bamboogle"), "f1")     # all others: judge


def benchmark_of(path):
    """The paper's name of a file, else its own: aime24/test.jsonl -> AIME24, tasks/hard.jsonl -> hard."""
    stem, folder = Path(path).stem, Path(path).absolute().parent.name
    for plain in (re.sub(r"[\W_]", "", part.lower()) for part in (stem, folder)):
        for benchmark, other in BENCHMARKS.items():
            if plain in (re.sub(r"\W", "", benchmark.lower()), other):
                return benchmark
    return folder if stem == "test" else stem


def load_tasks(args):
    """The tasks of all files, each with its `group` (benchmark) and `metric`."""
    tasks = []
    for path in args.tasks:
        group = args.benchmark or benchmark_of(path)
        metric = METRICS.get(group, "judge") if args.metric == "auto" else args.metric
        tasks += [t | dict(group=group, metric=metric) for t in read_tasks(path)[:args.limit]]
    if len({(task["group"], task["id"]) for task in tasks}) < len(tasks):
        raise InputError(f"two files of one benchmark share an id: {' '.join(args.tasks)}")
    return tasks


# ---- scores ----

def qa_score(prediction, answers, variant="arpo"):
    """(token F1, exact match), the best over the answers, as the published scripts compute them.

    arpo: lower case, no articles, punctuation stays; no common token, no match (WebThinker and ARPO).
    squad: no punctuation either; "yes", "no" and "noanswer" match only themselves (HotpotQA and SQuAD)."""
    def normal(text):
        text = str(text).lower()
        if variant == "squad":
            text = "".join(c for c in text if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
    best_f1, best_em, p = 0.0, 0.0, normal(prediction)
    for a in map(normal, as_list(answers)):
        common = sum((Counter(p.split()) & Counter(a.split())).values())
        closed = variant == "squad" and p != a and {p, a} & {"yes", "no", "noanswer"}
        if common and not closed:
            best_f1 = max(best_f1, 2 * common / (len(p.split()) + len(a.split())))
        best_em = max(best_em, float(p == a and (common > 0 or variant == "squad")))
    return best_f1, best_em


def score(trajectory, variant="arpo", teacher=None):
    """-> {"score" in 0…1, "correct", "verdict", "metric"}; for f1 and em, `correct` is the exact match."""
    prediction, answers, metric = trajectory["prediction"], trajectory["answer"], trajectory["metric"]
    if metric in ("f1", "em"):
        f1, em = qa_score(prediction, answers, variant) if prediction is not None else (0.0, 0.0)
        return dict(score=f1 if metric == "f1" else em, correct=em == 1, verdict=f"F1 {f1:.3f}, EM {em:.0f}",
                    metric=f"{metric}-{variant}")
    asked = teacher if metric == "judge" else None
    try:
        correct = judge.correct_answer(asked, trajectory["question"], prediction, answers)
    except BadReply:
        return dict(score=0.0, correct=False, verdict="failed", metric=metric)
    named = "judge-by-rule" if metric == "judge" and teacher is None else metric
    return dict(score=float(correct), correct=correct, verdict="right" if correct else "wrong", metric=named)


def why_zero(p):
    """"failed", "truncated" or "unanswered"; None for a trajectory that was answered and scored."""
    if p["stop"] == "failed" or p["verdict"] == "failed":
        return "failed"
    return None if p["prediction"] is not None else "truncated" if p["stop"] == "max_tokens" else "unanswered"


def summarize(predictions, group, part):
    """A row of results.json, in per cent: means over tasks, errors, counts of what went wrong; pass_at: the
    chance that k of a task's runs, drawn at random, hold a solved one (Chen et al., 2021)."""
    tasks, runs, reasons = defaultdict(list), defaultdict(list), Counter(map(why_zero, predictions))
    for p in predictions:
        tasks[p["id"]].append(p)
        runs[p["run"]].append(100 * p["score"])
    means = [100 * statistics.fmean(p["score"] for p in of_task) for of_task in tasks.values()]
    solved = [sum(p["correct"] for p in of_task) for of_task in tasks.values()]
    per_run, n = [statistics.fmean(runs[r]) for r in sorted(runs)], len(runs)
    return dict(
        group=group, part=part, metric=predictions[0]["metric"], n=len(means), mean=statistics.fmean(means),
        se=statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0,
        runs=per_run, sd=statistics.stdev(per_run) if n > 1 else None,
        pass_at={str(k): 100 * statistics.fmean(1 - math.comb(n - s, k) / math.comb(n, k) for s in solved)
                 for k in range(1, n + 1) if k == n or k & (k - 1) == 0},              # powers of two
        **{reason: reasons[reason] for reason in ("unanswered", "truncated", "failed")},
        steps=statistics.fmean(step_of(p["messages"]) for p in predictions))


def result_rows(predictions):
    """A row for each group of tasks, for each of its kinds (or GAIA's levels), for each horizon of a kind."""
    rows = []
    for group in dict.fromkeys(p["group"] for p in predictions):
        members, parts = [p for p in predictions if p["group"] == group], [{}]
        for fields in (["kind"], ["Level"], ["kind", "horizon"]):
            found = {tuple((f, p[f]) for f in fields if p.get(f)) for p in members if p.get(fields[-1])}
            parts += map(dict, sorted(found, key=lambda part: [str(value).rjust(9) for _, value in part]))
        rows += [summarize([p for p in members if part.items() <= p.items()], group, part) for part in parts]
    return rows


def row_name(row):
    """GAIA-2, or `eval, math, horizon 3`."""
    form = {"Level": "-{}", "kind": ", {}", "horizon": ", horizon {}"}
    return row["group"] + "".join(form[field].format(value) for field, value in row["part"].items())


def markdown(head, rows):
    """A Markdown table, aligned for the terminal as well; numbers with one decimal, – for None."""
    cells = [["–" if c is None else f"{c:.1f}" if isinstance(c, float) else str(c) for c in row]
             for row in [head, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths)])
    rows = [[f"{c:>{w}}" if i else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths))] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def results_table(results):
    """What `run` prints."""
    k, reasons = str(results["runs"]), ["unanswered", "truncated", "failed"]
    head = ["tasks", "metric", "n", "mean ± se", "sd of runs", f"pass@{k}", *reasons, "steps"]
    rows = [[row_name(row), row["metric"], row["n"], f"{row['mean']:.1f} ± {row['se']:.1f}", row["sd"],
             row["pass_at"].get(k), *map(row.get, reasons), row["steps"]] for row in results["rows"]]
    return f"{results['name']}: {results['model']}, {results['sampling']}, runs: {k}\n{markdown(head, rows)}"


# ---- run ----

def merge(out):
    """All predictions of OUT by (group, id, run); what ranks wrote apart is put together, atomically."""
    path, shards = out / "predictions.jsonl", sorted(out.glob("predictions.rank*.jsonl"))
    found = {(p["group"], p["id"], p["run"]): p for part in [path, *shards] for p in resume_jsonl(part)}
    if shards:
        with open(out / "predictions.part", "w", encoding="utf-8") as f:
            for p in found.values():
                append_jsonl(f, p)
        os.replace(f.name, path)
    for shard in shards:
        shard.unlink()
    return found


def play(args, todo, rank, engine):
    """Rolls out and scores tasks; a chunk is in the rank's file before the next begins."""
    from tqdm import tqdm
    set_sandbox(args.sandbox, args.preload)
    teacher, search = judge.Teacher.from_args(args) if args.teacher_url else None, search_from_args(args)
    engine = engine or load_engine(args.engine, args.model, args.student_url, env.Chat)
    plain = args.prompt == "react" and args.self_consistent == 1
    with (open(args.out / f"predictions.rank{rank}.jsonl", "a", encoding="utf-8") as file,
          ThreadPoolExecutor(16) as pool,
          tqdm(total=len(todo), desc="eval", unit="task", disable=rank > 0) as bar):
        chunk = max(1, args.chunk // args.self_consistent)               # each candidate has an interpreter
        for at in range(0, len(todo), chunk):
            tasks = todo[at:at + chunk]
            how = dict(max_steps=args.max_steps, max_tokens=args.max_tokens, search=search, progress=bar,
                       **sampling_from_args(args))
            trajectories = (env.rollout(engine, tasks, **how) if plain else
                            prompting.rollout(engine, tasks, args.prompt, args.self_consistent, **how))
            for scored in pool.map(lambda t: t | score(t, args.variant, teacher), trajectories):
                append_jsonl(file, scored)


def run(args, engine=None):
    """Plays what is missing; rank 0 merges the ranks' files and prints. `engine`: in place of --engine."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    tasks = load_tasks(args)
    wanted = {(t["group"], t["id"], r): t | dict(run=r) for r in range(args.runs) for t in tasks}
    if world > 1:
        import torch
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    # ---- rollout ----
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / "args.json"
        before = json.loads(path.read_text(encoding="utf-8"))["args"] if path.exists() else vars(args)
        for name in ("model prompt self_consistent temperature top_p top_k max_steps max_tokens metric "
                     "variant").split():
            if before.get(name, now := getattr(args, name)) != now:
                raise InputError(f"{args.out} was made with {name} {before[name]}, not {now}: "
                                       "delete it or give another --out")
        save_args(args, path)
        merge(args.out)
    wait_for_ranks(world)
    done = {key for key, p in merge(args.out).items() if why_zero(p) != "failed"}
    wait_for_ranks(world)                                # nobody writes before everybody has read
    todo = [task for key, task in wanted.items() if key not in done]
    if rank == 0:
        print(f"{len(wanted)} rollouts, {len(wanted) - len(todo)} of them already there", flush=True)
    if mine := part_of_rank(todo, rank, world):
        play(args, mine, rank, engine)
    wait_for_ranks(world)

    # ---- results ----
    if rank == 0:
        found = merge(args.out)
        sampling = f"temperature {args.temperature}, top-p {args.top_p}, top-k {args.top_k}"
        decoding, sampling = ("sampled", sampling) if args.temperature else ("greedy", "greedy")
        sampling += f", prompt {args.prompt}" * (args.prompt != "react")
        sampling += f", {args.self_consistent} candidates a step" * (args.self_consistent > 1)
        results = dict(name=args.name or args.out.absolute().name, model=args.model, runs=args.runs,
                       decoding=decoding, sampling=sampling,
                       rows=result_rows([found[key] for key in wanted]))
        (args.out / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
        print(results_table(results))


# ---- table ----

def records(path):
    return [record for _, record in read_jsonl(path)] if path.exists() else []


def read_results(folder):
    (_, results), = read_jsonl(folder / "results.json")
    return results | dict(stage=re.sub(r"-(greedy|sampled)$", "", results["name"]), folder=folder)


def combined_table(all_results):
    """Rows are models; columns are groups and kinds of tasks, greedy and sampled apart."""
    cells, columns = defaultdict(dict), defaultdict(set)
    one_group = len({row["group"] for results in all_results for row in results["rows"]}) == 1
    for results in all_results:
        for row in (r for r in results["rows"] if "horizon" not in r["part"]):
            name = row_name(row).removeprefix(f"{row['group']}, " if one_group else "")
            columns[name].add(results["decoding"])
            cells[results["stage"]][name, results["decoding"]] = f"{row['mean']:.1f} ± {row['se']:.1f}"
    keys = [(name, decoding) for name in columns for decoding in sorted(columns[name])]
    return markdown(["model", *map(", ".join, keys)],
                    [[stage, *map(row.get, keys)] for stage, row in cells.items()])


def paper_tables(all_results, which):
    """The tables of assets/paper_tables.md with our benchmarks, our rows below; Avg. if none lacks."""
    tables, text = [], (ASSETS / "paper_tables.md").read_text(encoding="utf-8")
    for number, caption, lines in re.findall(r"## Table (\d)(: .*)\n\n((?:\|.*\n?)+)", text):
        head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines.splitlines()]
        ours = []
        for results in all_results:
            rows_here = [r for r in results["rows"] if (r["metric"] == "rule") == (number == "5")]
            means = {row_name(r): float(r["mean"]) for r in rows_here}
            averaged = [means.get(name) for name in head[1:-1] if not name.startswith("GAIA-")]
            if any(name in means for name in head):
                means |= {} if None in averaged else {"Avg.": statistics.fmean(averaged)}
                ours.append([f"ours: {results['stage']}, {results['decoding']}", *map(means.get, head[1:])])
        if ours and (which == "auto" or number in which.split(",")):
            tables.append(f"Table {number} of the paper{caption}\n\n{markdown(head, rows + ours)}")
    return tables


def table(args):
    all_results = [read_results(folder) for folder in args.results]
    text = "\n\n".join([combined_table(all_results), *paper_tables(all_results, args.paper)])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


# ---- report ----

def chart_points(all_results, mps, checkpoints):
    """Yields (section, title, series, [x, y, error, n]) of all that is drawn: as bars where x is a name."""
    mps = [t for t in mps if t["outcome"] != "failed"]
    hard = {t["id"] for t in mps if t["outcome"] == "hard"}
    only = {row["group"] for results in all_results for row in results["rows"]}
    for results in all_results:
        stage, decoding = results["stage"], results["decoding"]
        size = re.fullmatch(r"(.+)-n(\d+)", stage)                                        # sft-n500
        unsolved = [p for p in records(results["folder"] / "predictions.jsonl") if p["id"] in hard]
        for row in results["rows"] + ([summarize(unsolved, "hard", {})] if unsolved else []):
            name = row_name(row).removeprefix(f"{row['group']}, " if len(only) == 1 else "")
            (name, _, horizon), y = name.partition(", horizon "), [row["mean"], row["se"], row["n"]]
            if size and not horizon:                                                      # Figure 4
                yield "Accuracy by data", name, f"{size[1]}, {decoding}", [int(size[2]), *y]
            elif horizon and not size:
                yield "Accuracy by horizon", f"{name}, {decoding}", stage, [int(horizon), *y]
            elif not horizon:
                section = "Hard tasks" if row["group"] == "hard" else "Accuracy by stage"     # Figure 3b
                yield section, f"{name} ({row['metric']})", decoding, [stage, *y]
    needed = [("hard" if t["id"] in hard else str(t["interventions"]), t.get("kind", "all")) for t in mps]
    kinds = Counter(kind for _, kind in needed)
    for label, kind in itertools.product(sorted({label for label, _ in needed}), sorted(kinds)):   # 3a
        n = needed.count((label, kind))
        yield "Teacher interventions", "per cent of tasks", kind, [label, 100 * n / kinds[kind], 0, n]
    for folder in checkpoints:
        metrics = records(folder / "metrics.jsonl")
        for m in metrics[::1 + len(metrics) // 400]:
            numbers = {f: x for f, x in m.items() if f != "step" and x is not None and math.isfinite(x)}
            for field, x in numbers.items():
                title = re.match("reward|seconds|.*", field)[0].replace("_", " ")    # one chart for reward…
                section = f"Training: {folder.name}" if "reward" in m else "Training, supervised"
                title = title if "reward" in m else f"{folder.name}, {title}"
                yield section, title, field, [m["step"], x, 0, 1]


def collect(run_dir):
    """-> (panels of charts with their series of points, results, trajectories by source)."""
    def order(name):                                     # base, bc, sft, sft-n500, rl
        known = "base bc mps sft dpo grpo rl".split()
        return (known + [name.split("-")[0]]).index(name.split("-")[0]), name
    run_dir, panels = Path(run_dir), {}
    mps = records(run_dir / "mps.jsonl") or records(run_dir / "mps" / "mps.jsonl")
    checkpoints = sorted(run_dir.glob("ckpt/*"), key=lambda folder: order(folder.name))
    all_results = [read_results(path.parent) for path in run_dir.glob("eval/*/results.json")]
    all_results.sort(key=lambda r: (order(r["stage"]), r["decoding"]))
    sources = {"bc": records(run_dir / "bc.jsonl"), "mps": mps}
    sources |= {f"eval {r['name']}": records(r["folder"] / "predictions.jsonl") for r in all_results}
    sources |= {f"rollouts {folder.name}": records(folder / "rollouts.jsonl") for folder in checkpoints}
    for section, title, series, point in chart_points(all_results, mps, checkpoints):
        panel = panels.setdefault((section, title), dict(section=section, title=title, series={}))
        panel["series"].setdefault(series, []).append(point)
    return list(panels.values()), all_results, {name: found for name, found in sources.items() if found}


def report(args):
    from plumbing.report import make_page
    panels, all_results, sources = collect(args.run_dir)
    if not panels and not sources:
        raise InputError(f"{args.run_dir} holds no bc.jsonl, mps.jsonl, ckpt/* or eval/*")
    make_page(args.run_dir, panels, list(map(results_table, all_results)), sources, args.trajectories,
              args.characters)


if __name__ == "__main__":
    arguments = parse_args()
    cli({"run": run, "table": table, "report": report}[arguments.command], arguments)
