"""Stage 1, data: the teacher demonstrates, and what ends in the right answer is kept for behaviour cloning.

  tasks.jsonl (id, question, answer)  ->  bc.jsonl           trajectories
                                          bc.rejected.jsonl  tasks without one, and why

Dual prompts (paper, section 3.1): one for the plan, which becomes <first_thought>; one for each thought–code
step given the plan and the observations so far. Rejection sampling: only trajectories with a correct final
answer stay.

Differences from the paper: none known; how often a task is tried again is not stated there (--attempts,
default 2).

  laptop:  python bc.py --tasks tasks.jsonl --out bc.jsonl \\
             --teacher-url http://127.0.0.1:8008 --teacher-model toy-teacher
  real:    vllm serve Qwen/Qwen2.5-72B-Instruct --tensor-parallel-size 8 &
           SEARCH_API_KEY=… python bc.py --tasks tasks.jsonl --out bc.jsonl \\
             --teacher-url http://localhost:8000 --teacher-model Qwen/Qwen2.5-72B-Instruct \\
             --search http:https://google.serper.dev/search --teacher-cache teacher.sqlite

A killed run goes on where it stopped when the same command is given again.
"""
import argparse
import os
from concurrent.futures import ThreadPoolExecutor, as_completed

from env import Episode
from judge import Teacher, correct_answer
from plumbing.chat_api import BadReply
from plumbing.cli import Help, add_env_flags, add_teacher_flags, cli
from plumbing.records import append_jsonl, read_tasks, resume_jsonl, save_args
from plumbing.search import SearchFailed, search_from_args
from sandbox.interpreter import Interpreter, set_sandbox


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    g = p.add_argument_group("files")
    g.add_argument("--tasks", required=True, help="JSON lines with id, question, answer")
    g.add_argument("--out", required=True, help="JSON lines file for the trajectories")
    g = p.add_argument_group("demonstrations")
    g.add_argument("--attempts", type=int, default=2, help="tries per task until an answer is right")
    g.add_argument("--max-steps", type=int, default=8, help="thought–code steps per trajectory")
    add_env_flags(p)
    add_teacher_flags(p)
    return p.parse_args(argv)


def demonstrate(teacher, task, search, max_steps, sample, usage):
    """One trajectory written by the teacher: plan, then steps, each run before the next is asked for."""
    episode = Episode(task, Interpreter(search), max_steps=max_steps)
    how = dict(sample=sample, usage=usage)
    seen = episode.turn(f"<first_thought>{teacher.plan(task['question'], **how)}</first_thought>")
    while seen is not None:
        seen = episode.turn(teacher.step(task["question"], episode.messages, **how))
    episode.interpreter.close()
    return episode.trajectory()


def solve(teacher, task, search, args):
    """Up to --attempts demonstrations -> (trajectory or None, what was wrong with each failed one)."""
    faults, usage = [], {}
    for sample in range(args.attempts):
        try:
            trajectory = demonstrate(teacher, task, search, args.max_steps, sample, usage)
        except BadReply as e:
            faults.append(f"{e}; the reply was {e.raw[:500]!r}")
            continue
        if trajectory["stop"] == "failed":
            raise SearchFailed("a search failed for good; the run can be resumed")
        if trajectory["stop"] == "answer" and correct_answer(teacher, task["question"],
                                                             trajectory["prediction"], task["answer"]):
            return {**trajectory, "correct": True, "corrections": [],
                    "usage": {f"teacher_{k}": v for k, v in usage.items()}}, faults
        faults.append(f"stop: {trajectory['stop']}, prediction: {trajectory['prediction']!r}")
    return None, faults


def main(args):
    from tqdm import tqdm
    tasks = read_tasks(args.tasks)
    teacher = Teacher.from_args(args)
    set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)
    rejected = os.path.splitext(args.out)[0] + ".rejected.jsonl"
    done = {r["id"] for path in (args.out, rejected) for r in resume_jsonl(path)}
    todo = [t for t in tasks if t["id"] not in done]
    print(f"{len(tasks)} tasks, {len(done)} finished before")
    save_args(args, os.path.splitext(args.out)[0] + ".args.json")
    kept = 0
    with (open(args.out, "a", encoding="utf-8") as good, open(rejected, "a", encoding="utf-8") as bad,
          ThreadPoolExecutor(args.concurrency) as pool, tqdm(total=len(todo), desc="bc", unit="task") as bar):
        jobs = {pool.submit(solve, teacher, task, search, args): task for task in todo}
        try:
            for job in as_completed(jobs):
                trajectory, faults = job.result()
                append_jsonl(*((good, trajectory) if trajectory else
                               (bad, {"id": jobs[job]["id"], "faults": faults})))
                kept += trajectory is not None
                bar.update(1)
                bar.set_postfix(kept=kept, teacher_tokens_a_task=teacher.counts["completion_tokens"] // bar.n,
                                refresh=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    print(f"{args.out}: {kept} new trajectories from {len(todo)} tasks\n{teacher.summary()}")


if __name__ == "__main__":
    cli(main, parse_args())
