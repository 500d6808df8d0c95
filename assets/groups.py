"""Groups of rollouts as the trainer's batches: rows in which a group's prefix stands once, or padded rows."""
from typing import NamedTuple

import torch

from assets.attention import Segments, packed_inputs
from sft import collate, marked


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


def pack(row, device):
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


def pad(rollouts, device):
    """The plain way: a row a rollout, each with its own copy of the prefix -> the same as `pack`."""
    input_ids, attention_mask, loss_mask = (x.to(device) for x in collate(
        [(r.input_ids, r.loss_mask) for r in rollouts], max(1, len(rollouts))))                    # (B, T)
    return (dict(input_ids=input_ids, attention_mask=attention_mask), *marked(input_ids, loss_mask),
            *per_token(rollouts, device))


def per_token(rollouts, device):
    """-> old_logps (N,), advantages (N,) of the sampled tokens, rollout by rollout."""
    old = [p for r in rollouts for m, p in zip(r.loss_mask, r.old_logps) if m]
    advantages = [r.advantage for r in rollouts for m in r.loss_mask if m]
    return torch.tensor(old, device=device), torch.tensor(advantages, device=device)
