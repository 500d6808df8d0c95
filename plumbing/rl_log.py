"""What grpo_short.py logs of a step: a row of metrics.jsonl, a line for the terminal, rollouts to read.

The row, over all ranks; shares are between 0 and 1:
  reward, reward_std    mean and standard deviation of the rewards
  reward_correct, reward_chosen, reward_rejected    share with a right answer; with a key step equal to the
                        chosen one, to a rejected one
  reward_undecided      share whose answer or key step rules leave open, where there is no judge
  zero_variance         share of groups with equal rewards: no gradient, not trained on but with --kl
  start_step            mean step at which the rollouts begin; the question is 0
  skipped               share of starts whose prefix did not replay
  dropped               share of rollouts whose search, interpreter or judge failed
  turns, response_tokens, longest_response    of a rollout; the tokens are those sampled
  step_tokens, generated_tokens    tokens sampled in this step, and since the start of the run; those that
                        several rollouts share (baselines/arpo.py) count once
  stop_answer, stop_max_steps, stop_max_tokens, stop_format, stop_failed    share that ended so
  tool_use, tool_failures    share of rollouts that run a program; of programs that end in an error
  judge_calls, judge_tokens    requests to the judge, tokens of its replies
  entropy               mean of -log pi over the sampled tokens
  logp_gap, logp_gap_p99, logp_gap_max    of |log pi_trainer - log pi_engine| in the first mini-batch
  outside_first         share of its tokens whose ratio is outside the clip range before any update
  sync_gap              as logp_gap, for greedy tokens right after a sync
  ratio, kl_old         mean of rho, KL(pi_old || pi), over the trained tokens
  clip_fraction         share of them that the clip left without a gradient
  loss, kl, grad_norm, updates, trained_tokens    kl: to the starting model, with --kl
  seconds_rollout, seconds_reward, seconds_update, seconds_sync    reward: what is waited for after rollouts
  rollout_tokens_per_s, update_tokens_per_s    sampled tokens
  gpu_memory            GiB, the most on a GPU so far, with what vLLM holds there, asleep or not
  eval_accuracy         share of --eval-tasks solved
"""
import argparse
import math
import os
import time
from collections import Counter
from typing import Any, NamedTuple, TextIO

import torch

from plumbing.cli import InputError
from plumbing.packing import Rollout
from plumbing.ranks import gather_over_ranks, most_over_ranks, sum_counts, wait_for_ranks
from plumbing.records import Record, append_jsonl, open_metrics
from plumbing.trajectory import render

STOPS = ("answer", "max_steps", "max_tokens", "format", "failed")          # how an episode ends


def rollout_row(groups: list[list[Any]], trajectories: list[list[Record]],
                trained: list[list[Rollout]], skipped: int) -> dict[str, float]:
    """What all ranks sampled and how it was rewarded: groups of episodes, their trajectories, their rollouts.

    A trajectory without a "reward" was dropped; everything whose name starts with "reward" is averaged over
    the others.
    """
    counts: Counter = Counter(skipped=skipped)
    longest = 0
    for group in groups:
        for episode in group:
            tokens = sum(episode.loss_mask)
            own = sum(episode.loss_mask[episode.prompt_length + episode.inherited:])
            longest = max(longest, tokens)
            counts.update(rollouts=1, start_steps=episode.first_step, turns=episode.calls, tokens=tokens,
                          own=own, surprise=-sum(episode.logps), users=episode.programs > 0,
                          programs=episode.programs, failed_programs=episode.failed_programs)
            counts[f"stop_{episode.stop}"] += 1
    for group in trajectories:
        for trajectory in group:
            usage = trajectory.get("judge_usage", {})
            counts.update(judge_calls=usage.get("calls", 0), judge_tokens=usage.get("completion_tokens", 0),
                          dropped="reward" not in trajectory,
                          squared_reward=trajectory.get("reward", 0.0) ** 2)
            counts.update({name: value for name, value in trajectory.items() if name.startswith("reward")})
    for group in trained:
        unequal = any(rollout.advantage for rollout in group)
        counts.update(groups=1, zero_variance=not unequal)
    n = sum_counts(counts)
    rollouts = max(1, n["rollouts"])
    scored = max(1, n["rollouts"] - n["dropped"])
    mean = n["reward"] / scored
    row = {"reward": mean, "reward_std": math.sqrt(max(0.0, n["squared_reward"] / scored - mean ** 2))}
    for name, total in n.items():
        if name.startswith("reward_"):
            row[name] = total / scored
    row["zero_variance"] = n["zero_variance"] / max(1, n["groups"])
    row["start_step"] = n["start_steps"] / rollouts
    row["skipped"] = n["skipped"] / max(1, n["skipped"] + n["groups"])
    row["dropped"] = n["dropped"] / rollouts
    row["turns"] = n["turns"] / rollouts
    row["tool_use"] = n["users"] / rollouts
    row["tool_failures"] = n["failed_programs"] / max(1, n["programs"])
    for stop in STOPS:
        row[f"stop_{stop}"] = n[f"stop_{stop}"] / rollouts
    row["judge_calls"] = n["judge_calls"]
    row["judge_tokens"] = n["judge_tokens"]
    row["response_tokens"] = n["tokens"] / rollouts
    row["longest_response"] = most_over_ranks(longest)
    row["step_tokens"] = n["own"]
    row["entropy"] = n["surprise"] / max(1, n["tokens"])                   # E[-log p], as it was sampled
    return row


class Updated(NamedTuple):
    """What came of one update."""
    sums: Counter             # over this rank's trained tokens: tokens, loss, outside, ratio, …
    gaps: list[float]         # of these tokens: |log-prob of the trainer before the step - of the engine|
    grad_norm: float | None   # None: no rank had anything to train on


def update_row(updates: list[Updated]) -> dict[str, float]:
    """What the updates of a step did, over all ranks. The first one with anything to train on is set apart:
    until its step was made, trainer and engine had the same weights."""
    sums = [sum_counts(u.sums) for u in updates]
    first = next((i for i, s in enumerate(sums) if s["tokens"]), 0)
    gaps = torch.tensor(gather_over_ranks(updates[first].gaps) or [0.0])
    total: Counter = Counter()
    for s in sums:
        total.update(s)
    tokens = max(1, total["tokens"])
    norms = [u.grad_norm for u in updates if u.grad_norm is not None]
    return {"loss": total["loss"] / len(sums), "kl": total["kl"] / len(sums),
            "kl_old": total["kl_old"] / tokens, "ratio": total["ratio"] / tokens,
            "clip_fraction": total["clip_fraction"] / tokens,
            "outside_first": sums[first]["outside"] / max(1, sums[first]["tokens"]),
            "logp_gap": float(gaps.mean()), "logp_gap_p99": float(gaps.quantile(0.99)),
            "logp_gap_max": float(gaps.max()), "trained_tokens": total["tokens"], "updates": len(norms),
            "grad_norm": sum(norms) / max(1, len(norms))}


class Clock:
    """Seconds of the phases of a step."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def phase(self, name: str) -> None:
        """The time since the last call, and until all ranks are here, went into this phase."""
        wait_for_ranks(f"{name} of a step")
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now


def cost_row(row: dict[str, float], clock: Clock) -> dict[str, float]:
    """Seconds of the phases, tokens a second, memory."""
    costs = {f"seconds_{name}": seconds for name, seconds in clock.seconds.items()}
    costs["rollout_tokens_per_s"] = row["step_tokens"] / clock.seconds["rollout"]
    costs["update_tokens_per_s"] = row["step_tokens"] / clock.seconds["update"]
    if torch.cuda.is_available():
        costs["gpu_memory"] = most_over_ranks(torch.cuda.max_memory_allocated()) / 2 ** 30
    return costs


def fault_of(row: dict[str, float], most: float) -> str | None:
    """What is wrong if more than a share `most` of the programs, rollouts or starts failed: training on a
    broken tool teaches the policy to do without it."""
    reasons = {"skipped": "of the starts were left out, since their prefix does not replay",
               "tool_failures": "of the programs ended in an error",
               "dropped": "of the rollouts were dropped, since search, interpreter or judge failed"}
    for name, reason in reasons.items():
        if row[name] > most:
            return f"{row[name]:.0%} {reason}; --max-failed {most} allows no more"
    return None


def check_gaps(row: dict[str, float], largest: float) -> None:
    """InputError if engine and trainer do not agree on the log-probs of the same tokens."""
    for name in ("logp_gap", "sync_gap"):
        if math.isnan(row[name]) or row[name] > largest:
            raise InputError(f"step {row['step']}: engine and trainer disagree by {row[name]:.3f} nats a "
                             f"token ({name}), more than --max-logp-gap {largest}")


def log_line(row: dict[str, float], steps: int) -> str:
    """A row of metrics as a line for the terminal."""
    line = (f"step {row['step']}/{steps}  reward {row['reward']:.3f}  "
            f"right {row.get('reward_correct', 0):.3f}  no variance {row['zero_variance']:.2f}  "
            f"tokens {row['response_tokens']:.0f}  grad norm {row['grad_norm']:.2f}  "
            f"gap {row['logp_gap']:.1e}  outside {row['outside_first']:.3f}  "
            f"{row['seconds_rollout']:.1f} + {row['seconds_reward']:.1f} + "
            f"{row['seconds_update']:.1f} + {row['seconds_sync']:.1f} s")
    if "eval_accuracy" in row:
        line += f"  eval {row['eval_accuracy']:.3f}"
    return line


class ShownRollouts:
    """Where rank 0 puts a group of rollouts now and then, to be read: OUT/rollouts.jsonl, OUT/rollouts/."""

    def __init__(self, args: argparse.Namespace, rank: int, done: int) -> None:
        """done: the step that a resumed run starts from; groups of later steps are cut off."""
        self.every = args.show_every
        self.folder = os.path.join(args.out, "rollouts")
        self.file = open_metrics(args.out, done, "rollouts.jsonl") if rank == 0 else None

    def write(self, step: int, groups: list[list[Record]]) -> None:
        """Show the first group of the first step, and of every so many."""
        if self.file is not None and groups and (step == 1 or step % self.every == 0):
            show_rollouts(self.file, self.folder, step, groups[0])


def show_rollouts(file: TextIO, folder: str, step: int, group: list[Record]) -> None:
    """Append a group of rollouts to `file` (rollouts.jsonl), and write it to FOLDER/step-N.txt to be read."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"step-{step}.txt"), "w", encoding="utf-8") as text:
        for i, r in enumerate(group):
            append_jsonl(file, {"step": step, **r})
            parts = [name.removeprefix("reward_") for name in r if name.startswith("reward_") and r[name]]
            text.write(f"==== rollout {i}: reward {r.get('reward')} ({', '.join(parts) or '-'}), "
                       f"stop {r['stop']}, prediction {r['prediction']}, answer {r['answer']}\n"
                       f"{r['messages'][0]['content']}\n{render(r['messages'])}\n\n")
