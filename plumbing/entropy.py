"""How unsure the policy is where its turns begin: entropies from a forward pass over what was played."""
import argparse
import math
from typing import Any

import torch

from plumbing.packing import NOTHING, fill_rows, pack_examples, pad_examples
from plumbing.ranks import most_over_ranks

Episode = Any          # env.Episode: plumbing/ imports no script


def first_tokens(loss_mask: list[int], k: int) -> list[list[int]]:
    """Indices of the first k tokens of each turn. 0 1 1 1 0 1, k 2 -> [[1 2] [5]]"""
    turns: list[list[int]] = []
    for t, sampled in enumerate(loss_mask):
        if sampled and not loss_mask[t - 1]:               # the first token of all is the prompt's
            turns.append([])
        if sampled and len(turns[-1]) < k:
            turns[-1].append(t)
    return turns


def turn_entropies(trainer: Any, episodes: list[Episode], k: int,
                   args: argparse.Namespace) -> list[list[list[float]]]:
    """For each episode, for each of its turns, the entropies of the trainer's policy, as it is now, at the
    first k tokens, in nats at --temperature.

    Only there are there logits. All ranks have to call it: they make equally many forward passes (ZeRO-3).
    """
    device = next(trainer.parameters()).device
    turns = [first_tokens(episode.loss_mask, k) for episode in episodes]
    examples = []
    for episode, of_turns in zip(episodes, turns):
        wanted = {t for turn in of_turns for t in turn}
        examples.append((episode.ids, [int(t in wanted) for t in range(len(episode.ids))]))
    if args.pack:
        make = pack_examples
        lengths = [len(ids) for ids, _ in examples]
        rows = fill_rows(lengths, args.row_tokens, 1) if lengths else []
    else:
        make = pad_examples
        everything = [*range(len(examples))]
        rows = [everything[i:i + args.micro_batch] for i in range(0, len(examples), args.micro_batch)]
    rows += [[]] * (most_over_ranks(len(rows)) - len(rows))
    found: list[list[list[float]]] = [[] for _ in episodes]
    for row in rows:
        inputs, predict, _ = make([examples[i] for i in row] or [NOTHING], device)
        with torch.no_grad():
            values = iter(trainer(inputs, predict, None, args.temperature).tolist())
        for i in row:
            found[i] = [[next(values) for _ in turn] for turn in turns[i]]
    return found


def entropy_rise(first: list[float], now: list[float], vocabulary: int) -> float:
    """Entropies of a turn less those of the first one, of as many tokens as both have: their sum / log V.

    [1 2], [2 2 5], V = e^2 -> 0.5
    """
    both = min(len(first), len(now))
    return (sum(now[:both]) - sum(first[:both])) / math.log(vocabulary)
