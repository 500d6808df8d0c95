"""Stage 2, data: mentored problem-solving. The student acts, the teacher rewrites its first wrong step.

  tasks.jsonl + a student  ->  OUT/mps.jsonl   every task: its last trajectory, corrections and outcome
                               OUT/sft.jsonl   trajectories for the next sft.py
                               OUT/rl.jsonl    verified prefixes and hard tasks for grpo_short.py

The student plays a task to its end. If the answer is wrong, the teacher names the first wrong step k; the
prefix h_k before it stays, the interpreter is rewound to it, the teacher writes *one* step, which runs, and
the student goes on from there: at most 5 corrections a task (paper, section 3.2). Solved in the end, the
trajectory and the pairs (h_k, chosen > rejected) are training data; not solved, the task is `hard`.

--verify-first-error N tests the step that the teacher names before it is corrected: the student is resumed
N times from the prefix before a step, at up to 3 steps chosen by bisection, and the teacher's word is weighed
together with where the student's success collapses (`belief`). Worth it for a student that mostly succeeds
from a sound prefix; one that seldom does says little (bench/first_error.py measures both).

Differences from the paper: a run without an answer after --max-steps is corrected like any error (the release
drops it); the data is split between SFT and RL by a hash of the task's id (the release: by order of
completion).

  laptop:  python mps.py --tasks tasks.jsonl --student ckpt/bc --out mps --teacher-url http://127.0.0.1:8008
  8 GPUs:  torchrun --nproc_per_node 8 mps.py --tasks tasks.jsonl --student ckpt/bc --engine vllm --out mps \\
             --teacher-url http://teacher:8000 --teacher-cache teacher.sqlite \\
             --search http:https://google.serper.dev/search

A killed run goes on where it stopped when the same command is given again, which also tries the `failed`
tasks once more: those that the search or an unusable reply of the teacher left without an outcome.
"""
import argparse
import glob
import hashlib
import math
import os
import threading
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from env import Chat, Episode
from judge import Teacher, correct_answer
from plumbing.chat_api import BadReply
from plumbing.cli import (Help, InputError, add_env_flags, add_sampling_flags, add_teacher_flags, cli,
                          sampling_from_args)
from plumbing.engines import load_engine
from plumbing.records import (append_jsonl, part_of_rank, read_tasks, resume_jsonl, save_args, wait_for_ranks,
                              write_jsonl)
from plumbing.search import search_from_args
from plumbing.trajectory import step_at, step_of
from sandbox.interpreter import Interpreter, set_sandbox


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    g = p.add_argument_group("files")
    g.add_argument("--tasks", required=True, help="JSON lines with id, question, answer")
    g.add_argument("--out", required=True, help="folder for mps.jsonl, sft.jsonl and rl.jsonl")
    g = p.add_argument_group("mentored problem-solving")
    g.add_argument("--student", required=True, help="Hugging Face folder, or its name at --student-url")
    g.add_argument("--corrections", type=int, default=5,
                   help="teacher's corrections per task; a task that needs more is hard")
    g.add_argument("--verify-first-error", type=int, default=0, metavar="N",
                   help="resume the student N times from up to 3 prefixes to test the step that the teacher "
                        "names; 0: its word is taken")
    g.add_argument("--teacher-accuracy", type=float, default=0.6,
                   help="share of first errors that the teacher names right (judge.py audit); for that test")
    g.add_argument("--batch", type=int, default=128, help="tasks that the student plays at once, per rank")
    g = p.add_argument_group("shares of the data that are kept")
    g.add_argument("--sft-share", type=float, default=0.5, help="share of the tasks for SFT; the others: RL")
    g.add_argument("--sft-easy", type=float, default=0.5, help="of the runs without a correction, for SFT")
    g.add_argument("--rl-easy", type=float, default=0.1,
                   help="of the tasks solved without a correction, for RL from the question")
    g.add_argument("--rl-hard", type=float, default=0.5,
                   help="of the tasks not solved at all, for RL from the question")
    g.add_argument("--pairs", choices=["all", "last"], default="all",
                   help="corrections per task that become RL prefixes")
    add_sampling_flags(p)
    add_env_flags(p)
    add_teacher_flags(p)
    return p.parse_args(argv)


# ---- one task ----

class Mentored:
    """A task on its way: the episode in progress, the corrections so far, what they cost."""

    def __init__(self, task, episode, teacher, args):
        self.task, self.episode, self.teacher, self.args = task, episode, teacher, args
        self.corrections, self.outcome, self.reason = [], None, None
        self.student, self.teacher_usage = Counter(calls=0, tokens=0), {}

    def run(self):
        """Settles the outcome. Yields the episodes that the student has to play before it can go on."""
        try:
            while self.outcome is None:
                if not self.episode.stop:                 # a corrected step may have given an answer
                    yield from self.student_plays([self.episode])
                yield from self.review()
        except BadReply as e:
            self.outcome, self.reason = "failed", f"{e}; the reply was {e.raw[:1000]!r}"

    def student_plays(self, episodes):
        yield episodes
        self.student.update(calls=sum(e.calls for e in episodes),
                            tokens=sum(sum(e.loss_mask) for e in episodes))

    def review(self):
        """After an episode: settle the outcome, or correct its first wrong step and leave a new episode."""
        e, question, answer = self.episode, self.task["question"], self.task["answer"]
        if e.stop == "failed":
            self.outcome, self.reason = "failed", e.failure
        elif self.right(e):
            self.outcome = "corrected" if self.corrections else "solved"
        elif len(self.corrections) >= self.args.corrections:
            self.outcome = "hard"
        else:
            verdict = self.teacher.verdict(question, answer, e.messages, e.prediction, e.stop,
                                           usage=self.teacher_usage)
            if verdict.correct:
                self.outcome, self.reason = "failed", "the answer was judged wrong, but no step was"
            else:
                found = {}
                if self.args.verify_first_error:
                    found = yield from self.first_error(verdict.first_wrong_step, self.args.teacher_accuracy)
                self.correct(found.get("step", verdict.first_wrong_step), verdict, found)

    def right(self, e):
        return e.stop == "answer" and correct_answer(self.teacher, self.task["question"], e.prediction,
                                                     self.task["answer"], usage=self.teacher_usage)

    def resume(self, k, copy=0):
        """An episode that goes on from the prefix before step k, its interpreter rewound to there."""
        e = self.episode
        resumed = Episode({**self.task, "messages": e.messages[:1 + 2 * k]}, e.states[k].fork(),
                          max_steps=e.max_steps, max_tokens=e.max_tokens, copy=copy)
        resumed.states = {step: state for step, state in e.states.items() if step < k}
        return resumed

    def first_error(self, named=None, accuracy=0):
        """Tests the step that the teacher names, who is right at that rate: the student is resumed from the
        prefix before a step, and where its success collapses, the error lies (`belief`). Yields episodes."""
        steps, probes = step_of(self.episode.messages), []
        opinion = belief(steps, probes, named, accuracy)
        for _ in range(min(math.ceil(math.log2(self.args.max_steps)), steps - 1)):
            if max(opinion) > SURE:
                break
            cut = even_cut(opinion, {cut for cut, _, _ in probes})
            trials = [self.resume(cut, copy=1 + i) for i in range(self.args.verify_first_error)]
            yield from self.student_plays(trials)
            ended = [e for e in trials if e.stop != "failed"]         # a search that failed says nothing
            probes.append((cut, sum(map(self.right, ended)), len(ended)))
            opinion = belief(steps, probes, named, accuracy)
        best = lambda chances: max(range(steps), key=chances.__getitem__)
        searched, won = best(belief(steps, probes)), any(wins for _, wins, _ in probes)
        return {"teacher": named, "search": searched, "agree": named == searched, "probes": probes,
                "step": best(opinion) if won or named is None else named}  # who never wins proves nothing

    def correct(self, k, verdict, found):
        """Rewind to the prefix before step k, let the teacher write that one step, and run it."""
        rejected, resumed = step_at(self.episode.messages, k, self.episode.prediction), self.resume(k)
        why = (verdict.analysis, verdict.suggestion) if k == verdict.first_wrong_step else (None, None)
        content = self.teacher.correct(self.task["question"], self.task["answer"], resumed.messages,
                                       rejected["content"], rejected["observation"], *why,
                                       sample=len(self.corrections), usage=self.teacher_usage)
        prefix = list(resumed.messages)
        resumed.turn(content)
        resumed.calls = 0                                 # that turn was the teacher's
        self.corrections.append(dict(step=k, prefix=prefix,
                                     chosen=step_at(resumed.messages, k, resumed.prediction),
                                     rejected=rejected, analysis=why[0],
                                     **({"first_error": found} if found else {})))
        self.episode = resumed

    def record(self):
        """The trajectory record, without the corrections whose prefix a later correction threw away."""
        e = self.episode
        kept = [{k: v for k, v in c.items() if k != "prefix"} for c in self.corrections
                if e.messages[:len(c["prefix"])] == c["prefix"]]
        usage = ({f"teacher_{k}": v for k, v in self.teacher_usage.items()}
                 | {f"student_{k}": v for k, v in self.student.items()})
        return {**self.task, "messages": e.messages, "prediction": e.prediction,
                "correct": self.outcome in ("solved", "corrected"), "stop": e.stop, "outcome": self.outcome,
                "reason": self.reason, "interventions": len(self.corrections), "corrections": kept,
                "usage": usage}


# ---- the first error ----

SURE = 0.95                              # of the first wrong step: the search ends
RATES = [0.01, 0.1, 0.5, 0.9]            # how often this student may succeed here from a sound prefix …
RECOVERY = 0.01                          # … and from one that holds an error


def belief(steps, probes, named=None, accuracy=0):
    """The probability of each step to be the first wrong one, by what the teacher named (None: all alike)
    and by the probes (cut, wins, tries): so many wins of the student from the prefix before step `cut`.

    4 steps, 4 of 4 wins from before step 2, 0 of 4 from before step 3: [0 0 1 0]
    """
    prior = [1 / steps if named is None else accuracy if k == named else (1 - accuracy) / max(1, steps - 1)
             for k in range(steps)]

    def likelihood(k, rate):             # a prefix is sound while the first wrong step k does not stand in it
        chances = [(rate if cut <= k else RECOVERY, wins, tries) for cut, wins, tries in probes]
        return math.prod(p ** wins * (1 - p) ** (tries - wins) for p, wins, tries in chances)
    found = [p * sum(likelihood(k, rate) for rate in RATES) for k, p in enumerate(prior)]
    return [p / sum(found) for p in found]


def even_cut(opinion, tried=()):
    """The step, not tried yet, before which the first error lies with a probability nearest to a half."""
    return min({*range(1, len(opinion))} - {*tried}, key=lambda cut: abs(sum(opinion[:cut]) - 0.5))


# ---- training data ----

def coin(task_id, what):
    """A number in [0, 1) that depends on the task alone."""
    return int.from_bytes(hashlib.sha256(f"{what} {task_id}".encode()).digest()[:8], "big") / 2 ** 64


def split(records, args):
    """-> SFT records and RL records, from disjoint tasks.

    SFT: corrected trajectories, and a share of those without a correction. RL: every prefix before a
    corrected step, with the step chosen and the steps rejected there; a share of the hard and of the easy
    tasks, from the question on.
    """
    sft, rl = [], []
    for r in records:
        task = {k: r[k] for k in ("id", "question", "answer")}
        start = {**task, "messages": r["messages"][:1], "chosen": None, "rejected": None}
        for_sft = coin(r["id"], "split") < args.sft_share
        if r["outcome"] == "hard":
            if coin(r["id"], "hard") < args.rl_hard:
                rl.append({**start, "kind": "hard"})
        elif r["outcome"] in ("solved", "corrected") and for_sft:
            if r["corrections"] or coin(r["id"], "easy") < args.sft_easy:
                sft.append(r)
        elif r["outcome"] == "solved" and coin(r["id"], "easy") < args.rl_easy:
            rl.append({**start, "kind": "easy"})
        elif r["outcome"] == "corrected":
            rl += key_steps(r, task, args.pairs)
    return sft, rl


def key_steps(record, task, pairs):
    """One RL record per corrected step: its prefix, the step that stands in the solved run, all rejected."""
    steps = sorted({c["step"] for c in record["corrections"]})
    found = []
    for k in steps[-1:] if pairs == "last" else steps:
        at = [c for c in record["corrections"] if c["step"] == k]
        found.append({**task, "messages": record["messages"][:1 + 2 * k], "chosen": at[-1]["chosen"],
                      "rejected": at[0]["rejected"], "also_rejected": [c["rejected"] for c in at[1:]],
                      "kind": "key_step"})
    return found


# ---- main ----

def play(tasks, engine, teacher, search, args, done):
    """Every task to its outcome: the student plays a batch of what is ready while the teacher, in threads,
    works on the other tasks. done(mentored) is called, in one of the threads, as each is settled.

    New tasks make a batch of their own: rows that start and end together are the cheapest to generate.
    """
    tasks, ready, reviews = deque(tasks), deque(), set()
    most, sampling = args.batch + args.concurrency, sampling_from_args(args)

    def begin(task):
        e = Episode(task, Interpreter(search), max_steps=args.max_steps, max_tokens=args.max_tokens)
        mentored = Mentored(task, e, teacher, args)
        run = mentored.run()
        return mentored, run, next(run)

    def review(mentored, run, episodes):
        """After `episodes` -> what the student plays next, or None: it is settled. A server plays at once."""
        while episodes:
            if args.engine == "url":
                engine.play(episodes, **sampling)
            episodes = next(run, None)
            if episodes and args.engine != "url":
                return mentored, run, episodes
        done(mentored)

    with ThreadPoolExecutor(args.concurrency) as pool:
        try:
            while tasks or ready or reviews:
                new = tasks and len(ready) < args.batch and len(ready) + len(reviews) <= most
                enough = new or len(ready) >= args.batch / 2           # fewer are slow for what they are
                finished, reviews = wait(reviews, 0 if enough else None, FIRST_COMPLETED)
                ready += filter(None, (job.result() for job in finished))
                if new:
                    batch = [begin(tasks.popleft()) for _ in range(min(len(tasks), args.batch))]
                elif enough or not reviews:
                    batch = [ready.popleft() for _ in range(min(len(ready), args.batch))]
                else:
                    continue
                if args.engine != "url":
                    engine.play([e for _, _, episodes in batch for e in episodes], **sampling)
                reviews |= {pool.submit(review, *one) for one in batch}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ranks_files(out):
    return sorted(glob.glob(os.path.join(out, "mps.rank*.jsonl")))


def played(out):
    """{id: record} of what is in the folder; a task counts as failed only if it failed every time."""
    records = {}
    for path in [os.path.join(out, "mps.jsonl"), *ranks_files(out)]:
        for r in resume_jsonl(path):
            if r["id"] not in records or r["outcome"] != "failed":
                records[r["id"]] = r
    return records


def main(args):
    from tqdm import tqdm
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.batch < 1 or not 0 < args.teacher_accuracy < 1:
        raise InputError("--batch must be at least 1, and --teacher-accuracy between 0 and 1")
    tasks = read_tasks(args.tasks)
    set_sandbox(args.sandbox, args.preload)
    teacher, search = Teacher.from_args(args, judge_temperature=0.9), search_from_args(args)
    os.makedirs(args.out, exist_ok=True)
    shard = os.path.join(args.out, f"mps.rank{rank}.jsonl")
    settled = {name for name, r in played(args.out).items() if r["outcome"] != "failed"}
    todo = part_of_rank([t for t in tasks if t["id"] not in settled], rank, world)
    wait_for_ranks(world)  # nobody writes before all have read
    if todo:
        engine = load_engine(args.engine, args.student, args.student_url, Chat)
        lock, counts, usage = threading.Lock(), dict(solved=0, corrected=0, hard=0, failed=0), Counter()
        with (open(shard, "a", encoding="utf-8") as out,
              tqdm(total=len(todo), desc="mps", unit="task", disable=rank > 0) as bar):
            def done(m):
                with lock:
                    append_jsonl(out, record := m.record())
                    counts[m.outcome] += 1
                    usage.update(record["usage"])
                    n = sum(counts.values())
                    bar.set_postfix(**counts, teacher_tokens_a_task=usage["teacher_completion_tokens"] // n,
                                    student_tokens_a_task=usage["student_tokens"] // n, refresh=False)
                    bar.update(1)
            play(todo, engine, teacher, search, args, done)
    wait_for_ranks(world)
    if rank == 0:
        records = played(args.out)
        records = [records[t["id"]] for t in tasks if t["id"] in records]
        sft, rl = split(records, args)
        for name, rows in ("mps", records), ("sft", sft), ("rl", rl):
            write_jsonl(os.path.join(args.out, f"{name}.jsonl"), rows)
        for path in ranks_files(args.out):
            os.remove(path)
        save_args(args, os.path.join(args.out, "args.json"))
        report(records, sft, rl, teacher)


def report(records, sft, rl, teacher):
    outcomes = {o: sum(r["outcome"] == o for r in records) for o in ("solved", "corrected", "hard", "failed")}
    print(f"{len(records)} tasks: " + ", ".join(f"{n} {o}" for o, n in outcomes.items()))
    print(f"{len(sft)} trajectories for SFT, {len(rl)} starts for RL; per task "
          f"{sum(r['interventions'] for r in records) / max(1, len(records)):.2f} corrections, "
          f"{sum(r['usage'].get('teacher_completion_tokens', 0) for r in records) / max(1, len(records)):.0f}"
          f" teacher tokens")
    print(teacher.summary())


if __name__ == "__main__":
    cli(main, parse_args())
