"""The baseline ARPO (Dong et al. 2025, arXiv 2507.19849): rollouts branch where an observation leaves doubt.

What it changes against grpo_short.py: `play` (N rollouts of a start, then G - N branches, which go on from
right after an observation of one) and `reward` (-1 without an answer, 0 if it is wrong, 1 if it is right, 1.1
if both tools were used). Starts are questions; --data may be tasks. Advantages and loss stay GRPO's.

  dH = (sum of the entropies of the first k tokens after an observation - of the rollout's first k) / log V
  P = a + b dH     a branch begins there with this probability; what is left over begins at the start

G 16, N 8, a 0.5, b 0.2: paper and public code; k 20, one try a place (--beam-size 2): the code. They differ:
- The paper branches if P > 0.5 (--branch-threshold 0.5), the code with probability P, as here.
- The paper's entropies are those after the observation, over V. The code's are stale: of the turn before it,
  less what the run's first batch left at that place (`initial_entropy_dict` is never cleared), of the ten
  best tokens, over log V. Here: after it, of the policy as it is now, of all tokens, over log V.
- A right answer counts 1 in the paper, as here, and its F1 in the code.
Credit is "soft", the default of both: each rollout has its own advantage, and shared tokens stand in each,
also in the packed row, where only the start stands once. "Hard" credit, the mean advantage for shared tokens,
has the same gradient where no ratio is clipped, and is left out. Unlike both, which branch all rollouts step
by step, this plays waves: rollouts to their end, then branches of these, earlier steps first, and so on. So
any engine can generate, and one pass of the trainer gives the entropies of a wave.

  laptop:  torchrun --nproc_per_node 2 baselines/arpo.py --model ckpt/bc --data tasks.jsonl --out ckpt/arpo \\
             --lr 1e-4 --prompts 16 --group 8 --mini-batch 8
  8 GPUs:  torchrun --nproc_per_node 8 baselines/arpo.py --model ckpt/bc --data tasks.jsonl --out ckpt/arpo \\
             --engine vllm --zero 3 --checkpointing --teacher-url http://teacher:8000 \\
             --search http:https://google.serper.dev/search --search-cache search.sqlite
"""
import argparse
import os
import random
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import grpo_short
from env import Chat, Episode
from judge import Teacher, check_answer
from plumbing import ranks
from plumbing.cli import Parser, cli
from plumbing.engines import Engine, sampling_from_args
from plumbing.entropy import entropy_rise, first_tokens, turn_entropies
from plumbing.records import Record
from plumbing.search import Search
from plumbing.trajectory import code_of, prefix
from plumbing.values import not_negative, share, whole


def more_flags(p: Parser) -> None:
    p.description = p.description.replace(grpo_short.__doc__, __doc__)
    p.set_defaults(start_at="question", vllm_memory=0.4)   # vLLM is awake while entropies are computed
    g = p.add_argument_group("branching")
    g.add_argument("--initial-rollouts", type=whole(1), help="N, from the start (default: half of --group)")
    g.add_argument("--beam-size", type=whole(1), default=2, help="1 + the branches tried at a place")
    g.add_argument("--branch-probability", type=share, default=0.5, help="a, where entropies do not rise")
    g.add_argument("--entropy-weight", type=not_negative, default=0.2, help="b, what a rise adds to it")
    g.add_argument("--entropy-tokens", type=whole(1), default=20, help="k, tokens looked at in a turn")
    g.add_argument("--branch-threshold", type=share, help="branch where P is above (default: by chance)")


def reward(trajectory: Record, judge: Teacher | None, args: argparse.Namespace) -> tuple[float, dict]:
    """-> the reward and its parts. Both tools: a program that searches, one that does not and goes on."""
    t = trajectory
    parts = {"format": t["stop"] == "answer", "correct": False, "both_tools": False}
    if not parts["format"]:
        return -1.0, parts
    right = check_answer(judge, t["question"], t["prediction"], t["answer"], usage=t.get("judge_usage"))
    if judge is None:
        parts["undecided"] = right is None
    if not right:
        return 0.0, parts
    programs = [code_of(turn["content"]) or "" for turn in t["messages"][1::2]]
    searches = ["web_search(" in program for program in programs]
    computes = [program and not searched for program, searched in zip(programs[:-1], searches)]
    parts |= {"correct": True, "both_tools": any(searches) and any(computes)}
    return 1.1 if parts["both_tools"] else 1.0, parts


class Branch(Episode):
    """Goes on from before a step of an episode that was played, with the same tokens up to there."""

    def __init__(self, parent: Episode, step: int, copy: int) -> None:
        start = {**parent.task, "messages": prefix(parent.messages, step)}
        super().__init__(start, parent.states[step].fork(), max_steps=parent.max_steps,
                         max_tokens=parent.max_tokens, copy=copy, on_end=parent.on_end)
        self.first_step = parent.first_step
        self.last_step = parent.last_step
        self.calls = step - parent.first_step
        here = first_tokens(parent.loss_mask, 1)[self.calls][0]            # where that turn begins
        self.ids = parent.ids[:here]
        self.loss_mask = parent.loss_mask[:here]
        self.logps = parent.logps[:here]
        self.prompt_length = parent.prompt_length
        self.inherited = here - parent.prompt_length

    def begin(self, chat: Chat) -> None:
        """Its tokens are there already."""


def branches(group: list[Episode], played: dict[Episode, list[list[float]]], vocabulary: int, seed: int,
             args: argparse.Namespace) -> list[Branch]:
    """Branches of these episodes, with the entropies of their turns. Without one, rollouts from the start."""
    chance = random.Random(f"{seed} {group[0].task['id']} {len(group)}")   # the same for all numbers of ranks
    places = []
    for episode, turns in played.items():
        for step in sorted(episode.states)[1:]:            # its own turns, but not the one that it began with
            if code_of(episode.messages[2 * step - 1]["content"]) is not None:       # the plan uses no tool
                dh = entropy_rise(turns[0], turns[step - episode.first_step], vocabulary)
                p = args.branch_probability + args.entropy_weight * dh
                places.append((step, episode.copy, episode, p))
    found: list[Branch] = []
    for step, _, episode, p in sorted(places, key=lambda place: place[:2]):
        for _ in range(args.beam_size - 1):
            limit = chance.random() if args.branch_threshold is None else args.branch_threshold
            if p > limit and len(group) + len(found) < args.group:
                found.append(Branch(episode, step, len(group) + len(found)))
    if not found:
        found = [Branch(group[0], group[0].first_step, copy) for copy in range(len(group), args.group)]
    return found


def play(starts: list[Record], copies: int, engine: Engine, trainer: Any, search: Search | None,
         on_end: Callable[[Episode], None], args: argparse.Namespace, step: int) -> list[list[Episode]]:
    """Play groups of `copies` rollouts: the first N from their start, then waves of branches."""
    sampling = sampling_from_args(args, 7919 * step)
    first = min(args.initial_rollouts or copies // 2, copies)
    groups = grpo_short.play(starts, first, engine, trainer, search, on_end, args, step)
    waves = [list(group) for group in groups]              # what each group has played last
    while True:
        ranks.wait_for_ranks("its rollouts")
        if not ranks.most_over_ranks(sum(copies - len(group) for group in groups)):
            return groups
        played = [episode for wave in waves for episode in wave]
        found = dict(zip(played, turn_entropies(trainer, played, args.entropy_tokens, args)))
        for i, group in enumerate(groups):
            of_group = {episode: found[episode] for episode in waves[i]}
            waves[i] = branches(group, of_group, len(engine.chat.tokenizer), sampling["seed"], args)
            group += waves[i]
        engine.play([episode for wave in waves for episode in wave], **sampling)
        waves = [wave if len(group) < copies else [] for group, wave in zip(groups, waves)]


def main(args: argparse.Namespace) -> None:
    grpo_short.main(args, reward, play)


if __name__ == "__main__":
    cli(main, grpo_short.parse_args(more=more_flags))
