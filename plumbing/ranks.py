"""The processes that torchrun starts: who they are, what they wait for, what they add up."""
import contextlib
import functools
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from plumbing.cli import InputError

if TYPE_CHECKING:
    import torch  # takes seconds: not for --help


def check_multiple(flag: str, number: int, what: str, of: int) -> None:
    """Batch arithmetic: InputError where a remainder would be dropped without a word."""
    if number % of:
        raise InputError(f"{flag} {number} is not a multiple of {what}")


# ---- trainers: sft.py and grpo_short.py ----

def start_distributed() -> "tuple[int, int, torch.device]":
    """Join the processes that torchrun started (one alone is a world of one) -> rank, world size, device."""
    import torch
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        backend = "nccl"
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        backend = "gloo"
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        cores = os.cpu_count()
        if hasattr(os, "sched_getaffinity"):           # on Linux, where some of them may be out of reach
            cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do: it needs no C++ compiler
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def sum_over_ranks(*numbers: float, after: str | None = None) -> list[float]:
    """Element-wise sums of numbers over all ranks.

    after: what a rank may do before for longer than a collective waits; then it is waited for first.
    """
    import torch
    if after is not None:
        wait_for_ranks(after)
    total = torch.tensor(numbers, dtype=torch.float64)
    if torch.cuda.is_available():
        total = total.cuda()
    torch.distributed.all_reduce(total)
    return total.tolist()


def sum_counts(counts: Counter) -> Counter:
    """Sums of counts by name over all ranks, which need not all have the same names."""
    import torch
    gathered: list[Counter] = [Counter()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, counts)
    total: Counter = Counter()
    for of_rank in gathered:
        total.update(of_rank)
    return total


def gather_over_ranks(numbers: list[float]) -> list[float]:
    """The numbers of all ranks, one rank's after another's."""
    import torch
    gathered: list[list[float]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, numbers)
    return [number for of_rank in gathered for number in of_rank]


def most_over_ranks(number: int) -> int:
    """The largest of the ranks' numbers."""
    import torch
    most = torch.tensor(number)
    if torch.cuda.is_available():
        most = most.cuda()
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def say(text: str) -> None:
    """Print a line, only on rank 0."""
    if rank_and_world()[0] == 0:
        print(text, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a line, the first time that this process is to, and only on rank 0."""
    say(text)


# ---- players: mps.py and eval.py ----

def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun tells them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def part_of_rank(tasks: list, rank: int, world: int) -> list:
    """This rank's random part of the tasks: where kinds alternate in a file, one rank would get all the long
    ones."""
    return random.Random(0).sample(tasks, len(tasks))[rank::world]


# ---- both: waiting for one another ----

PATIENCE = timedelta(days=7)                               # for the slowest rank
EVERY = 60.0                                               # seconds between two lines about a wait


@functools.cache
def patient_ranks() -> Any:
    """A process group of torchrun's ranks whose collectives wait for days.

    Those of trainers (NCCL's, DeepSpeed's) give up after ten minutes, which finds real hangs, but which a
    rank with long rollouts or one slow reply may well take. So where ranks may come late, they meet here
    first. Players find one another within minutes or give up.
    """
    import torch
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def wait_for_ranks(what: str) -> None:
    """Return when every rank has come here. Once a minute rank 0 says whom it waits for, to do `what`."""
    rank, world = rank_and_world()
    if world == 1:
        return
    import torch
    group = patient_ranks()
    here = torch.ones(1)
    if rank > 0:
        torch.distributed.send(here, dst=0, group=group)
    else:
        for late in range(1, world):
            with reported(f"rank 0 waits for rank {late}: {what}"):
                torch.distributed.recv(here, src=late, group=group)
    torch.distributed.barrier(group)


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Print what is waited for, and for how long already, once a minute."""
    ended = threading.Event()

    def report() -> None:
        start = time.monotonic()
        while not ended.wait(EVERY):
            print(f"{what}, {time.monotonic() - start:.0f} s so far", file=sys.stderr, flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()
