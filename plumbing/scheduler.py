"""Many tasks at once: the student plays a batch while judge and teacher, in threads, work on other tasks."""
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any, NamedTuple, TextIO

from plumbing.engines import Engine
from plumbing.records import Record, append_jsonl

Run = Iterator[list[Any]]     # a task's course: yields episodes that have to be played before it can go on


class Job(NamedTuple):
    """A task that waits for the student."""
    work: Any                 # what `begin` made of the task, and `done` gets
    run: Run
    episodes: list[Any]       # what it waits for


def schedule(tasks: list[Any], begin: Callable[[Any], tuple[Any, Run]], done: Callable[[Any], None],
             engine: Engine, sampling: dict[str, Any], batch: int, concurrency: int) -> None:
    """Run every task to its end.

    begin(task) -> (work, run). done(work) is called, in one of `concurrency` threads, when its run has ended.
    batch: tasks whose episodes are played together.
    """
    def start(task: Any) -> Job:
        work, run = begin(task)
        return Job(work, run, next(run))

    def go_on(job: Job) -> Job | None:
        """Its episodes were played -> what the task waits for next, None: it has ended."""
        episodes = next(job.run, None)
        if episodes is None:
            done(job.work)
            return None
        return job._replace(episodes=episodes)

    def alone(task: Any) -> None:
        """A whole task, for an engine that plays each episode by itself."""
        job = start(task)
        while job is not None:
            engine.play(job.episodes, **sampling)
            job = go_on(job)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            if engine.batched:
                play_batches(deque(tasks), engine, pool, start, go_on, sampling, batch, concurrency)
            else:
                for ended in as_completed([pool.submit(alone, task) for task in tasks]):
                    ended.result()                         # raises what ended it
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def play_batches(tasks: deque[Any], engine: Engine, pool: ThreadPoolExecutor, start: Callable[[Any], Job],
                 go_on: Callable[[Job], Job | None], sampling: dict[str, Any], batch: int,
                 concurrency: int) -> None:
    """New tasks make a batch of their own: rows that start and end together are the cheapest to generate."""
    ready: deque[Job] = deque()                            # they wait for the student
    reviews: set[Future] = set()                           # with judge and teacher
    while tasks or ready or reviews:
        in_flight = len(ready) + len(reviews)
        new = tasks and len(ready) < batch and in_flight <= batch + concurrency
        enough = new or len(ready) >= batch / 2            # a small batch costs nearly as much
        finished, reviews = wait(reviews, 0 if enough else None, FIRST_COMPLETED)
        for review in finished:
            job = review.result()
            if job is not None:
                ready.append(job)
        if new:
            jobs = [start(tasks.popleft()) for _ in range(min(len(tasks), batch))]
        elif enough or not reviews:
            jobs = [ready.popleft() for _ in range(min(len(ready), batch))]
        else:
            continue
        engine.play([episode for job in jobs for episode in job.episodes], **sampling)
        for job in jobs:
            reviews.add(pool.submit(go_on, job))


class Progress:
    """Writes each record to a file and shows the counts of outcomes on a bar; called from many threads."""

    def __init__(self, file: TextIO, bar: Any, outcomes: tuple[str, ...]) -> None:
        self.file = file
        self.bar = bar
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(outcomes, 0)
        self.usage: Counter = Counter()                    # calls and tokens of all records

    def done(self, record: Record) -> None:
        with self.lock:
            append_jsonl(self.file, record)
            self.counts[record["outcome"]] += 1
            self.usage.update(record["usage"])
            n = sum(self.counts.values())
            self.bar.set_postfix(**self.counts, refresh=False,
                                 teacher_tokens_a_task=self.usage["teacher_completion_tokens"] // n,
                                 student_tokens_a_task=self.usage["student_tokens"] // n)
            self.bar.update(1)


def outcome_text(records: list[Record], outcomes: tuple[str, ...]) -> str:
    """How many tasks ended how, and what one of them took of the teacher."""
    counts = Counter(record["outcome"] for record in records)
    tasks = max(1, len(records))
    corrections = sum(record["interventions"] for record in records) / tasks
    tokens = sum(record["usage"].get("teacher_completion_tokens", 0) for record in records) / tasks
    counted = ", ".join(f"{counts[name]} {name}" for name in outcomes)
    return (f"{len(records)} tasks: {counted}; per task {corrections:.2f} corrections, {tokens:.0f} teacher "
            "tokens")
