"""Stage 4: short-horizon GRPO. Rollouts start at the verified prefix before the student's error.

  rl.jsonl (prefixes, hard and easy tasks) + ckpt/sft  ->  ckpt/rl

A step of training: G rollouts from each of B starts -> rewards, also for the key step -> advantages within
each group -> one pass of clipped updates over mini-batches of starts.

  R = 1 if the answer is right, else 0.5 if the key step (the first after the prefix) equals the teacher's,
      0 if it equals the rejected one or there is none, 0.1 otherwise         (paper, section 3.3)
  A_i = (R_i - mean R) / (std R + 1e-6)                                       within a group
  L = - 1/N sum min(rho A, clip(rho, 1 - c, 1 + c) A)                         per token, rho = pi / pi_old,
                                                                              N: sampled tokens of the
                                                                              mini-batch, over all ranks
Differences from the paper: learning rate, dual clip and exact rewards are the release's; no KL, no reference
model. Plain GRPO is `--no-short-horizon` (start at the question) with `--no-key-step-reward` (1 or 0).

  laptop:  torchrun --nproc_per_node 2 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --lr 1e-4 --prompts 16 --group 8 --mini-batch 8 --teacher-url http://127.0.0.1:8008
  8 GPUs:  torchrun --nproc_per_node 8 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --engine vllm --zero 3 --checkpointing --teacher-url http://teacher:8000 \\
             --search http:https://google.serper.dev/search --search-cache search.sqlite

Logged each step (metrics.jsonl): reward, and the share of rollouts with each of its parts: a right answer, a
key step equal to the chosen one, to a rejected one; zero_variance, the share of groups with equal rewards
(they have no gradient and are not trained on); skipped, starts whose prefix did not replay; dropped, rollouts
whose search, interpreter or judge failed; response_tokens; truncated; entropy; clip_fraction; logp_gap
between the engine that sampled and the trainer, mean over the tokens of the first update; sync_gap, the same
for greedy tokens right after a sync; grad_norm; seconds of each phase. The loss is no measure of progress.
"""
import argparse
import math
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from env import Episode, load_chat, make_episodes, rollout
from judge import Teacher, correct_answer, same_step
from plumbing.chat_api import BadReply
from plumbing.checkpoints import SaveTimes, load_state, remove_state, save_model, save_state
from plumbing.cli import InputError, Parser, cli, env_flags, sampling_flags, teacher_flags, training_flags
from plumbing.engines import Engine, check_trainer_engine, sampling_from_args, trainer_engine
from plumbing.models import LogProbs, load_policy
from plumbing.packing import Rollout, no_rollouts, rollout_batches
from plumbing.ranks import check_multiple, most_over_ranks, part_of_rank, start_distributed, sum_over_ranks
from plumbing.records import Record, open_metrics, read_jsonl
from plumbing.rl_log import count_rollouts, log_line, show_rollouts, summary
from plumbing.search import search_from_args
from plumbing.start import check_start, finished_before, save_args
from plumbing.sync import sync
from plumbing.tasks import read_tasks
from plumbing.trainer import Metrics, load_reference, make_trainer, optimizer_step, shuffled
from plumbing.trajectory import Messages, fault_of_start, prefix, step_at, step_of
from plumbing.values import dual, not_negative, positive, whole
from sandbox import set_sandbox

# ---- the mathematics ----

def truncate(messages: Messages, step: int) -> Messages:
    """h_k, what stands before step k: the question, and every earlier step with its observation.

    [question, plan, None, step 1, observation 1, step 2], step 2
    -> [question, plan, None, step 1, observation 1]
    """
    return prefix(messages, step)


def reward(trajectory: Record, teacher: Teacher, args: argparse.Namespace) -> tuple[float, dict[str, bool]]:
    """The reward of one rollout, and the parts it was made of: the log has the mean of each as reward_PART.

    Raises BadReply if the judge's reply stays unusable; the rollout is then dropped.
    """
    t = trajectory
    parts = {"correct": False, "chosen": False, "rejected": False}
    finished = t["stop"] == "answer"
    if finished and correct_answer(teacher, t["question"], t["prediction"], t["answer"]):
        parts["correct"] = True
        return 1.0, parts
    key = t["key"]                                         # index of the key step, the first after the prefix
    if key is None or not args.key_step_reward:
        return 0.0, parts
    steps = step_of(t["messages"])
    if steps <= key:                                       # it ended before its key step
        return 0.0, parts
    if args.key_step_finished and not finished:
        return 0.0, parts
    if args.key_step_not_answer and finished and steps == key + 1:
        return 0.0, parts
    before = truncate(t["messages"], key)
    step = step_at(t["messages"], key, t["prediction"])
    # R = 0.5 for the teacher's step, 0 for a rejected one, 0.1 for any other
    if same_step(teacher, t["question"], before, step, t["chosen"]):
        parts["chosen"] = True
        return 0.5, parts
    rejected = [t["rejected"], *(t.get("also_rejected") or [])]
    if any(same_step(teacher, t["question"], before, step, other) for other in rejected if other is not None):
        parts["rejected"] = True
        return 0.0, parts
    return 0.1, parts


def group_advantages(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (R_i - mean) / (std + eps) within the last dimension: (..., G) -> (..., G).

    The std is unbiased, as in GRPO's code. [1, 0, 0.5] -> [1, -1, 0]; equal rewards, a group of one -> zeros.
    """
    if rewards.shape[-1] < 2:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(-1, keepdim=True)
    advantages = centred / (rewards.std(-1, keepdim=True) + eps)
    unequal = centred.abs().amax(-1, keepdim=True) > eps
    return torch.where(unequal, advantages, 0.0)


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float = 0.2,
                dual_clip: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped loss of each sampled token: (N,) each -> (N,), {"clip_fraction"}.

    The advantage of a rollout stands at each of its tokens. Dual clip (Ye et al. 2020) bounds the loss of a
    token by -dual_clip * A where A < 0. Ratio 1.5, A 1, clip 0.2 -> loss -1.2, no gradient.
    """
    ratio = torch.exp(logps - old_logps)                                   # (N,)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    gain = torch.minimum(plain, clipped)
    if dual_clip:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    outside = (clipped < plain).sum().detach()             # tokens that the clip left without a gradient
    return -gain, {"clip_fraction": outside / max(1, len(logps))}


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Per token, the unbiased and never negative estimate of KL(policy || reference): exp(d) - d - 1."""
    d = reference_logps - logps
    return torch.exp(d) - d - 1


def grpo_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, reference_logps: Tensor | None,
              tokens: int, args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """A micro-batch's part of the loss, (N,) each -> scalar, its parts of the log.

    tokens: the sampled tokens of the whole mini-batch, over all ranks; the parts add up to its mean.
    """
    losses, stats = policy_loss(logps, old_logps, advantages, args.clip, args.dual_clip)
    loss = losses.sum() / tokens
    log = {"clip_fraction": float(stats["clip_fraction"]) * len(logps) / tokens,
           "logp_gap": float((logps.detach() - old_logps).abs().sum()), "kl": 0.0}
    if reference_logps is not None:
        kl = k3(logps, reference_logps).sum() / tokens
        loss = loss + args.kl * kl
        log["kl"] = float(kl.detach())
    log["loss"] = float(loss.detach())
    return loss, log


# ---- flags ----

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder to start from")
    g.add_argument("--data", required=True, help="rl.jsonl of mps.py")
    g.add_argument("--out", required=True, help="folder for checkpoint, metrics.jsonl, rollouts.jsonl, state")
    g.add_argument("--eval-tasks",
                   help="JSON lines of held-out tasks; the checkpoint that solves most is kept in OUT/best")
    g.add_argument("--eval-every", type=whole(1), default=20, help="steps between these evaluations")
    g = p.add_argument_group("short horizon, key step")
    g.add_argument("--short-horizon", action=argparse.BooleanOptionalAction, default=True,
                   help="start at the verified prefix; otherwise at the question")
    g.add_argument("--key-step-reward", action=argparse.BooleanOptionalAction, default=True,
                   help="reward the key step of a rollout with a wrong answer; otherwise it gets 0")
    g.add_argument("--key-step-finished", action=argparse.BooleanOptionalAction, default=False,
                   help="reward the key step only in rollouts that gave an answer (as the release does)")
    g.add_argument("--key-step-not-answer", action=argparse.BooleanOptionalAction, default=False,
                   help="reward the key step only if it is not itself the final answer (as the release does)")
    g = p.add_argument_group("optimisation")
    g.add_argument("--epochs", type=positive, default=3, help="passes over the starts")
    g.add_argument("--steps", type=whole(1), help="steps of training (default: as many as --epochs needs)")
    g.add_argument("--prompts", type=whole(1), default=128, help="starts per step, over all ranks")
    g.add_argument("--group", type=whole(2), default=16, help="rollouts per start")
    g.add_argument("--rollout-batch", type=whole(1), default=128,
                   help="rollouts generated together by the torch engine, per rank")
    g.add_argument("--mini-batch", type=whole(1), default=16, help="starts per update, over all ranks")
    g.add_argument("--lr", type=not_negative, default=7e-7, help="learning rate, constant")
    g.add_argument("--clip", type=positive, default=0.2,
                   help="range of the ratio that carries gradient: 1 - clip to 1 + clip")
    g.add_argument("--dual-clip", type=dual, default=3.0,
                   help="bound on the loss of a token with negative advantage; 0 for none")
    g.add_argument("--kl", type=not_negative, default=0.0, help="weight of the KL term to the starting model")
    g.add_argument("--max-logp-gap", type=positive, default=0.2,
                   help="stop if engine and trainer differ by more, mean over tokens, in nats")
    training_flags(g, row_tokens=16384)
    g.add_argument("--show-every", type=whole(1), default=10,
                   help="steps between groups put in rollouts.jsonl and, as text, in OUT/rollouts/")
    sampling_flags(p, temperature=1.0, top_p=1.0, top_k=0, vllm_memory=0.5, endpoint=False)
    env_flags(p)
    teacher_flags(p)
    return p.parse_args(argv)


# ---- starts ----

def load_starts(path: str, short_horizon: bool) -> list[Record]:
    """RL records -> starts for `make_episodes`; `key` is the index of the key step, None if there is none."""
    starts = []
    for line, record in read_jsonl(path):
        fault = fault_of_start(record)
        if fault:
            raise InputError(f"{path}, line {line}: {fault}; --data is the rl.jsonl of mps.py")
        key = step_of(record["messages"]) if record.get("chosen") else None
        messages = record["messages"] if short_horizon else truncate(record["messages"], 0)
        task = {name: value for name, value in record.items() if not name.startswith("reward")}    # of a run
        starts.append({**task, "key": key, "messages": messages})
    if not starts:
        raise InputError(f"{path}: no record to train on")
    return starts


# ---- rewards of a step ----

def rewarded(episode: Episode, teacher: Teacher, args: argparse.Namespace) -> Record:
    """The trajectory of an episode with its reward; without one if search, interpreter or judge failed."""
    trajectory = episode.trajectory()
    if episode.stop == "failed" or episode.interpreter.lost:
        return trajectory
    try:
        value, parts = reward(trajectory, teacher, args)
    except BadReply:
        return trajectory
    return trajectory | {"reward": value} | {f"reward_{name}": part for name, part in parts.items()}


def score(groups: list[list[Episode]], teacher: Teacher, args: argparse.Namespace,
          pool: ThreadPoolExecutor) -> tuple[list[list[Record]], list[list[Rollout]]]:
    """Groups of episodes -> their trajectories with rewards, and what to train on: rollouts with advantages.

    The judge is asked concurrently. Rollouts without a reward are left out of their group.
    """
    futures = [[pool.submit(rewarded, e, teacher, args) for e in group] for group in groups]
    trajectories = [[future.result() for future in group] for group in futures]
    trained = []
    for episodes, played in zip(groups, trajectories):
        kept = [(e, t["reward"]) for e, t in zip(episodes, played) if "reward" in t]
        advantages = group_advantages(torch.tensor([value for _, value in kept]))     # (G,)
        trained.append([Rollout(e.ids, e.loss_mask, e.logps, advantage, e.prompt_length)
                        for (e, _), advantage in zip(kept, advantages.tolist())])
    return trajectories, trained


# ---- one update ----

def update(trainer: Any, groups: list[list[Rollout]], reference: LogProbs | None, args: argparse.Namespace,
           device: torch.device) -> tuple[Counter, float | None]:
    """One clipped update on this rank's groups of a mini-batch -> sums for the log, gradient norm or None.

    A row is [prefix, r_1 … r_G, next prefix …] (`pack_groups`): a shared prefix is computed once in it.
    """
    mine = sum(sum(r.loss_mask) for group in groups for r in group)
    sampled, = sum_over_ranks(mine, after="its rollouts and rewards")
    tokens = max(1, sampled)
    live = [[r for r in group if r.advantage or args.kl] for group in groups]     # others carry no gradient
    log = Counter(trained_tokens=sum(sum(r.loss_mask) for group in live for r in group))
    row_tokens = args.row_tokens if args.pack else None
    micro = rollout_batches(live, device, row_tokens, args.micro_batch)    # here the prefix is shared
    missing = most_over_ranks(len(micro)) - len(micro)                     # every rank brings equally many
    micro += [no_rollouts(device, args.pack)] * missing
    if not micro:
        return log, None

    def loss_of(inputs: dict, predict: Tensor, target: Tensor, old_logps: Tensor,
                advantages: Tensor) -> Tensor:
        logps = trainer(inputs, predict, target, args.temperature)                # (N,) the sampled tokens
        reference_logps = None
        if reference is not None:
            with torch.no_grad():
                reference_logps = reference(inputs, predict, target, args.temperature)
        loss, parts = grpo_loss(logps, old_logps, advantages, reference_logps, tokens, args)
        log.update(parts)
        return loss

    norm = optimizer_step(trainer, micro, loss_of, args.lr)
    return log, norm


# ---- main ----

def evaluate(engine: Engine, tasks: list[Record], search: Any, args: argparse.Namespace) -> float:
    """Share of the held-out tasks solved greedily, this rank's part of them summed over ranks."""
    mine = part_of_rank(tasks, torch.distributed.get_rank(), torch.distributed.get_world_size())
    played = rollout(engine, mine, max_steps=args.max_steps, max_tokens=args.max_tokens, search=search,
                     temperature=0)
    right = sum(correct_answer(None, t["question"], t["prediction"], t["answer"]) for t in played)
    solved, tried = sum_over_ranks(right, len(played), after="its held-out tasks")
    return solved / tried


def main(args: argparse.Namespace) -> None:
    check_trainer_engine(args)
    check_start(args)
    rank, world, device = start_distributed()

    def log(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    if finished_before(args):
        log(f"{args.out} is finished already")
        return
    check_multiple("--prompts", args.prompts, f"--mini-batch {args.mini_batch}", args.mini_batch)
    check_multiple("--mini-batch", args.mini_batch, f"the {world} ranks", world)
    starts = load_starts(args.data, args.short_horizon)
    eval_tasks = read_tasks(args.eval_tasks) if args.eval_tasks else []
    steps = args.steps or math.ceil(args.epochs * len(starts) / args.prompts)
    teacher = Teacher.from_args(args)
    finished_before(args)                                  # again: now the name of the teacher is known
    set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)
    chat = load_chat(args.model, args.chat_template)
    policy = load_policy(args.model, args)
    reference = load_reference(args) if args.kl else None
    trainer = make_trainer(policy, args)
    engine = trainer_engine(args, trainer, chat, starts + eval_tasks)
    probe = starts[0]["messages"]                          # what a sync is checked with
    state = load_state(trainer, args.out)
    done = state.get("step", 0)
    best = state.get("best")                               # share of the held-out tasks solved so far
    if done:
        sync(engine, trainer, probe, device)
    metrics = Metrics(args, rank, done)
    save_args(args)
    if rank == 0:
        shown = open_metrics(args.out, done, "rollouts.jsonl")
    log(f"{len(starts)} starts; {steps} steps of {args.prompts} starts x {args.group} rollouts, "
        f"{args.prompts // args.mini_batch} updates each; from step {done}")
    pool = ThreadPoolExecutor(args.concurrency)

    if eval_tasks and best is None:                        # the starting model is the first to beat
        best = evaluate(engine, eval_tasks, search, args)
        save_model(trainer, chat.tokenizer, os.path.join(args.out, "best"))
        log(f"before training: eval {best:.3f}")

    save_times = SaveTimes(args.save_every)
    for step in range(done, steps):
        # ---- rollout: this rank's starts, one replayed prefix and G forks each ----
        clock = [time.time()]
        skipped = []
        places = range(step * args.prompts + rank, (step + 1) * args.prompts, world)
        batch = shuffled(starts, places, args.seed)
        episodes = make_episodes(batch, args.group, args.max_steps, args.max_tokens, search, skipped,
                                 args.threads)
        for start, reason in skipped:
            print(f"rank {rank}: {start['id']} is left out, its prefix does not replay: {reason}", flush=True)
        engine.play(episodes, **sampling_from_args(args, 7919 * step))
        engine.sleep()
        clock.append(time.time())

        # ---- reward ----
        groups = [episodes[i:i + args.group] for i in range(0, len(episodes), args.group)]
        trajectories, trained = score(groups, teacher, args, pool)
        counts = count_rollouts(groups, trajectories, trained)
        clock.append(time.time())

        # ---- update: every mini-batch once ----
        size = args.mini_batch // world
        updates = [update(trainer, trained[i:i + size], reference, args, device)
                   for i in range(0, args.prompts // world, size)]
        sync_gap = sum_over_ranks(sync(engine, trainer, probe, device))[0] / world
        clock.append(time.time())

        # ---- log ----
        row = {"step": step + 1, "skipped": sum_over_ranks(len(skipped))[0], **summary(counts, updates),
               "sync_gap": sync_gap, "seconds_rollout": clock[1] - clock[0],
               "seconds_reward": clock[2] - clock[1], "seconds_update": clock[3] - clock[2]}
        for name in ("logp_gap", "sync_gap"):
            if math.isnan(row[name]) or row[name] > args.max_logp_gap:
                raise InputError(f"step {step + 1}: engine and trainer disagree by {row[name]:.3f} nats a "
                                 f"token ({name}), more than --max-logp-gap {args.max_logp_gap}")
        if eval_tasks and ((step + 1) % args.eval_every == 0 or step + 1 == steps):
            row["eval_accuracy"] = evaluate(engine, eval_tasks, search, args)
            if row["eval_accuracy"] > best:
                best = row["eval_accuracy"]
                save_model(trainer, chat.tokenizer, os.path.join(args.out, "best"))
        metrics.write(row)
        log(log_line(row, steps))
        if rank == 0 and trajectories and ((step + 1) % args.show_every == 0 or step == 0):
            show_rollouts(shown, os.path.join(args.out, "rollouts"), step + 1, trajectories[0])
        if step + 1 < steps and save_times.come(step + 1):
            save_state(trainer, args.out, step + 1, best=best)

    save_model(trainer, chat.tokenizer, args.out)
    remove_state(args.out)
    log(f"{args.out}: trained")


if __name__ == "__main__":
    cli(main, parse_args())
