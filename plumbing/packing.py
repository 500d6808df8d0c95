"""Examples and rollouts as the trainer's batches: rows without padding, in which a group's prefix stands once, or
padded rows."""
import itertools
import math
from typing import NamedTuple

import torch

from plumbing.attention import Segments, packed_inputs


#
# ---- examples of supervised training ----


def collate(examples, size):
    """`size` rows, right-padded -> input_ids, attention_mask, loss_mask (B, T); missing rows carry no loss.

    [1 2 3], [4 5] -> [[1 2 3] [4 5 0]], [[1 1 1] [1 1 0]]; attention is about what exists, loss about what
    was written.
    """
    rows = list(examples) + [([0], [0])] * (size - len(examples))
    width = max(len(ids) for ids, _ in rows)
    pad = lambda x: x + [0] * (width - len(x))
    return (torch.tensor([pad(ids) for ids, _ in rows]),
            torch.tensor([pad([1] * len(ids)) for ids, _ in rows]),
            torch.tensor([pad(mask) for _, mask in rows]))


def marked(input_ids, loss_mask):
    """(B, T) twice -> predict (N,), flat indices of the tokens before those with loss; target (N,), those."""
    rows, t = loss_mask[:, 1:].nonzero(as_tuple=True)
    return rows * input_ids.shape[1] + t, input_ids[rows, t + 1]


def pack_examples(examples, device="cpu"):
    """Examples one after another in one row, without padding -> inputs, predict (N,), target (N,).

    [1 2 3], [4 5], loss on 3 and 5 -> [1 2 3 4 5] at positions [0 1 2 0 1], predict [1, 3], target [3, 5]
    """
    segments = Segments([len(ids) for ids, _ in examples], device=device)
    input_ids = torch.tensor([t for ids, _ in examples for t in ids], device=device)               # (T,)
    loss = torch.tensor([m for _, mask in examples for m in [0, *mask[1:]]], device=device).nonzero()[:, 0]
    return packed_inputs(input_ids, segments), segments.before[loss], input_ids[loss]


def fill_rows(lengths, budget, ranks):
    """Indices of the examples in each row: as few rows as hold them, a multiple of the ranks, equally full.

    [5, 4, 3, 2], budget 8, one rank -> [[0, 3], [1, 2]]. An example longer than the budget has its own row.
    """
    for n in itertools.count(ranks * max(1, math.ceil(sum(lengths) / budget / ranks)), ranks):
        rows, loads = [[] for _ in range(n)], [0] * n
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            emptiest = loads.index(min(loads))
            rows[emptiest].append(i)
            loads[emptiest] += lengths[i]
        if max(loads) <= max(budget, *lengths):
            return rows


#
# ---- groups of rollouts ----


class Rollout(NamedTuple):
    """A row to train on. The first `prompt` tokens are the prefix, which its whole group shares."""
    input_ids: list
    loss_mask: list           # 1 on sampled tokens, 0 on the prefix and on observations
    old_logps: list
    advantage: float
    prompt: int


def share_prefixes(groups, budget):
    """Groups of rollouts -> rows of at most `budget` tokens, each a list of parts, rollouts with one prefix.

    Budget 9, prefix 3, responses 2 2 3 2: [3 + 2 + 2], [3 + 3 + 2]: a group that does not fit pays its prefix
    twice, small groups stand in one row. A single rollout may be longer than the budget.
    """
    rows, size = [[]], 0
    for group in groups:
        part = None
        for r in sorted(group, key=lambda r: len(r.input_ids)):
            new = len(r.input_ids) - r.prompt
            if rows[-1] and size + new + (part is None) * r.prompt > budget:
                rows.append([])
                part, size = None, 0
            if part is None:
                part = []
                rows[-1].append(part)
                size += r.prompt
            part.append(r)
            size += new
    return [row for row in rows if row]


def pack_groups(row, device):
    """A row of `share_prefixes` -> inputs, predict, target for `LogProbs`; old_logps, advantages (N,).

    The tokens are [prefix, r_1 ... r_G, next prefix ...]. A response goes on at its prefix's last position
    and attends to the prefix and itself. Observations stay in it: `target` has the sampled tokens alone.
    """
    lengths, parents, input_ids, loss_mask = [], [], [], []
    for part in row:
        prefix, parent = part[0].prompt, len(lengths)
        lengths += [prefix] + [len(r.input_ids) - prefix for r in part]
        parents += [None] + [parent] * len(part)
        input_ids += sum([r.input_ids[prefix:] for r in part], part[0].input_ids[:prefix])
        loss_mask += sum([r.loss_mask[prefix:] for r in part], [0] * prefix)
    segments = Segments(lengths or [1], parents, device)                         # no part: one token, no loss
    input_ids = torch.tensor(input_ids or [0], device=device)                                      # (T,)
    sampled = torch.tensor(loss_mask or [0], dtype=torch.bool, device=device)
    return (packed_inputs(input_ids, segments), segments.before[sampled], input_ids[sampled],
            *per_token([r for part in row for r in part], device))


def pad_rollouts(rollouts, device):
    """The plain way: a row a rollout, each with its own copy of the prefix -> the same as `pack_groups`."""
    input_ids, attention_mask, loss_mask = (x.to(device) for x in collate(
        [(r.input_ids, r.loss_mask) for r in rollouts], max(1, len(rollouts))))                    # (B, T)
    return (dict(input_ids=input_ids, attention_mask=attention_mask), *marked(input_ids, loss_mask),
            *per_token(rollouts, device))


def per_token(rollouts, device):
    """-> old_logps (N,), advantages (N,) of the sampled tokens, rollout by rollout."""
    old = [p for r in rollouts for m, p in zip(r.loss_mask, r.old_logps) if m]
    advantages = [r.advantage for r in rollouts for m in r.loss_mask if m]
    return torch.tensor(old, device=device), torch.tensor(advantages, device=device)
