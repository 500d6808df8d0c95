"""What a call of a stage spends, kept in a file while it goes on: seconds, tokens, requests.

OUT/costs/rank0.jsonl (bc.costs/rank0.jsonl for bc.jsonl) has one line for every call with that --out; each
rank has a file of its own. The line of the call that goes on is written anew every ten seconds, so that
kill -9 loses no more than these, and the next call adds a line.
"""
import atexit
import os
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

from plumbing.ranks import rank_and_world
from plumbing.records import Record, read_jsonl, write_jsonl
from sandbox import seconds_of_sessions

EVERY = 10.0                                               # seconds between two writings
LOADED = time.monotonic()
LOCK = threading.Lock()
SPENT: Counter = Counter()                                 # of this process: student_tokens, teacher_calls …


def count(**numbers: int) -> None:
    """Add to what this process has spent."""
    with LOCK:
        SPENT.update(numbers)


# ---- seconds ----

def age_of_process() -> float:
    """Seconds since this process was started: loading its libraries is a part of what it costs."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            started = int(file.read().rpartition(")")[2].split()[19])      # ticks after the machine's start
    except OSError:                                        # not Linux
        return time.monotonic() - LOADED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def processor_seconds() -> float:
    """User and system seconds so far of this process, its children and the sessions of the sandbox."""
    own = os.times()
    ended = own.children_user + own.children_system
    return own.user + own.system + ended + seconds_of_children() + seconds_of_sessions()


def seconds_of_children() -> float:
    """User and system seconds of the children that have not ended, and of what these waited for."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):         # not all kernels list a process's children
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:                                    # it has just ended
            continue
        if int(fields[1]) == os.getpid():
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


# ---- the file ----

class Spending:
    """Keeps the line of this call, from its start on."""

    def __init__(self, path: Path, whole_process: bool) -> None:
        """whole_process: False for a second call in one process, which begins only now."""
        self.path = path
        self.before = [row for _, row in read_jsonl(path)] if path.exists() else []
        self.start = time.monotonic()
        self.processor_start = 0.0
        self.spent_before: Counter = Counter()
        if whole_process:
            self.start -= age_of_process()
        else:
            self.processor_start = processor_seconds()
            self.spent_before = Counter(SPENT)
        seconds = time.monotonic() - self.start
        self.began = datetime.fromtimestamp(time.time() - seconds).isoformat(timespec="seconds")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def row(self) -> Record:
        """What this call has spent so far."""
        with LOCK:
            spent = {name: n - self.spent_before[name] for name, n in SPENT.items()}
        return {"began": self.began, "seconds": round(time.monotonic() - self.start, 2),
                "processor_seconds": round(processor_seconds() - self.processor_start, 2),
                **{name: n for name, n in spent.items() if n}}

    def write(self) -> None:
        try:
            write_jsonl(self.path, [*self.before, self.row()])
        except OSError:                                    # a full disk ends the run where it writes results
            self.ended.set()

    def keep(self) -> None:
        self.write()
        while not self.ended.wait(EVERY):
            self.write()

    def end(self) -> None:
        """Write for the last time."""
        if not self.ended.is_set():
            self.ended.set()
            self.thread.join()
            self.write()


KEPT: list[Spending] = []                                  # of this process: the last one is being kept


def keep_spending(folder: str) -> None:
    """From now until this process ends, or begins another run, keep in this folder what it spends."""
    end_spending()
    os.makedirs(folder, exist_ok=True)
    rank, _ = rank_and_world()
    KEPT.append(Spending(Path(folder) / f"rank{rank}.jsonl", whole_process=not KEPT))


@atexit.register
def end_spending() -> None:
    """Write what this process has spent for the last time."""
    if KEPT:
        KEPT[-1].end()
