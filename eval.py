"""Measure an agent on task files, set the numbers beside the paper's, and show what the agent did.

  run     model, task files -> OUT/predictions.jsonl (one line per task and run), OUT/results.json, a table
  table   OUT folders       -> one table of all, and the paper's tables with our rows where benchmarks match
  report  a RUN folder      -> RUN/report.html (one file that opens from disk) and RUN/plots/*.png
  cost    RUN folders       -> seconds, tokens and teacher calls of every stage and of a solved task

  CPU     python eval.py run --model ckpt/rl --tasks tasks/eval.jsonl --out eval/rl-greedy --greedy
  1 GPU   python eval.py run --model ckpt/rl --tasks benchmarks/*/test.jsonl --out eval/rl --engine vllm \\
            --teacher-url http://teacher:8000 --search http:https://google.serper.dev/search \\
            --search-cache search.sqlite
  8 GPUs  torchrun --nproc_per_node 8 eval.py run …the same flags…    (each rank plays an eighth of the tasks)

Public sets are read as they are. The name of a file or of its folder (hotpotqa.jsonl, hotpotqa/test.jsonl)
tells the benchmark, and the benchmark decides the metric. The same command resumes a killed run.

± is the standard error over tasks. A task without an answer scores 0 and is counted as unanswered (no steps
were left, or a turn broke the grammar), truncated (no tokens were left) or failed (the search or the judge
failed; the next call tries again).

Models that were not trained here are asked with --prompt agent, tir or cot, the paper's baselines (those of
baselines/cot.py with cot or cot-rag), and --self-consistent N chooses each step from N candidates: see
baselines/prompting.py. Its name gives a run its place: arpo, or 3b-arpo, stands below the paper's row of ARPO
(baselines/README.md has all names), and sft-n500-greedy at 500 in the report's Figure 4.

Differences from the paper: rules compare answers, and a model (--judge-url, else --teacher-url) is asked only
where they cannot decide. The paper does not say how many runs it averages; the default of --runs is 1.
"""
import argparse
import hashlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import env
import judge
from baselines import prompting
from plumbing import costs
from plumbing.answers import qa_score
from plumbing.benchmarks import F1_BENCHMARKS, benchmark_of, gaia_level, named_benchmark
from plumbing.chat_api import BadReply
from plumbing.cli import InputError, Parser, cli, env_flags, sampling_flags, teacher_flags
from plumbing.engines import Engine, load_engine, sampling_from_args
from plumbing.ranks import part_of_rank, rank_and_world, sum_over_ranks, wait_for_ranks
from plumbing.records import (
    PREDICTION_FIELDS,
    Record,
    append_jsonl,
    merge_parts,
    ranks_files,
    read_parts,
    write_jsonl,
)
from plumbing.report import collect, make_page
from plumbing.results import combined_table, paper_tables, read_results, result_rows, results_table, why_zero
from plumbing.search import Search, search_from_args
from plumbing.start import check_resume, check_start, save_args
from plumbing.tasks import read_tasks
from plumbing.values import whole
from sandbox import set_sandbox

# ---- flags ----

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | table | report | cost")
    p = commands.add_parser("run", help="evaluate a model on task files")
    add_run_flags(p)
    p = commands.add_parser("table", help="one table of several result folders")
    p.add_argument("results", nargs="+", type=Path, metavar="OUT", help="folders of `run`, in order of rows")
    p.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables to this file too")
    p.add_argument("--paper", type=numbers_of_tables, default="auto",
                   help="the paper's tables to show: auto (those we have a row for), none, or as 1,3")
    p = commands.add_parser("report", help="an HTML page and plots of a whole run")
    p.add_argument("run_dir", type=Path, metavar="RUN", help="folder with bc.jsonl, mps/, ckpt/, eval/")
    p.add_argument("--trajectories", type=whole(0), default=1000, help="number of trajectories on the page")
    p.add_argument("--characters", type=whole(1), default=4000, help="characters shown of one message")
    p = commands.add_parser("cost", help="what the stages of a run cost, in all and per solved task",
                            description=costs.__doc__)
    p.add_argument("runs_made", nargs="+", type=Path, metavar="RUN", help="folders with the files of stages")
    args = parser.parse_args(argv)
    if args.command == "run":
        check_run_flags(parser, args)
    return args


def numbers_of_tables(text: str) -> str:
    """The value of --paper, if it is one."""
    if not re.fullmatch(r"auto|none|[1235](,[1235])*", text):
        raise argparse.ArgumentTypeError(f"{text} is not auto, none, or some of 1,2,3,5")
    return text


def add_run_flags(p: argparse.ArgumentParser) -> None:
    """The flags of `eval.py run`."""
    g = p.add_argument_group("what is measured")
    g.add_argument("--model", required=True, help="checkpoint folder, or the model's name at --student-url")
    g.add_argument("--tasks", required=True, nargs="+", metavar="FILE",
                   help="JSONL files of tasks with answers")
    g.add_argument("--out", required=True, type=Path, help="folder for the results; a second call resumes")
    g.add_argument("--name", help="name of the row in tables (default: the name of the folder OUT)")
    g.add_argument("--benchmark", metavar="NAME", help="benchmark of all files (default: from their names)")
    g.add_argument("--limit", type=whole(1), metavar="N", help="first N tasks of each file (default: all)")
    g.add_argument("--runs", type=whole(1), default=1, metavar="K", help="independent runs of every task")
    g.add_argument("--chunk", type=whole(1), default=256, help="tasks rolled out together between two saves")
    g.add_argument("--prompt", choices=list(prompting.CANDIDATES), default="react",
                   help="react: the trained grammar; the others put instructions before the question, "
                        "cot-rag also what one search for it finds")
    g.add_argument("--self-consistent", type=whole(1), default=1, metavar="N",
                   help="candidates for every step; the most frequent output wins")
    g.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    sampling_flags(p)
    env_flags(p)
    g = p.add_argument_group("scoring")
    g.add_argument("--metric", choices=["auto", "f1", "em", "judge", "rule"], default="auto",
                   help="auto: that of the benchmark; judge: rules, then the judge, if given; "
                        "rule: rules alone (Table 5)")
    g.add_argument("--variant", choices=["arpo", "squad"], default="arpo",
                   help="of f1 and em: arpo keeps punctuation, squad drops it and has HotpotQA's yes/no rule")
    teacher_flags(p, required=False)


def check_run_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Turn --greedy into a temperature, and refuse flags that do not go together."""
    if args.greedy:
        args.temperature = 0.0
    if args.self_consistent > 1 and args.temperature == 0:
        parser.error("--self-consistent needs a temperature: greedy candidates are all the same")
    if args.prompt == "cot-rag" and args.search in (None, "none"):
        parser.error("--prompt cot-rag needs --search, where it is searched")


# ---- benchmarks ----

def load_tasks(args: argparse.Namespace) -> list[Record]:
    """The tasks of all files, each with its `group` (benchmark) and `metric`."""
    tasks = []
    for path in args.tasks:
        group = named_benchmark(args.benchmark) if args.benchmark else benchmark_of(path)
        metric = args.metric
        if metric == "auto":
            metric = "f1" if group in F1_BENCHMARKS else "judge"
        of_file = read_tasks(path)[:args.limit]
        for task in of_file:
            level = gaia_level(task, path, args.benchmark)
            if group == "GAIA" and level is not None:
                task["Level"] = level
            tasks.append(task | {"group": group, "metric": metric})
        if rank_and_world()[0] == 0:
            print(f"{path}: {len(of_file)} tasks, benchmark {group}, metric {metric}", flush=True)
    return distinct(tasks)


def distinct(tasks: list[Record]) -> list[Record]:
    """The tasks; an id that a benchmark has twice is made longer by a hash of its question.

    Raises InputError if the questions are the same too.
    """
    times = Counter((task["group"], task["id"]) for task in tasks)
    places = set()
    for task in tasks:
        if times[task["group"], task["id"]] > 1:
            task["id"] += "-" + hashlib.sha256(task["question"].encode()).hexdigest()[:8]
        if (task["group"], task["id"]) in places:
            raise InputError(f"two of the --tasks files hold the same task of {task['group']}, "
                             f"id {task['id']}: leave one of them out")
        places.add((task["group"], task["id"]))
    return tasks


# ---- scores ----

def score(trajectory: Record, variant: str = "arpo", teacher: judge.Teacher | None = None) -> Record:
    """-> {"score" in 0…1, "correct", "verdict", "metric"}; for f1 and em, `correct` is the exact match."""
    prediction = trajectory["prediction"]
    metric = trajectory["metric"]
    if metric in ("f1", "em"):
        f1 = 0.0
        em = 0.0
        if prediction is not None:
            f1, em = qa_score(prediction, trajectory["answer"], variant)
        return {"score": f1 if metric == "f1" else em, "correct": em == 1,
                "verdict": f"F1 {f1:.3f}, EM {em:.0f}", "metric": f"{metric}-{variant}"}
    asked = teacher if metric == "judge" else None
    try:
        correct = judge.correct_answer(asked, trajectory["question"], prediction, trajectory["answer"])
    except BadReply:
        return {"score": 0.0, "correct": False, "verdict": "failed", "metric": metric}
    if metric == "judge" and teacher is None:
        metric = "judge-by-rule"
    return {"score": float(correct), "correct": correct, "verdict": "right" if correct else "wrong",
            "metric": metric}


# ---- run ----

def key_of(task: Record) -> tuple[str, str, int]:
    """What tells predictions apart."""
    return task["group"], task["id"], task["run"]


def has_failed(prediction: Record) -> bool:
    """Whether the next call should try it again."""
    return why_zero(prediction) == "failed"


def read_predictions(out: Path) -> dict[tuple[str, str, int], Record]:
    """All predictions of OUT by their keys, those that the ranks wrote apart too."""
    return read_parts(out, "predictions", key_of, has_failed, PREDICTION_FIELDS)


def merge_predictions(out: Path) -> None:
    """Put what the ranks wrote apart into OUT/predictions.jsonl."""
    if ranks_files(out, "predictions"):
        merge_parts(out, "predictions", read_predictions(out).values())


def describe_sampling(args: argparse.Namespace) -> str:
    """How tokens were drawn and the model was asked, for the table's title."""
    text = "greedy"
    if args.temperature:
        text = f"temperature {args.temperature}, top-p {args.top_p}, top-k {args.top_k}"
    if args.prompt != "react":
        text += f", prompt {args.prompt}"
    if args.self_consistent > 1:
        text += f", {args.self_consistent} candidates a step"
    return text


def play(args: argparse.Namespace, tasks: list[Record], rank: int, engine: Engine,
         teacher: judge.Teacher | None, search: Search | None) -> None:
    """Roll out and score tasks; the predictions of a chunk are saved before the next one begins."""
    from tqdm import tqdm
    chunk = max(1, args.chunk // args.self_consistent)     # each candidate has an interpreter
    with (open(args.out / f"predictions.rank{rank}.jsonl", "a", encoding="utf-8") as file,
          ThreadPoolExecutor(args.concurrency) as pool,
          tqdm(total=len(tasks), desc="eval", unit="task", disable=rank > 0) as bar):
        how = {"max_steps": args.max_steps, "max_tokens": args.max_tokens, "search": search, "progress": bar,
               **sampling_from_args(args)}
        for at in range(0, len(tasks), chunk):
            starts = tasks[at:at + chunk]
            if args.prompt == "react" and args.self_consistent == 1:
                trajectories = env.rollout(engine, starts, **how)
            else:
                trajectories = prompting.rollout(engine, starts, args.prompt, args.self_consistent, **how)
            for scored in pool.map(lambda t: t | score(t, args.variant, teacher), trajectories):
                append_jsonl(file, scored)


def share_solved(engine: Engine, tasks: list[Record], search: Search | None,
                 args: argparse.Namespace) -> float:
    """Share of tasks that grpo_short.py's policy solves greedily, by rule; every rank plays its part."""
    mine = part_of_rank(tasks, *rank_and_world())
    played = env.rollout(engine, mine, max_steps=args.max_steps, max_tokens=args.max_tokens, search=search,
                         temperature=0)
    played = [t for t in played if t["stop"] != "failed"]  # a search that failed says nothing of the policy
    right = sum(judge.correct_answer(None, t["question"], t["prediction"], t["answer"]) for t in played)
    solved, tried = sum_over_ranks(right, len(played), after="its held-out tasks")
    return solved / max(1, tried)


def run(args: argparse.Namespace, engine: Engine | None = None) -> None:
    """Play what is missing; rank 0 puts the ranks' files together and prints the table.

    `engine` generates in place of the one that --engine names.
    """
    rank, world = rank_and_world()
    check_start(args)
    tasks = load_tasks(args)
    wanted = []
    for number in range(args.runs):
        wanted += [task | {"run": number} for task in tasks]
    if rank == 0:
        before = read_predictions(args.out).values()
        check_resume(args, before, wanted, key=key_of)
    teacher = judge.Teacher.judge_from_args(args)
    set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)

    # ---- rollout ----
    if rank == 0:                                          # again: now the name of the judge is known
        check_resume(args, before, wanted, key=key_of)
        merge_predictions(args.out)
    wait_for_ranks("merging what is there")
    save_args(args)
    done = {key for key, prediction in read_predictions(args.out).items() if not has_failed(prediction)}
    wait_for_ranks("reading what is there")                # nobody writes before everybody has read
    todo = [task for task in wanted if key_of(task) not in done]
    if rank == 0:
        print(f"{len(wanted)} rollouts, {len(wanted) - len(todo)} of them already there", flush=True)
    if todo:                                               # vLLM's ranks start together, idle ones too
        openings = [{"messages": prompting.opening(task, args.prompt)} for task in todo]
        mine = prompting.opened(part_of_rank(todo, rank, world), args.prompt, search, args.threads)
        wait_for_ranks("its searches")
        engine = engine or load_engine(args, args.model, env.load_chat, [*openings, *mine])
        play(args, mine, rank, engine, teacher, search)
    wait_for_ranks("its tasks")

    # ---- results ----
    if rank == 0:
        merge_predictions(args.out)
        predictions = read_predictions(args.out)
        results = {"name": args.name or args.out.absolute().name, "model": args.model, "runs": args.runs,
                   "decoding": "sampled" if args.temperature else "greedy",
                   "sampling": describe_sampling(args),
                   "rows": result_rows([predictions[key_of(task)] for task in wanted])}
        write_jsonl(args.out / "results.json", [results])
        print(results_table(results))


# ---- table, report, cost ----

def table(args: argparse.Namespace) -> None:
    """Print all results as one table, and the paper's tables with our rows."""
    if args.out and (args.out.suffix in (".json", ".jsonl") or args.out.is_dir()):
        raise InputError(f"--out {args.out} must be a new file for text, such as table.md")
    all_results = [read_results(folder) for folder in args.results]
    text = "\n\n".join([combined_table(all_results), *paper_tables(all_results, args.paper)])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def report(args: argparse.Namespace) -> None:
    """Write the page and the plots of a run's folder."""
    panels, all_results, sources = collect(args.run_dir)
    if not panels and not sources:
        raise InputError(f"{args.run_dir} holds no bc.jsonl, mps.jsonl, ckpt/* or eval/*")
    make_page(args.run_dir, panels, all_results, sources, args.trajectories, args.characters)


def cost(args: argparse.Namespace) -> None:
    """Print what each run cost, and several runs side by side."""
    tables = [costs.cost_tables(folder) for folder in args.runs_made]
    if len(tables) > 1:
        tables.append(costs.comparison(args.runs_made))
    print("\n\n".join(tables))


COMMANDS = {"run": run, "table": table, "report": report, "cost": cost}

if __name__ == "__main__":
    arguments = parse_args()
    cli(COMMANDS[arguments.command], arguments)
