"""Stage 2, data: mentored problem-solving. The student acts, the teacher rewrites its first wrong step.

  tasks.jsonl + a student  ->  OUT/mps.jsonl   every task: its last trajectory, corrections and outcome
                               OUT/sft.jsonl   trajectories for the next sft.py
                               OUT/rl.jsonl    verified prefixes and hard tasks for grpo_short.py

The student plays a task to its end. If the answer is wrong, the teacher names the first wrong step k; the
prefix h_k before it stays, the interpreter is rewound to it, the teacher writes *one* step, which runs, and
the student goes on from there: at most 5 corrections a task (paper, section 3.2). A solved task gives either
its trajectory (SFT) or its pairs (h_k, chosen > rejected) (RL); a task that is not solved is `hard`.
As a control, --corrector lets the student write that step itself (baselines/correctors.py).

--verify-first-error N tests the step that the teacher names before it is corrected: the student is resumed
N times from the prefix before a step, at a few steps chosen by bisection (at most 3 of 8), and the teacher's
word is weighed together with where the student's success collapses (`belief`). Worth it for a student that
mostly succeeds from a sound prefix; a weak one tells little (bench/first_error.py measures both).

Differences from the paper: a run without an answer after --max-steps is corrected like any error (the release
drops it); tasks go to SFT or RL by a hash of their id (the release: by order of completion).

  laptop:  python mps.py --tasks tasks.jsonl --student ckpt/bc --out mps --teacher-url http://127.0.0.1:8008
  8 GPUs:  torchrun --nproc_per_node 8 mps.py --tasks tasks.jsonl --student ckpt/bc --engine vllm --out mps \\
             --teacher-url http://teacher:8000 --teacher-cache teacher.sqlite \\
             --search http:https://google.serper.dev/search --search-cache search.sqlite

A killed run goes on where it stopped when the same command is given again. `failed` tasks are then tried once
more: a search failed, a reply stayed unusable, or the teacher found no wrong step.
"""
import argparse
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from baselines.correctors import student_step
from env import Episode, load_chat
from judge import Teacher, correct_answer
from plumbing.chat_api import BadReply
from plumbing.cli import Parser, cli, env_flags, sampling_flags, teacher_flags
from plumbing.engines import Engine, load_engine, sampling_from_args
from plumbing.ranks import part_of_rank, rank_and_world, wait_for_ranks
from plumbing.records import MPS_FIELDS, Record, merge_parts, read_parts, write_jsonl
from plumbing.replies import Verdict
from plumbing.scheduler import Progress, Run, outcome_text, schedule
from plumbing.search import search_from_args
from plumbing.start import check_resume, check_start, save_args
from plumbing.tasks import read_tasks
from plumbing.trajectory import prefix, step_at, step_of
from plumbing.values import chance, share, whole
from sandbox import Interpreter, set_sandbox


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--tasks", required=True, help="JSON lines with id, question, answer")
    g.add_argument("--out", required=True, help="folder for mps.jsonl, sft.jsonl and rl.jsonl")
    g = p.add_argument_group("mentored problem-solving")
    g.add_argument("--student", required=True, help="Hugging Face folder, or its name at --student-url")
    g.add_argument("--corrections", type=whole(0), default=5, help="corrections per task; then it is hard")
    g.add_argument("--corrector", choices=["teacher", "student", "resample"], default="teacher",
                   help="who writes the new step; student: shown the verdict; resample: without it")
    g.add_argument("--verify-first-error", type=whole(0), default=0, metavar="N",
                   help="test the step that the teacher names with N runs from each of a few prefixes; 0: no")
    g.add_argument("--teacher-accuracy", type=chance, default=0.6,
                   help="share of first errors that the teacher names right (judge.py audit), for that test")
    g.add_argument("--batch", type=whole(1), default=128, help="tasks played at once, per rank")
    g = p.add_argument_group("tasks that are kept (for RL, easy and hard ones start at the question)")
    g.add_argument("--sft-share", type=share, default=0.5, help="share for SFT; the others are for RL")
    g.add_argument("--sft-easy", type=share, default=0.5, help="share kept of SFT's unaided successes")
    g.add_argument("--rl-easy", type=share, default=0.1, help="share kept of RL's unaided successes")
    g.add_argument("--rl-hard", type=share, default=0.5, help="share kept of the unsolved tasks")
    g.add_argument("--pairs", choices=["all", "last"], default="all", help="corrections that start RL")
    sampling_flags(p)
    env_flags(p)
    teacher_flags(p)
    return p.parse_args(argv)


# ---- one task ----

@dataclass
class Mentored:
    """A task on its way: the run so far, the corrections, what they cost."""
    task: Record
    episode: Episode                       # the student's run; after a correction, the one that was resumed
    teacher: Teacher
    args: argparse.Namespace
    corrections: list[Record] = field(default_factory=list)
    outcome: str | None = None             # solved, corrected, hard, failed; None: not settled yet
    reason: str | None = None              # why it failed
    student_usage: Counter = field(default_factory=lambda: Counter(calls=0, tokens=0))
    teacher_usage: dict[str, int] = field(default_factory=dict)
    judge_usage: dict[str, int] = field(default_factory=dict)              # of a judge of its own

    def settle(self, outcome: str, reason: str | None = None) -> None:
        self.outcome = outcome
        self.reason = reason

    def count(self, episodes: list[Episode]) -> None:
        """Add what the student spent on these episodes."""
        for episode in episodes:
            self.student_usage.update(calls=episode.calls, tokens=sum(episode.loss_mask))

    def is_right(self, episode: Episode) -> bool:
        """Whether the judge finds the episode's answer right."""
        if episode.stop != "answer":
            return False
        own_judge = self.teacher is not None and self.teacher.judge is not None
        usage = self.judge_usage if own_judge else self.teacher_usage
        return correct_answer(self.teacher, self.task["question"], episode.prediction, self.task["answer"],
                              usage=usage)

    def record(self) -> Record:
        """The trajectory record; of the corrections, those at whose step the run went on otherwise."""
        e = self.episode
        kept = []
        for correction in self.corrections:
            before = correction["prefix"]
            taken = e.messages[:len(before) + 1]
            if taken[:-1] == before and taken[-1]["content"] != correction["rejected"]["content"]:
                kept.append({name: value for name, value in correction.items() if name != "prefix"})
        usage = {f"teacher_{name}": n for name, n in self.teacher_usage.items()}
        usage |= {f"judge_{name}": n for name, n in self.judge_usage.items()}
        usage |= {f"student_{name}": n for name, n in self.student_usage.items()}
        return {**self.task, "messages": e.messages, "prediction": e.prediction,
                "correct": self.outcome in ("solved", "corrected"), "stop": e.stop, "outcome": self.outcome,
                "reason": self.reason, "interventions": len(self.corrections), "corrections": kept,
                "usage": usage}


def mentor(m: Mentored) -> Run:
    """Mentored problem-solving of one task, to its outcome (paper, section 3.2).

    Yields the episodes that the student has to play to their end before it can go on.
    """
    try:
        while m.outcome is None:
            # the student acts, or resumes: a corrected step may have given an answer already
            if not m.episode.stop:
                yield [m.episode]
                m.count([m.episode])
            episode = m.episode

            # the judge checks the answer
            if episode.stop == "failed":
                m.settle("failed", episode.failure)
                return
            if m.is_right(episode):
                m.settle("corrected" if m.corrections else "solved")
                return
            if len(m.corrections) >= m.args.corrections:
                m.settle("hard")
                return

            # the teacher names the first wrong step k; on request the student's own success tests its word
            verdict = m.teacher.verdict(m.task["question"], m.task["answer"], episode.messages,
                                        episode.prediction, episode.stop, usage=m.teacher_usage)
            if verdict.correct:
                m.settle("failed", "the answer was judged wrong, but no step was")
                return
            k = verdict.first_wrong_step
            searched = None
            if m.args.verify_first_error:
                searched = yield from first_error(m, k, m.args.teacher_accuracy)
                k = searched["step"]

            # the interpreter is rewound to the prefix h_k, and the teacher writes the one step after it
            resumed = rewind(episode, k)
            yield from rewrite_step(m, resumed, k, verdict, searched)
            m.episode = resumed
    except BadReply as error:
        m.settle("failed", f"{error}; the reply was {error.raw[:1000]!r}")


def rewind(episode: Episode, k: int, copy: int = 0) -> Episode:
    """An episode that goes on from the prefix h_k before step k, the interpreter as it was then. Each `copy`
    draws other samples."""
    start = {**episode.task, "messages": prefix(episode.messages, k)}
    resumed = Episode(start, episode.states[k].fork(), max_steps=episode.max_steps,
                      max_tokens=episode.max_tokens, copy=copy)
    resumed.states = {step: state for step, state in episode.states.items() if step < k}
    return resumed


def rewrite_step(m: Mentored, resumed: Episode, k: int, verdict: Verdict, searched: Record | None) -> Run:
    """Let the teacher (or --corrector) write step k of the rewound episode, and run it; keep both steps."""
    rejected = step_at(m.episode.messages, k, m.episode.prediction)
    before = list(resumed.messages)
    analysis = suggestion = None
    if k == verdict.first_wrong_step:                      # the analysis is about this step only
        analysis = verdict.analysis
        suggestion = verdict.suggestion
    control = {}
    if m.args.corrector == "teacher":
        content = m.teacher.correct(m.task["question"], m.task["answer"], before, rejected["content"],
                                    rejected["observation"], analysis, suggestion,
                                    sample=len(m.corrections), usage=m.teacher_usage)
        resumed.turn(content)
    else:
        control = yield from student_step(m, resumed, rejected, analysis, suggestion)
    resumed.calls = 0                                      # that turn was the teacher's or is counted
    correction = {"step": k, "prefix": before, "chosen": step_at(resumed.messages, k, resumed.prediction),
                  "rejected": rejected, "analysis": analysis, **control}
    if searched is not None:
        correction["first_error"] = searched
    m.corrections.append(correction)


# ---- the search for the first error ----

SURE = 0.95                              # of the first wrong step: the search ends
RATES = [0.01, 0.1, 0.5, 0.9]            # how often this student may succeed here from a sound prefix …
RECOVERY = 0.01                          # … and from one that holds an error

Probe = tuple[int, int, int]             # cut, wins, tries: runs of the student from before step `cut`


def first_error(m: Mentored, named: int | None, accuracy: float) -> Run:
    """Test the step that the teacher names -> {"step": the first wrong one, …}.

    accuracy: how often the teacher names it right. named: None leaves its word out. The student is resumed
    from the prefix before a step; where its success collapses, the error lies. Yields what it has to play.
    """
    steps = step_of(m.episode.messages)
    probes: list[Probe] = []
    opinion = belief(steps, probes, named, accuracy)
    for _ in range(min(math.ceil(math.log2(m.args.max_steps)), steps - 1)):
        if max(opinion) > SURE:
            break
        cut = even_cut(opinion, {cut for cut, _, _ in probes})
        trials = [rewind(m.episode, cut, copy=1 + i) for i in range(m.args.verify_first_error)]
        yield trials
        m.count(trials)
        ended = [e for e in trials if e.stop != "failed"]  # a search that failed says nothing
        wins = sum(m.is_right(e) for e in ended)
        probes.append((cut, wins, len(ended)))
        opinion = belief(steps, probes, named, accuracy)
    unnamed = belief(steps, probes)
    searched = unnamed.index(max(unnamed))                 # the first of the likeliest
    won = any(wins for _, wins, _ in probes)
    step = named                                           # a student that never succeeds tells nothing
    if won or named is None:
        step = opinion.index(max(opinion))
    return {"teacher": named, "search": searched, "agree": named == searched, "probes": probes, "step": step}


def belief(steps: int, probes: list[Probe], named: int | None = None, accuracy: float = 0) -> list[float]:
    """The probability of each step to be the first wrong one, by what the teacher named (None: all alike)
    and by the probes. The student's rate of success is unknown: the mean is over RATES, all equally likely.

    4 steps, 4 of 4 wins from before step 2, 0 of 4 from before step 3: [0 0 1 0]
    """
    weights = []
    for k in range(steps):
        if named is None:
            prior = 1 / steps
        elif k == named:
            prior = accuracy
        else:
            prior = (1 - accuracy) / max(1, steps - 1)
        weights.append(prior * sum(likelihood(probes, k, rate) for rate in RATES))
    return [weight / sum(weights) for weight in weights]


def likelihood(probes: list[Probe], k: int, rate: float) -> float:
    """Probability of the probes' results if step k is the first wrong one, and the student succeeds at
    this rate from a sound prefix, one in which step k does not stand."""
    product = 1.0
    for cut, wins, tries in probes:
        p = rate if cut <= k else RECOVERY
        product *= p ** wins * (1 - p) ** (tries - wins)
    return product


def even_cut(opinion: list[float], tried: Collection[int] = ()) -> int:
    """The step, not tried yet, before which the first error lies with a probability nearest to a half."""
    untried = {*range(1, len(opinion))} - {*tried}
    return min(untried, key=lambda cut: abs(sum(opinion[:cut]) - 0.5))


# ---- training data ----

def split(records: Collection[Record], args: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """-> SFT records and RL records, from disjoint tasks.

    SFT: corrected trajectories, and a share of those without a correction. RL: every prefix before a
    corrected step, with the step chosen and the steps rejected there; a share of the hard and of the easy
    tasks, from the question on.
    """
    sft = []
    rl = []
    for r in records:
        outcome = r["outcome"]
        task = {name: r[name] for name in ("id", "question", "answer")}
        start = {**task, "messages": prefix(r["messages"], 0), "chosen": None, "rejected": None}
        if outcome == "hard":
            if coin(r["id"], "hard") < args.rl_hard:
                rl.append({**start, "kind": "hard"})
        elif outcome == "failed":
            continue
        elif coin(r["id"], "split") < args.sft_share:
            if r["corrections"] or coin(r["id"], "easy") < args.sft_easy:
                sft.append(r)
        elif outcome == "corrected":
            rl += key_steps(r, task, args.pairs)
        elif coin(r["id"], "easy") < args.rl_easy:
            rl.append({**start, "kind": "easy"})
    return sft, rl


def coin(task_id: str, what: str) -> float:
    """A number in [0, 1) that depends only on the task."""
    return int.from_bytes(hashlib.sha256(f"{what} {task_id}".encode()).digest()[:8], "big") / 2 ** 64


def key_steps(record: Record, task: Record, pairs: str) -> list[Record]:
    """One RL record per corrected step: its prefix, the step in the solved run, the rejected ones.

    rejected: the student's step; also_rejected: earlier corrections of it that were rejected in their turn.
    """
    steps = sorted({correction["step"] for correction in record["corrections"]})
    if pairs == "last":
        steps = steps[-1:]
    records = []
    for k in steps:
        at = [correction for correction in record["corrections"] if correction["step"] == k]
        records.append({**task, "messages": prefix(record["messages"], k), "chosen": at[-1]["chosen"],
                      "rejected": at[0]["rejected"],
                      "also_rejected": [correction["rejected"] for correction in at[1:]], "kind": "key_step"})
    return records


# ---- all tasks ----

def play(tasks: list[Record], engine: Engine, teacher: Teacher, search: Any, args: argparse.Namespace,
         done: Callable[[Mentored], None]) -> None:
    """Every task to its outcome. done(mentored) is called, in one of many threads, as each is settled."""
    def begin(task: Record) -> tuple[Mentored, Run]:
        episode = Episode(task, Interpreter(search), max_steps=args.max_steps, max_tokens=args.max_tokens)
        mentored = Mentored(task, episode, teacher, args)
        return mentored, mentor(mentored)

    schedule(tasks, begin, done, engine, sampling_from_args(args), args.batch, args.concurrency)


# ---- main ----

OUTCOMES = ("solved", "corrected", "hard", "failed")


def played(out: str) -> dict[str, Record]:
    """{id: record} of what is in the folder; a task counts as failed only if it failed every time."""
    return read_parts(out, "mps", lambda r: r["id"], lambda r: r["outcome"] == "failed", MPS_FIELDS)


def settled(out: str) -> dict[str, Record]:
    """The same without those that failed, which are tried again."""
    return {name: record for name, record in played(out).items() if record["outcome"] != "failed"}


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm
    rank, world = rank_and_world()
    check_start(args)
    tasks = read_tasks(args.tasks)
    teacher = Teacher.from_args(args, judge_temperature=0.9)             # as in the release, for this stage
    set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)
    if rank == 0:
        check_resume(args, settled(args.out).values(), tasks, may_change=("batch",))
    wait_for_ranks("checking what is there")
    save_args(args)
    done = settled(args.out)
    unsettled = [t for t in tasks if t["id"] not in done]
    wait_for_ranks("reading what is there")                # nobody writes before all have read
    todo = part_of_rank(unsettled, rank, world)
    if unsettled:                                          # vLLM's ranks start together, idle ones too
        engine = load_engine(args, args.student, load_chat, unsettled)
        with (open(os.path.join(args.out, f"mps.rank{rank}.jsonl"), "a", encoding="utf-8") as file,
              tqdm(total=len(todo), desc="mps", unit="task", disable=rank > 0) as bar):
            progress = Progress(file, bar, OUTCOMES)
            play(todo, engine, teacher, search, args, lambda mentored: progress.done(mentored.record()))
    wait_for_ranks("its tasks")
    if rank == 0:
        by_id = played(args.out)
        records = [by_id.pop(t["id"]) for t in tasks if t["id"] in by_id]
        sft, rl = split(records, args)
        write_jsonl(os.path.join(args.out, "sft.jsonl"), sft)
        write_jsonl(os.path.join(args.out, "rl.jsonl"), rl)
        merge_parts(args.out, "mps", [*records, *by_id.values()])          # also tasks of earlier calls
        print(outcome_text(records, OUTCOMES))
        print(f"{len(sft)} trajectories for SFT, {len(rl)} starts for RL\n{teacher.summary()}")


if __name__ == "__main__":
    cli(main, parse_args())
