"""How often the first wrong step of a failed run is named exactly, in the toy world, where it is known.

    python bench/first_error.py --run runs/demo      # a folder that demo/run.sh has made; about ten minutes

A student of the demo plays tasks, and its failed runs are kept. Which step is wrong is known: the demo's
teacher reads it off the question. Then, on the same runs, it is named by
(a) a noisy teacher, who errs at --error-rate, and then names any other step;
(b) the search: the student is resumed --tries times from the prefix before a step, at up to 3 steps (what
    `mps.py --verify-first-error` does), and no teacher is heard;
(c) both together, as mps.py has it: the search begins with the belief that the teacher is right at his rate.

Two kinds of failed runs. Slips: the trained student (rl), sampled at temperature 1.5, errs by accident, and
would mostly succeed from a sound prefix. Habits: the cloned student (bc) at the temperature of mps.py errs
where it cannot do better, seldom succeeds from anywhere, and so says little about where the error lies.
Runs without a false step (the student only stopped early or idled to the limit) are counted and left out.
"""
import argparse
import math
import os
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]   # before this folder, whose env.py and mps.py are benches
import env  # noqa: E402
import mps  # noqa: E402
import teacher as demo_teacher  # noqa: E402
from plumbing.engines import (
    load_engine,  # noqa: E402
    sampling_from_args,
)
from plumbing.search import search_from_args  # noqa: E402
from plumbing.tasks import read_tasks  # noqa: E402
from plumbing.trajectory import render, step_of  # noqa: E402


def failed_runs(tasks, engine, playing, args, options, search):
    """-> [(Mentored after its first episode, the true first wrong step)], runs without a false step."""
    found, unclear = [], 0
    for at in range(0, len(tasks), options.batch):
        limits = options.max_steps, options.max_tokens
        episodes = env.make_episodes(tasks[at:at + options.batch], 1, *limits, search)
        engine.play(episodes, **{**sampling_from_args(options), **playing})
        for task, e in zip(tasks[at:], episodes):
            mentored = mps.Mentored(task, e, None, options)
            steps = demo_teacher.read_steps(render(e.messages))
            if mentored.is_right(e):
                continue
            guide = demo_teacher.Task(task["question"])
            results = ["a plan binds nothing here", *(guide.take(content) for content, _ in steps[1:])]
            if "wrong" in results:
                found.append((mentored, results.index("wrong")))
            unclear += "wrong" not in results
            if len(found) == args.n:
                return found, unclear
    return found, unclear


def search_all(runs, named, accuracy, engine, options):
    """The searches of all runs side by side, their trials played together -> what each found."""
    jobs, results = [], [None] * len(runs)
    for i, ((mentored, _), name) in enumerate(zip(runs, named)):
        jobs.append((i, mps.first_error(mentored, name, accuracy)))
    while jobs:
        asked = []
        for i, job in jobs:
            try:
                asked.append((i, job, next(job)))
            except StopIteration as end:
                results[i] = end.value
        engine.play([e for _, _, episodes in asked for e in episodes], **sampling_from_args(options))
        jobs = [(i, job) for i, job, _ in asked]
    return results


def share(hits):
    p = sum(hits) / len(hits)
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(hits)):.1f}"


def compare(student, temperature, args, options, search):
    """Prints the table of one student."""
    engine = load_engine(options, os.path.join(args.run, "ckpt", student), env.load_chat, [])
    tasks = read_tasks(os.path.join(args.run, "tasks/mps.jsonl"))
    playing = dict(temperature=temperature) | (dict(top_p=1, top_k=0) if temperature > 1 else {})
    runs, unclear = failed_runs(tasks, engine, playing, args, options, search)
    named, dice, truth = [], random.Random(args.seed), [true for _, true in runs]
    for mentored, true in runs:
        others = [k for k in range(step_of(mentored.episode.messages)) if k != true]
        named.append(dice.choice(others) if others and dice.random() < args.error_rate else true)
    steps = sum(step_of(m.episode.messages) for m, _ in runs) / len(runs)
    print(f"\n{len(runs)} failed runs of {student} at temperature {temperature:g} with a false step, beside "
          f"{unclear} without one; {steps:.1f} steps each\n"
          "| the first wrong step is named by | exactly right, % | resumptions a run |\n|---|---:|---:|\n"
          f"| a teacher who errs in {100 * args.error_rate:g} % | "
          f"{share([a == b for a, b in zip(named, truth)])} | 0 |", flush=True)
    for name, word in ("the search alone", [None] * len(runs)), ("both together", named):
        found = search_all(runs, word, 1 - args.error_rate, engine, options)
        tried = sum(tries for f in found for _, _, tries in f["probes"]) / len(found)
        hits = [f["step"] == true for f, true in zip(found, truth)]
        print(f"| {name} | {share(hits)} | {tried:.1f} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="folder of a demo run, as runs/demo")
    p.add_argument("--students", nargs="+", default=["rl:1.5", "bc:0.6"],
                   help="checkpoint in it and temperature of the failed runs (default rl:1.5 bc:0.6)")
    p.add_argument("-n", type=int, default=100, help="failed runs (default 100)")
    p.add_argument("--tries", type=int, default=4, help="resumptions from a prefix (default 4)")
    p.add_argument("--error-rate", type=float, default=0.4, help="of the noisy teacher (default 0.4)")
    p.add_argument("--seed", type=int, default=0, help="of the teacher's errors (default 0)")
    args = p.parse_args()
    server, url = demo_teacher.serve(demo_teacher.parse_args(["--port", "0"]))       # for its web search
    options = mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", url,
                              "--search", f"http:{url}/search", "--no-preload", "--max-tokens", "240",
                              "--verify-first-error", str(args.tries)])
    search = search_from_args(options)
    for student in args.students:
        name, _, temperature = student.partition(":")
        compare(name, float(temperature or 0.6), args, options, search)
    server.shutdown()


if __name__ == "__main__":
    main()
