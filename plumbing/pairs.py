"""Pairs of steps after one prefix, for baselines/dpo.py: read from the files of mps.py, put into batches."""
import argparse
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from plumbing.cli import InputError
from plumbing.packing import Rollout, fill_rows, pack_groups, pad_rollouts
from plumbing.ranks import rank_and_world, say_once, sum_over_ranks
from plumbing.records import Record, read_jsonl
from plumbing.trajectory import fault_of_corrections, fault_of_start

Pair = list[Rollout]      # chosen, rejected
PairBatch = tuple[dict[str, Any], Tensor, Tensor, Tensor, Tensor]    # a Batch; which (N,), places (n,)


# ---- reading ----

def load_pairs(paths: list[str], starts_of: Callable[[Record], list[Record]], chat: Any,
               max_tokens: int) -> list[Pair]:
    """Lines of mps.jsonl or rl.jsonl -> pairs, in an order that does not depend on that of the lines.

    starts_of: the RL records of a line, whose chosen step is paired with every other step that was rejected.
    Over-long pairs and those whose text the chat template would change are dropped, and counted. Other faults
    raise InputError.
    """
    pairs = []
    long = 0
    changed = []                                           # what the template does to them
    for path in paths:
        for line, record in read_jsonl(path):
            fault = fault_of_corrections(record) if "corrections" in record else fault_of_start(record)
            if fault:
                raise InputError(f"{path}, line {line}: {fault}; --data is the mps.jsonl of mps.py")
            for start in starts_of(record):
                try:
                    found = pairs_after(start, chat)
                except ValueError as error:
                    changed.append(f"{path}, line {line}: {error}")
                    continue
                short = [pair for pair in found if max(len(r.input_ids) for r in pair) <= max_tokens]
                long += len(found) - len(short)
                pairs += short
    first = "".join(f"; the first: {each}" for each in changed[:1])
    dropped = f"{long} longer than {max_tokens} tokens, {len(changed)} that the chat template changes{first}"
    if not pairs:
        raise InputError(f"{', '.join(paths)}: no pair to train on ({dropped})")
    say_once(f"{', '.join(paths)}: {len(pairs)} pairs; dropped: {dropped}")
    return sorted(pairs, key=lambda pair: fingerprint([pair]))


def pairs_after(start: Record, chat: Any) -> list[Pair]:
    """The pairs of an RL record, one for each step that was rejected and differs from all others.

    The loss mask is 1 only on the step. Raises ValueError for text that the chat template changes.
    """
    if start.get("chosen") is None:
        return []
    before = start["messages"]
    prompt_length = len(chat.encode(before)[0])
    completions: list[Rollout] = []                        # chosen first
    for step in (start["chosen"], start.get("rejected"), *(start.get("also_rejected") or [])):
        if step is None:
            continue
        ids, _ = chat.encode([*before, {"role": "assistant", "content": step["content"]}])
        mask = [0] * prompt_length + [1] * (len(ids) - prompt_length)
        completion = Rollout(input_ids=ids, loss_mask=mask, engine_logps=[0.0] * len(ids), advantage=0.0,
                             prompt_length=prompt_length)
        if completion not in completions:
            completions.append(completion)
    return [[completions[0], rejected] for rejected in completions[1:]]


def fingerprint(pairs: list[Pair]) -> int:
    """A number by the tokens of pairs, in their order."""
    return zlib.crc32(str([rollout.input_ids for pair in pairs for rollout in pair]).encode())


# ---- batches ----

def pair_batches(pairs: list[Pair], args: argparse.Namespace, device: torch.device | str) -> list[PairBatch]:
    """This rank's share of the pairs -> micro-batches, equally many on every rank, some perhaps empty.

    A pair's two steps stay together: in packed rows of up to --row-tokens, which hold its prefix once, or
    with --no-pack in --micro-batch padded rows.
    """
    rank, world = rank_and_world()
    if args.pack:
        rows = fill_rows([packed_length(pair) for pair in pairs], args.row_tokens, world)
    else:
        shortest_first = sorted(range(len(pairs)), key=lambda i: packed_length(pairs[i]))
        size = max(1, args.micro_batch // 2)               # pairs
        rows = [shortest_first[i:i + size] for i in range(0, len(pairs), size)]
        rows += [[]] * (-len(rows) % world)
    return [pair_batch(pairs, row, args.pack, device) for row in rows[rank::world]]


def packed_length(pair: Pair) -> int:
    """Tokens of a pair whose prefix stands there once."""
    chosen, rejected = pair
    return len(chosen.input_ids) + len(rejected.input_ids) - chosen.prompt_length


def pair_batch(pairs: list[Pair], row: list[int], packed: bool, device: torch.device | str) -> PairBatch:
    """The pairs at these places -> inputs, predict, target; which (N,); places (n,), the row as a tensor.

    which: 2 i for a token of the chosen step of the row's i-th pair, 2 i + 1 for one of the rejected step.
    One pair, steps of 3 and 2 tokens -> which [0 0 0 1 1].
    """
    groups = [pairs[i] for i in row]
    completions = [rollout for pair in groups for rollout in pair]
    if packed:
        inputs, predict, target, *_ = pack_groups(groups, device)
    else:
        inputs, predict, target, *_ = pad_rollouts(completions, device)
    tokens = [sum(rollout.loss_mask) for rollout in completions]
    of_step = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens, dtype=torch.long))   # (N,)
    return inputs, predict, target, of_step.to(device), torch.tensor(row, dtype=torch.long, device=device)


# ---- log-probs ----

def step_logps(trainer: Any, batch: PairBatch) -> Tensor:
    """(n, 2): the log-probs of the chosen and the rejected step of each pair, summed over their tokens."""
    inputs, predict, target, which, places = batch
    logps = trainer(inputs, predict, target)               # (N,) the tokens of the steps
    return logps.new_zeros(2 * len(places)).index_add(0, which, logps).reshape(len(places), 2)


def reference_logps(trainer: Any, pairs: list[Pair], args: argparse.Namespace,
                    device: torch.device) -> Tensor:
    """(P, 2): `step_logps` of all pairs, the same on every rank; to be asked before the first update."""
    rank, _ = rank_and_world()
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for i in tqdm(range(0, len(pairs), args.batch), desc="reference", disable=rank > 0 or None):
        for batch in pair_batches(pairs[i:i + args.batch], args, device):
            with torch.no_grad():
                found[i + batch[-1].cpu()] = step_logps(trainer, batch).double().cpu()
    return torch.tensor(sum_over_ranks(*found.flatten().tolist())).reshape(len(pairs), 2)
