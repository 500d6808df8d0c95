"""Trajectories and rollouts as the trainer's batches: packed rows without padding, or padded rows.

Every micro-batch starts with what `LogProbs` takes: the model's inputs; `predict` (N,), the flat indices of
the tokens before those with loss; `target` (N,), those with loss.
"""
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plumbing.attention import Segments, packed_inputs

Example = tuple[list[int], list[int]]     # input_ids, loss_mask
NOTHING: Example = ([0], [0])             # one token without loss, for a rank that has nothing to do
Batch = tuple[dict[str, Any], Tensor, Tensor]


# ---- trajectories, for sft.py ----

def pack_examples(examples: list[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples one after another in one row -> inputs, predict, target.

    [1 2 3], [4 5], loss on 3 and 5 -> [1 2 3 4 5] at positions [0 1 2 0 1], predict [1, 3], target [3, 5]
    """
    all_ids: list[int] = []
    all_loss: list[int] = []
    for ids, mask in examples:
        all_ids += ids
        all_loss += [0, *mask[1:]]                         # nothing predicts the first token
    segments = Segments([len(ids) for ids, _ in examples], device=device)
    input_ids = torch.tensor(all_ids, device=device)                       # (T,)
    loss = torch.tensor(all_loss, device=device).nonzero()[:, 0]           # (N,)
    return packed_inputs(input_ids, segments), segments.before[loss], input_ids[loss]


def collate(examples: list[Example], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """At least `size` rows, right-padded -> input_ids, attention_mask, loss_mask (B, T).

    [1 2 3], [4 5] -> [[1 2 3] [4 5 0]], [[1 1 1] [1 1 0]]. The attention mask is about what exists, the loss
    mask about what the policy sampled. Rows that are missing carry no loss.
    """
    rows = list(examples) + [NOTHING] * (size - len(examples))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    loss_mask = torch.zeros_like(input_ids)
    for row, (ids, mask) in enumerate(rows):
        input_ids[row, :len(ids)] = torch.tensor(ids)
        attention_mask[row, :len(ids)] = 1
        loss_mask[row, :len(ids)] = torch.tensor(mask)
    return input_ids, attention_mask, loss_mask


def marked(input_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) twice -> predict (N,), target (N,)."""
    rows, t = loss_mask[:, 1:].nonzero(as_tuple=True)
    return rows * input_ids.shape[1] + t, input_ids[rows, t + 1]


def pad_examples(examples: list[Example], device: torch.device | str) -> Batch:
    """The plain way: one row per example -> inputs, predict, target."""
    input_ids, attention_mask, loss_mask = (x.to(device) for x in collate(examples, 1))
    predict, target = marked(input_ids, loss_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask}, predict, target


def fill_rows(lengths: list[int], budget: int, ranks: int) -> list[list[int]]:
    """Indices of the examples in each row: as few rows as hold them, a multiple of the ranks, equally full.

    [5, 4, 3, 2], budget 8, one rank -> [[0, 3], [1, 2]]. An example longer than the budget has its own row.
    """
    fewest = ranks * max(1, math.ceil(sum(lengths) / budget / ranks))
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for n in itertools.count(fewest, ranks):
        rows: list[list[int]] = [[] for _ in range(n)]
        loads = [0] * n                                    # tokens in each row
        for i in longest_first:
            emptiest = loads.index(min(loads))
            rows[emptiest].append(i)
            loads[emptiest] += lengths[i]
        if max(loads) <= max(budget, *lengths):
            break
    return rows


# ---- groups of rollouts, for grpo_short.py ----

class Rollout(NamedTuple):
    """A row to train on. The first `prompt_length` tokens are the prefix, which its whole group shares."""
    input_ids: list[int]
    loss_mask: list[int]      # 1 on sampled tokens, 0 on the prefix and on observations
    engine_logps: list[float]   # of sampled tokens, by the engine that drew them; elsewhere 0
    advantage: float          # of all its tokens
    prompt_length: int


Row = list[list[Rollout]]     # parts, each of rollouts with one prefix
GroupBatch = tuple[dict[str, Any], Tensor, Tensor, Tensor, Tensor]   # a Batch; engine_logps, advantages (N,)


def share_prefixes(groups: list[list[Rollout]], budget: int) -> list[Row]:
    """Groups of rollouts -> rows of at most `budget` tokens.

    Budget 8, prefix 3, responses 2 2 3 2: [3 + 2 + 2], [3 + 2 + 3]: a group that does not fit has its prefix
    in two rows, small groups stand in one row. A single rollout may be longer than the budget.
    """
    rows: list[Row] = []
    row: Row = []
    size = 0                                               # tokens in the row
    for group in groups:
        part: list[Rollout] = []
        for rollout in sorted(group, key=lambda r: len(r.input_ids)):
            response = len(rollout.input_ids) - rollout.prompt_length
            prefix = 0 if part else rollout.prompt_length
            if row and size + prefix + response > budget:
                rows.append(row)
                row = []
                part = []
                size = 0
            if not part:
                row.append(part)
                size += rollout.prompt_length
            part.append(rollout)
            size += response
    if row:
        rows.append(row)
    return rows


def pack_groups(row: Row, device: torch.device | str) -> GroupBatch:
    """A row of `share_prefixes` -> inputs, predict, target; engine_logps, advantages (N,).

    The tokens are [prefix, r_1 … r_G, next prefix …]. A response goes on at its prefix's last position and
    attends to the prefix and itself. Observations stay in it: `target` has only the sampled tokens.
    """
    lengths: list[int] = []
    parents: list[int | None] = []
    all_ids: list[int] = []
    all_loss: list[int] = []
    for part in row:
        prompt = part[0].prompt_length
        parent = len(lengths)
        lengths.append(prompt)
        parents.append(None)
        all_ids += part[0].input_ids[:prompt]
        all_loss += [0] * prompt
        for rollout in part:
            lengths.append(len(rollout.input_ids) - prompt)
            parents.append(parent)
            all_ids += rollout.input_ids[prompt:]
            all_loss += rollout.loss_mask[prompt:]
    if not row:
        lengths, parents, all_ids, all_loss = [1], [None], [0], [0]
    segments = Segments(lengths, parents, device)
    input_ids = torch.tensor(all_ids, device=device)                       # (T,)
    sampled = torch.tensor(all_loss, dtype=torch.bool, device=device)      # (T,)
    rollouts = [rollout for part in row for rollout in part]
    return (packed_inputs(input_ids, segments), segments.before[sampled], input_ids[sampled],
            *per_token(rollouts, device))


def pad_rollouts(rollouts: list[Rollout], device: torch.device | str) -> GroupBatch:
    """The plain way: one row per rollout, with its own copy of the prefix -> the same as `pack_groups`."""
    return (*pad_examples([(r.input_ids, r.loss_mask) for r in rollouts], device),
            *per_token(rollouts, device))


def per_token(rollouts: list[Rollout], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """-> engine_logps (N,), advantages (N,) of the sampled tokens, rollout by rollout."""
    engine_logps = []
    advantages = []
    for rollout in rollouts:
        for sampled, logp in zip(rollout.loss_mask, rollout.engine_logps):
            if sampled:
                engine_logps.append(logp)
                advantages.append(rollout.advantage)
    return torch.tensor(engine_logps, device=device), torch.tensor(advantages, device=device)


def no_rollouts(device: torch.device | str, packed: bool) -> GroupBatch:
    """A micro-batch without loss, for a rank that has fewer than the others."""
    return pack_groups([], device) if packed else pad_rollouts([], device)


def rollout_batches(groups: list[list[Rollout]], device: torch.device | str, row_tokens: int | None,
                    micro_batch: int) -> list[GroupBatch]:
    """Groups -> micro-batches: packed rows of up to `row_tokens`, or if None, `micro_batch` padded rows."""
    if row_tokens is not None:
        return [pack_groups(row, device) for row in share_prefixes(groups, row_tokens)]
    rollouts = sorted((r for group in groups for r in group), key=lambda r: len(r.input_ids))
    return [pad_rollouts(rollouts[i:i + micro_batch], device) for i in range(0, len(rollouts), micro_batch)]
