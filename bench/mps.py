"""Mentored problem-solving beside a slow or a faulty teacher, with the student that demo/run.sh has made.

    python bench/mps.py --run runs/demo              # speed: about ten minutes on two cores
    python bench/mps.py --run runs/demo --faults     # faults and kills: about ten minutes more

Speed: tasks per minute of (a) a straightforward loop, one task after the other, on a few of the tasks, (b)
waves, the student on all tasks, then the teacher on all, (c) mps.py, in which both work at the same time. The
bound is the latency of all replies divided by the teacher's slots, or the seconds that the student's engine
plays in this run, whichever is more; the CPU-seconds of its thread show what smaller batches cost it.

Faults: mps.py as a user runs it, on the same tasks, (a) undisturbed, (b) with a teacher that spoils 10 % of
its replies in each of six ways, (c) killed (kill -9) at ten random moments. The same tasks must be solved.
One correction a task, so that some stay unsolved.
"""
import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                    # before this folder, whose env.py and mps.py are benches
import env  # noqa: E402
import judge  # noqa: E402
import mps  # noqa: E402
from plumbing.engines import (
    load_engine,  # noqa: E402
    sampling_from_args,
)
from plumbing.records import read_jsonl  # noqa: E402
from plumbing.search import search_from_args  # noqa: E402
from plumbing.tasks import read_tasks  # noqa: E402


class Server:
    """The demo's teacher in a process of its own."""

    def __init__(self, *flags):
        command = [sys.executable, ROOT / "demo/teacher.py", "--port", "0", *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def __enter__(self):
        return self.url

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def flags(args, url, out):
    return ["--tasks", args.tasks, "--student", args.student, "--out", str(out), "--teacher-url", url,
            "--search", f"http:{url}/search", "--no-preload", "--max-tokens", "240",
            "--concurrency", str(args.slots)]


# ---- speed ----

class Timed:
    """An engine that counts the seconds it plays."""
    batched = True

    def __init__(self, engine):
        self.engine, self.wall, self.cpu, self.batches = engine, 0.0, 0.0, 0

    def play(self, episodes, **sampling):
        wall, cpu = time.perf_counter(), time.thread_time()
        self.engine.play(episodes, **sampling)
        self.wall += time.perf_counter() - wall
        self.cpu += time.thread_time() - cpu
        self.batches += 1


def waves(tasks, engine, teacher, search, args, done):
    """The student on all tasks, then the teacher on all, and again."""
    live = []
    for task in tasks:
        e = env.Episode(task, env.Interpreter(search), max_steps=args.max_steps, max_tokens=args.max_tokens)
        mentored = mps.Mentored(task, e, teacher, args)
        live.append((mentored, mps.mentor(mentored)))
    with ThreadPoolExecutor(args.concurrency) as pool:
        asked = [next(run) for _, run in live]
        while live:
            engine.play([e for episodes in asked for e in episodes], **sampling_from_args(args))
            asked = list(pool.map(lambda one: next(one[1], None), live))
            for (mentored, _), episodes in zip(live, asked):
                if episodes is None:
                    done(mentored)
            live, asked = [one for one, e in zip(live, asked) if e], [e for e in asked if e]


def one_by_one(tasks, engine, teacher, search, args, done):
    for task in tasks:
        waves([task], engine, teacher, search, args, done)


def measure(name, scheduler, tasks, engine, latency, args, url):
    options = mps.parse_args(flags(args, url, "-"))
    teacher, found = judge.Teacher.from_args(options), []
    search = search_from_args(options)
    timed, start = Timed(engine), time.perf_counter()
    scheduler(tasks, timed, teacher, search, options, found.append)
    wall, calls = time.perf_counter() - start, teacher.counts["calls"]
    assert sorted(m.task["id"] for m in found) == sorted(t["id"] for t in tasks)
    slots = 1 if scheduler is one_by_one else args.slots
    bound = max(calls * latency / slots, timed.wall)
    print(f"| {name} | {latency:g} | {len(tasks)} | {60 * len(tasks) / wall:.0f} | {wall:.1f} | {calls} | "
          f"{calls * latency / slots:.1f} | {timed.wall:.1f} | {timed.cpu:.1f} | {timed.batches} | "
          f"{wall / bound:.2f} |", flush=True)
    return {m.task["id"] for m in found if m.outcome in ("solved", "corrected")}


def speed(args):
    import torch
    torch.set_num_threads(1)
    tasks = read_tasks(args.tasks)[:args.n]
    engine = load_engine(mps.parse_args(flags(args, "-", "-")), args.student, env.load_chat, [])
    print("| | latency, s | tasks | tasks a minute | s | calls | latency / slots, s | engine, s "
          "| engine, CPU s | batches | s / bound |\n" + "|---" * 11 + "|")
    for latency in args.latency:
        with Server("--latency", latency) as url:
            measure("one by one", one_by_one, tasks[:args.n // 25], engine, latency, args, url)
            solved = [measure(name, scheduler, tasks, engine, latency, args, url)
                      for name, scheduler in (("waves", waves), ("mps.py", mps.play))]
            print(f"    solved or corrected: {len(solved[0])} and {len(solved[1])}, "
                  f"{len(solved[0] & solved[1])} of them the same")


# ---- faults ----

def outcome(out):
    records = [record for _, record in read_jsonl(str(out / "mps.jsonl"))]
    ids = [r["id"] for r in records]
    assert len(ids) == len(set(ids))
    counts = {o: sum(r["outcome"] == o for r in records) for o in ("solved", "corrected", "hard", "failed")}
    return len(ids), {r["id"] for r in records if r["correct"]}, counts


def run(command, kills=0, seconds=0.0):
    """Run the command to its end, killing it `kills` times after a part of `seconds` -> kills that hit it."""
    dice, hits = random.Random(0), 0
    for _ in range(kills):
        with open(os.devnull, "w") as null:
            process = subprocess.Popen(command, stdout=null, stderr=null, start_new_session=True)
        time.sleep(seconds * dice.uniform(0.02, 0.18))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            hits += 1
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    print(done.stdout.strip().splitlines()[-1])
    return hits


def faults(args):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        lines = pathlib.Path(args.tasks).read_text(encoding="utf-8").splitlines(True)[:args.n]
        (folder / "tasks.jsonl").write_text("".join(lines), encoding="utf-8")
        args.tasks, expected, seconds = str(folder / "tasks.jsonl"), None, 0.0
        for name, spoil, more, kills in (
                ("undisturbed", 0, [], 0),
                ("six faults, 10 % each", 0.1, ["--timeout", "2", "--reasks", "8"], 0),
                ("ten times kill -9", 0, [], 10)):
            with Server("--faults", spoil, "--hang", 3) as url:
                start = time.perf_counter()
                out = folder / re.sub(r"\W+", "-", name)
                command = [sys.executable, str(ROOT / "mps.py"), *flags(args, url, out), "--corrections", "1"]
                hits = run(command + more, kills, seconds)
            seconds = seconds or time.perf_counter() - start
            n, solved, counts = outcome(out)
            expected = solved if expected is None else expected
            print(f"{name}{f' ({hits} hit it at work)' * (kills > 0)}: {n} tasks, each once; {counts}; "
                  f"{len(solved)} right, the same set as undisturbed: {solved == expected}", flush=True)
            if solved != expected:
                print("    only here", sorted(solved - expected), "only there", sorted(expected - solved))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="folder of a demo run, as runs/demo")
    p.add_argument("--faults", action="store_true", help="faults and kills in place of speed (default: off)")
    p.add_argument("-n", type=int, default=500, help="tasks (default 500)")
    p.add_argument("--slots", type=int, default=64, help="requests in flight at the teacher (default 64)")
    p.add_argument("--latency", type=float, nargs="+", default=[0.2, 2.0],
                   help="seconds for a teacher's reply (default 0.2 and 2)")
    args = p.parse_args()
    args.tasks, args.student = os.path.join(args.run, "tasks/mps.jsonl"), os.path.join(args.run, "ckpt/bc")
    (faults if args.faults else speed)(args)


if __name__ == "__main__":
    main()
