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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from env import Episode, Search
from judge import Teacher, correct_answer
from plumbing.chat_api import BadReply, Usage
from plumbing.cli import Parser, cli, env_flags, teacher_flags
from plumbing.records import Record, append_jsonl, resume_jsonl
from plumbing.search import SearchFailed, search_from_args
from plumbing.start import check_resume, check_start, claim, save_args
from plumbing.tasks import read_tasks
from plumbing.values import whole
from sandbox import Interpreter, set_sandbox


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--tasks", required=True, help="JSON lines with id, question, answer")
    g.add_argument("--out", required=True, help="JSON lines file for the trajectories")
    g = p.add_argument_group("demonstrations")
    g.add_argument("--attempts", type=whole(1), default=2, help="tries per task until an answer is right")
    g.add_argument("--max-steps", type=whole(1), default=8, help="thought–code steps per trajectory")
    env_flags(p)
    teacher_flags(p)
    return p.parse_args(argv)


def demonstrate(teacher: Teacher, task: Record, search: Search | None, args: argparse.Namespace, sample: int,
                usage: Usage) -> Record:
    """One trajectory written by the teacher: a plan, then steps; each runs before the next is asked for."""
    interpreter = Interpreter(search)
    try:
        episode = Episode(task, interpreter, max_steps=args.max_steps)
        plan = teacher.plan(task["question"], answers=task["answer"], sample=sample, usage=usage)
        observation = episode.turn(f"<first_thought>{plan}</first_thought>")
        while observation is not None:                     # None: the trajectory has ended
            step = teacher.step(task["question"], episode.messages, sample=sample, usage=usage)
            observation = episode.turn(step)
        return episode.trajectory()
    finally:
        interpreter.close()


def solve(teacher: Teacher, task: Record, search: Search | None, args: argparse.Namespace,
          demonstrate: Callable[..., Record]) -> tuple[Record | None, list[str]]:
    """Rejection sampling: the first of --attempts demonstrations whose answer is right, or None.

    The second value says what was wrong with each of those before it.
    """
    faults = []
    usage: Usage = {}                                      # of all attempts at this task
    for sample in range(args.attempts):
        try:
            trajectory = demonstrate(teacher, task, search, args, sample, usage)
        except BadReply as error:
            faults.append(f"{error}; the reply was {error.raw[:500]!r}")
            continue
        stop = trajectory["stop"]
        prediction = trajectory["prediction"]
        if stop == "failed":
            raise SearchFailed("a search failed for good; the run can be resumed")
        if stop == "answer" and correct_answer(teacher, task["question"], prediction, task["answer"]):
            trajectory["correct"] = True
            trajectory["corrections"] = []
            trajectory["usage"] = {f"teacher_{name}": n for name, n in usage.items()}
            return trajectory, faults
        faults.append(f"stop: {stop}, prediction: {prediction!r}")
    return None, faults


def main(args: argparse.Namespace, demonstrate: Callable[..., Record] = demonstrate) -> None:
    """`demonstrate` makes one trajectory; a fork gives its own (baselines/cot.py)."""
    from tqdm import tqdm
    check_start(args, out_is_file=True)
    tasks = read_tasks(args.tasks)
    teacher = Teacher.from_args(args)
    if "sandbox" in args:                                  # a fork that runs no code has no such flag
        set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)
    rejected = os.path.splitext(args.out)[0] + ".rejected.jsonl"
    claim(args.out)
    before = resume_jsonl(args.out, ["id"]) + resume_jsonl(rejected, ["id"])
    check_resume(args, before, tasks, results=f"{args.out} with {rejected}")
    done = {record["id"] for record in before}
    todo = [task for task in tasks if task["id"] not in done]
    print(f"{len(tasks)} tasks, {len(done)} finished before")
    save_args(args)
    kept = 0
    with (open(args.out, "a", encoding="utf-8") as good, open(rejected, "a", encoding="utf-8") as bad,
          ThreadPoolExecutor(args.concurrency) as pool,
          tqdm(total=len(todo), desc="demonstrations", unit="task") as bar):
        jobs = {pool.submit(solve, teacher, task, search, args, demonstrate): task for task in todo}
        try:
            for job in as_completed(jobs):
                trajectory, faults = job.result()
                if trajectory is not None:
                    append_jsonl(good, trajectory)
                    kept += 1
                else:
                    task = jobs[job]
                    append_jsonl(bad, {"id": task["id"], "question": task["question"], "faults": faults})
                bar.update(1)
                tokens = teacher.counts["completion_tokens"]
                bar.set_postfix(kept=kept, teacher_tokens_a_task=tokens // bar.n, refresh=False)
        finally:                                           # on an error, do not wait for queued tasks
            pool.shutdown(wait=False, cancel_futures=True)
    print(f"{args.out}: {kept} new trajectories from {len(todo)} tasks\n{teacher.summary()}")


if __name__ == "__main__":
    cli(main, parse_args())
