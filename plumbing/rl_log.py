"""What grpo_short.py logs of a step: a row of metrics, a line for the terminal, rollouts to read."""
import os
from collections import Counter
from typing import Any, TextIO

from plumbing.packing import Rollout
from plumbing.ranks import sum_counts
from plumbing.records import Record, append_jsonl
from plumbing.trajectory import render


def count_rollouts(groups: list[list[Any]], trajectories: list[list[Record]],
                   trained: list[list[Rollout]]) -> Counter:
    """Sums over this rank's rollouts of a step: what is sampled, what is rewarded, what is trained on.

    A trajectory without a "reward" was dropped; what has a name that starts with "reward" is summed.
    """
    counts: Counter = Counter()
    for group in groups:
        for episode in group:
            counts.update(rollouts=1, truncated=episode.stop == "max_tokens",
                          response_tokens=sum(episode.loss_mask), entropy=-sum(episode.logps))
    for group in trajectories:
        for trajectory in group:
            counts.update(dropped="reward" not in trajectory)
            counts.update({name: value for name, value in trajectory.items() if name.startswith("reward")})
    for group in trained:
        counts.update(groups=1, zero_variance=not any(rollout.advantage for rollout in group))
    return counts


def summary(counts: Counter, updates: list[tuple[Counter, float | None]]) -> dict[str, float]:
    """This rank's sums of a step, and (sums, gradient norm) of each of its updates -> means over all ranks.

    The reward and its parts are averaged over the rollouts that have one.
    """
    n = sum_counts(counts)
    sums = [sum_counts(log) for log, _ in updates]
    norms = [norm for _, norm in updates if norm is not None]
    rollouts = max(1, n["rollouts"])
    scored = max(1, n["rollouts"] - n["dropped"])
    row = {"reward": n["reward"] / scored}
    for name, total in n.items():
        if name.startswith("reward_"):
            row[name] = total / scored
    row["zero_variance"] = n["zero_variance"] / max(1, n["groups"])
    row["dropped"] = n["dropped"]
    row["truncated"] = n["truncated"] / rollouts
    row["response_tokens"] = n["response_tokens"] / rollouts
    row["entropy"] = n["entropy"] / max(1, n["response_tokens"])           # E[-log p], as it was sampled
    row["loss"] = sum(s["loss"] for s in sums)
    row["kl"] = sum(s["kl"] for s in sums) / len(sums)
    row["clip_fraction"] = sum(s["clip_fraction"] for s in sums) / len(sums)
    before = next((s for s in sums if s["trained_tokens"]), sums[0])       # before the first step was made
    row["logp_gap"] = before["logp_gap"] / max(1, before["trained_tokens"])
    row["updates"] = len(norms)
    row["grad_norm"] = sum(norms) / max(1, len(norms))
    return row


def log_line(row: dict[str, float], steps: int) -> str:
    """A row of metrics as a line for the terminal."""
    line = (f"step {row['step']}/{steps}  reward {row['reward']:.3f}  "
            f"right {row.get('reward_correct', 0):.3f}  no variance {row['zero_variance']:.2f}  "
            f"tokens {row['response_tokens']:.0f}  grad norm {row['grad_norm']:.2f}  "
            f"gap {row['logp_gap']:.1e}  "
            f"{row['seconds_rollout']:.1f} + {row['seconds_reward']:.1f} + {row['seconds_update']:.1f} s")
    if "eval_accuracy" in row:
        line += f"  eval {row['eval_accuracy']:.3f}"
    return line


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
