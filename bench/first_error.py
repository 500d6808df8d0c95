"""How often the first wrong step of a failed run is named exactly, in the toy world, where it is known.

    python bench/first_error.py --run runs/demo      # a folder that bash demo/run.sh has made; about five minutes

The demo's student plays tasks, and its failed runs are kept. Which step is wrong is known: the demo's teacher reads
it off the question. Then, on the same runs, it is named by
(a) a noisy teacher, who errs at --error-rate, and then names any other step;
(b) the search: the student is resumed --tries times from the prefix before a step, at up to 3 steps (what
    `mps.py --verify-first-error` does), and no teacher is heard;
(c) both together, as mps.py has it: the search begins with the belief that the teacher is right at his rate.
Runs in which no step is false (the student only stopped early or went on to the limit) are left out and counted.
"""
import argparse
import math
import os
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]             # before this folder, whose env.py and mps.py are benches
import teacher as demo_teacher  # noqa: E402

import env  # noqa: E402
import judge  # noqa: E402
import mps  # noqa: E402


def failed_runs(tasks, engine, args, options, search):
    """-> [(Mentored after its first episode, the true first wrong step)], and how many runs have no false step."""
    found, unclear = [], 0
    for at in range(0, len(tasks), options.batch):
        episodes = env.make_episodes(tasks[at:at + options.batch], 1, options.max_steps, options.max_tokens, search)
        engine.play(episodes, **env.sampling_from_args(options))
        for task, e in zip(tasks[at:], episodes):
            mentored, steps = mps.Mentored(task, e, None, options), demo_teacher.read_steps(judge.render(e.messages))
            if mentored.right(e):
                continue
            guide = demo_teacher.Task(task["question"])
            results = [guide.take(content, first=k == 0) for k, (content, _) in enumerate(steps)]
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
        steps = env.step_of(mentored.episode.messages)
        jobs.append((i, mentored.first_error(name, accuracy or 1 / steps)))
    while jobs:
        asked = []
        for i, job in jobs:
            try:
                asked.append((i, job, next(job)))
            except StopIteration as end:
                results[i] = end.value
        engine.play([e for _, _, episodes in asked for e in episodes], **env.sampling_from_args(options))
        jobs = [(i, job) for i, job, _ in asked]
    return results


def share(hits):
    p = sum(hits) / len(hits)
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(hits)):.1f}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="folder of a demo run, as runs/demo")
    p.add_argument("--student", default="bc", help="checkpoint in it that plays: bc, sft or rl (default bc)")
    p.add_argument("-n", type=int, default=200, help="failed runs (default 200)")
    p.add_argument("--tries", type=int, default=4, help="resumptions from a prefix (default 4)")
    p.add_argument("--error-rate", type=float, default=0.4, help="of the noisy teacher (default 0.4)")
    p.add_argument("--seed", type=int, default=0, help="of the teacher's errors (default 0)")
    p.add_argument("--out", help="JSON-lines file for what was found in each run")
    args = p.parse_args()
    server, url = demo_teacher.serve(demo_teacher.parse_args(["--port", "0"]))              # for its web search
    options = mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", url, "--search",
                              f"http:{url}/search", "--no-preload", "--max-tokens", "240",
                              "--verify-first-error", str(args.tries)])
    search, dice = env.search_from_args(options), random.Random(args.seed)
    engine = env.load_engine("torch", os.path.join(args.run, "ckpt", args.student))
    tasks = judge.read_tasks(os.path.join(args.run, "tasks/mps.jsonl"))
    runs, unclear = failed_runs(tasks, engine, args, options, search)
    named, truth = [], [true for _, true in runs]
    for mentored, true in runs:
        others = [k for k in range(env.step_of(mentored.episode.messages)) if k != true]
        named.append(dice.choice(others) if others and dice.random() < args.error_rate else true)
    print(f"{len(runs)} failed runs of {args.student} with a false step, beside {unclear} without one; "
          f"{sum(env.step_of(m.episode.messages) for m, _ in runs) / len(runs):.1f} steps each")
    print("| the first wrong step is named by | exactly right, % | runs of the student, each |\n|---|---:|---:|")
    print(f"| a teacher who errs in {100 * args.error_rate:g} % | "
          f"{share([a == b for a, b in zip(named, truth)])} | 0 |", flush=True)
    for name, accuracy in ("the search alone", None), ("both together", 1 - args.error_rate):
        found = search_all(runs, named, accuracy, engine, options)
        tried = sum(tries for f in found for _, _, tries in f["probes"]) / len(found)
        print(f"| {name} | {share([f['step'] == true for f, true in zip(found, truth)])} | {tried:.1f} |", flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                for (mentored, true), f in zip(runs, found):
                    judge.append_jsonl(file, {"id": mentored.task["id"], "by": name, "true": true, **f})
    server.shutdown()


if __name__ == "__main__":
    main()
