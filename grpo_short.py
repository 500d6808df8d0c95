"""Stage 4: short-horizon GRPO. Rollouts start at the verified prefix before the student's error.

  rl.jsonl (prefixes, hard and easy tasks) + ckpt/sft  ->  ckpt/rl

A step: G rollouts from each of B starts -> rewards -> advantages within each group -> one pass of clipped
updates over mini-batches of starts.

  R = 1 if the answer is right, else 0.5 if the key step (the first after the prefix) equals the teacher's,
      0 if it equals the rejected one or there is none, 0.1 otherwise         (paper, section 3.3)
  A_i = (R_i - mean R) / (std R + 1e-6)                                       within a group
  L = - 1/N sum w min(rho A, clip(rho, 1 - c, 1 + c) A)       per token, rho = pi / pi_old; N: sampled tokens
                                                              of the mini-batch, over all ranks
pi_old is the trainer before the first mini-batch. The log-probs of another program that generated differ by
rounding: min(pi_old / pi_engine, --tis-cap) is the weight w of a token (Yao et al. 2025), elsewhere w = 1.

Differences from the paper: learning rate, dual clip and exact rewards are the release's; no KL, no reference
model. Plain GRPO is `--start-at question`, which has no key step.

  laptop:  torchrun --nproc_per_node 2 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --lr 1e-4 --prompts 16 --group 8 --mini-batch 8 --teacher-url http://127.0.0.1:8008
  8 GPUs:  torchrun --nproc_per_node 8 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --engine vllm --zero 3 --checkpointing --teacher-url http://teacher:8000 \\
             --search http:https://google.serper.dev/search --search-cache search.sqlite

Logged each step in metrics.jsonl (glossary: plumbing/rl_log.py). The loss, about 0 at first, says nothing.
"""
import argparse
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from env import Episode, load_chat, make_episodes
from eval import share_solved
from judge import Teacher, check_answer, same_step
from plumbing import ranks, rl_log
from plumbing.checkpoints import SaveTimes, keep_best, load_state, remove_state, save_model, save_state
from plumbing.cli import InputError, Parser, cli, env_flags, sampling_flags, teacher_flags, training_flags
from plumbing.engines import Engine, check_trainer_engine, sampling_from_args, trainer_engine
from plumbing.models import LogProbs, load_policy
from plumbing.packing import GroupBatch, Rollout, no_rollouts, rollout_batches
from plumbing.records import Record
from plumbing.rewards import Rewards
from plumbing.rl_log import Clock, Updated
from plumbing.search import Search, search_from_args
from plumbing.start import check_start, finished_before, save_args
from plumbing.starts import Starts
from plumbing.sync import sync
from plumbing.tasks import read_tasks
from plumbing.trainer import Metrics, load_reference, make_trainer, optimizer_step
from plumbing.trajectory import Messages, prefix, step_at, step_of
from plumbing.values import dual, from_one, not_negative, positive, share, whole
from sandbox import set_sandbox

# ---- the mathematics ----

def truncate(messages: Messages, step: int) -> Messages:
    """h_k, what stands before step k: the question, and every earlier step with its observation."""
    return prefix(messages, step)


def reward(trajectory: Record, judge: Teacher | None,
           args: argparse.Namespace) -> tuple[float, dict[str, bool]]:
    """The reward of one rollout, and the parts it was made of: the log has the mean of each as reward_PART.

    Without a judge, what rules leave open counts as wrong, or as another step, and as undecided. Raises
    BadReply if the judge's reply stays unusable; the rollout is then dropped.
    """
    t = trajectory
    usage = t.get("judge_usage")                           # calls and tokens are added
    parts = {"correct": False, "chosen": False, "rejected": False}
    finished = t["stop"] == "answer"
    right = finished and check_answer(judge, t["question"], t["prediction"], t["answer"], usage=usage)
    if right:
        parts["correct"] = True
        return 1.0, parts
    if judge is None:
        parts["undecided"] = right is None
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
    as_chosen = same_step(judge, t["question"], before, step, t["chosen"], usage=usage)
    if as_chosen:
        parts["chosen"] = True
        return 0.5, parts
    for rejected in (t.get("rejected"), *(t.get("also_rejected") or [])):
        if rejected and same_step(judge, t["question"], before, step, rejected, usage=usage):
            parts["rejected"] = True
            return 0.0, parts
    if as_chosen is None:
        parts["undecided"] = True
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
    """The clipped loss of each sampled token: (N,) each -> (N,), {"clip_fraction", "outside", "ratio"}.

    The advantage of a rollout stands at each of its tokens. Dual clip (Ye et al. 2020) bounds the loss of a
    token by -dual_clip * A where A < 0. Ratio 1.5, A 1, clip 0.2 -> loss -1.2, no gradient.
    """
    ratio = torch.exp(logps - old_logps)                                   # (N,)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    gain = torch.minimum(plain, clipped)
    if dual_clip:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    tokens = max(1, len(logps))
    with torch.no_grad():
        stats = {"clip_fraction": (clipped < plain).sum() / tokens,        # left without a gradient
                 "outside": ((ratio - 1).abs() > clip).sum() / tokens, "ratio": ratio.sum() / tokens}
    return -gain, stats


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Per token, the unbiased and never negative estimate of KL(policy || reference): exp(d) - d - 1."""
    d = reference_logps - logps
    return torch.exp(d) - d - 1


def grpo_loss(logps: Tensor, old_logps: Tensor, engine_logps: Tensor, advantages: Tensor,
              reference_logps: Tensor | None, tokens: int,
              args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """A micro-batch's part of the loss, (N,) each -> scalar, sums over its tokens for the log.

    tokens: the sampled tokens of the whole mini-batch, over all ranks; the parts add up to its mean.
    """
    losses, stats = policy_loss(logps, old_logps, advantages, args.clip, args.dual_clip)
    weights = torch.exp(old_logps - engine_logps).clamp(max=args.tis_cap)  # 1 where pi_old is the engine
    loss = (weights * losses).sum() / tokens
    n = len(logps)
    log = {name: float(mean) * n for name, mean in stats.items()}
    log |= {"tokens": n, "kl_old": float(k3(old_logps, logps.detach()).sum()), "kl": 0.0}
    if reference_logps is not None:
        kl = k3(logps, reference_logps).sum() / tokens
        loss = loss + args.kl * kl
        log["kl"] = float(kl.detach())
    log["loss"] = float(loss.detach())
    return loss, log


# ---- flags ----

def parse_args(argv: list[str] | None = None, more: Callable | None = None) -> argparse.Namespace:
    """more: adds the flags of a fork to the Parser."""
    p = Parser(f"{__doc__}\n{rl_log.__doc__}")
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder to start from")
    g.add_argument("--data", required=True, help="rl.jsonl of mps.py")
    g.add_argument("--out", required=True, help="folder for checkpoint, metrics.jsonl, rollouts.jsonl, state")
    g.add_argument("--eval-tasks", help="held-out tasks; OUT/best keeps the checkpoint that solves most")
    g.add_argument("--eval-every", type=whole(1), default=20, help="steps between these evaluations")
    g = p.add_argument_group("short horizon, key step")
    g.add_argument("--start-at", choices=["fixed", "question"], default="fixed",
                   help="where rollouts begin: before the error, or at the question")
    g.add_argument("--key-step-reward", action=argparse.BooleanOptionalAction, default=True,
                   help="reward the key step of a rollout with a wrong answer; otherwise it gets 0")
    g.add_argument("--key-step-finished", action=argparse.BooleanOptionalAction, default=False,
                   help="reward the key step only in rollouts that gave an answer (as the release does)")
    g.add_argument("--key-step-not-answer", action=argparse.BooleanOptionalAction, default=False,
                   help="reward the key step only if it is not itself the final answer (as the release does)")
    g = p.add_argument_group("optimisation")
    g.add_argument("--epochs", type=positive, default=3, help="passes over the starts")
    g.add_argument("--steps", type=whole(1), help="steps of training (default: as many as --epochs needs)")
    g.add_argument("--max-generated-tokens", type=whole(1), help="end after so many, of all ranks")
    g.add_argument("--prompts", type=whole(1), default=128, help="starts per step, over all ranks")
    g.add_argument("--group", type=whole(2), default=16, help="rollouts per start")
    g.add_argument("--rollout-batch", type=whole(1), default=128, help="rollouts in a torch batch, per rank")
    g.add_argument("--mini-batch", type=whole(1), default=16, help="starts per update, over all ranks")
    g.add_argument("--lr", type=not_negative, default=7e-7, help="learning rate, constant")
    g.add_argument("--clip", type=positive, default=0.2, help="ratios within 1 ± clip carry a gradient")
    g.add_argument("--dual-clip", type=dual, default=3.0, help="bound on the loss where A < 0; 0: none")
    g.add_argument("--anchor", choices=["trainer", "engine"],
                   help="whose log-probs are pi_old (default: the trainer's, if a copy or vLLM generates)")
    g.add_argument("--tis-cap", type=from_one, default=2.0, help="largest weight with --anchor trainer")
    g.add_argument("--kl", type=not_negative, default=0.0, help="weight of the KL term to the starting model")
    g.add_argument("--max-logp-gap", type=positive, default=0.2, help="stop at a larger gap, nats a token")
    g.add_argument("--max-failed", type=share, default=0.5, help="stop if more rollouts or programs fail")
    training_flags(g, row_tokens=16384)
    g.add_argument("--show-every", type=whole(1), default=10, help="steps between groups in OUT/rollouts/")
    sampling_flags(p, temperature=1.0, top_p=1.0, top_k=0, vllm_memory=0.5, endpoint=False)
    env_flags(p)
    teacher_flags(p, required=False)
    if more is not None:
        more(p)
    return p.parse_args(argv)


# ---- one step ----

def play(starts: list[Record], copies: int, engine: Engine, trainer: Any, search: Search | None,
         on_end: Callable[[Episode], None], args: argparse.Namespace, step: int) -> list[list[Episode]]:
    """Play so many copies of each start whose prefix replays -> groups. trainer: for baselines/arpo.py."""
    skipped = []
    episodes = make_episodes(starts, copies, args.max_steps, args.max_tokens, search, skipped, args.threads,
                             on_end)
    for start, reason in skipped:
        print(f"{start['id']} is left out, its prefix does not replay: {reason}", flush=True)
    engine.play(episodes, **sampling_from_args(args, 7919 * step))
    return [episodes[i:i + copies] for i in range(0, len(episodes), copies)]


def to_train(episodes: list[Episode], trajectories: list[Record]) -> list[Rollout]:
    """A group's episodes and trajectories -> rollouts with advantages; without a reward one is left out."""
    kept = [(e, t) for e, t in zip(episodes, trajectories) if "reward" in t]
    advantages = group_advantages(torch.tensor([t["reward"] for _, t in kept]))
    return [Rollout(e.ids, e.loss_mask, e.logps, advantage, e.prompt_length)
            for (e, _), advantage in zip(kept, advantages.tolist())]


def mini_batch(groups: list[list[Rollout]], args: argparse.Namespace,
               device: torch.device) -> tuple[list[GroupBatch], int]:
    """This rank's groups -> micro-batches, equally many on every rank; the sampled tokens of all ranks.

    A row is [prefix, r_1 … r_G, next prefix …] (`pack_groups`): a shared prefix is computed once in it.
    """
    mine = sum(sum(r.loss_mask) for group in groups for r in group)
    sampled, = ranks.sum_over_ranks(mine)
    live = [[r for r in group if r.advantage or args.kl] for group in groups]
    row_tokens = args.row_tokens if args.pack else None
    micro = rollout_batches(live, device, row_tokens, args.micro_batch)
    missing = ranks.most_over_ranks(len(micro)) - len(micro)
    return micro + [no_rollouts(device, args.pack)] * missing, max(1, int(sampled))


def anchor(trainer: Any, micro: list[GroupBatch], whose: str, temperature: float) -> list[Tensor]:
    """Log-probs (N,) of pi_old for each micro-batch: the engine's, or the trainer's as it is now."""
    if whose == "engine":
        return [engine_logps for *_, engine_logps, _ in micro]
    with torch.no_grad():
        return [trainer(inputs, predict, target, temperature) for inputs, predict, target, *_ in micro]


def update(trainer: Any, micro: list[GroupBatch], tokens: int, old: list[Tensor], reference: LogProbs | None,
           args: argparse.Namespace) -> Updated:
    """One clipped update on this rank's part of a mini-batch of so many sampled tokens."""
    sums: Counter = Counter()
    gaps: list[float] = []
    if not micro:
        return Updated(sums, gaps, None)

    def loss_of(inputs: dict, predict: Tensor, target: Tensor, engine_logps: Tensor, advantages: Tensor,
                old_logps: Tensor) -> Tensor:
        logps = trainer(inputs, predict, target, args.temperature)                # (N,) the sampled tokens
        reference_logps = None
        if reference is not None:
            with torch.no_grad():
                reference_logps = reference(inputs, predict, target, args.temperature)
        loss, log = grpo_loss(logps, old_logps, engine_logps, advantages, reference_logps, tokens, args)
        sums.update(log)
        gaps.extend((logps.detach() - engine_logps).abs().tolist())
        return loss

    with_old = [(*batch, old_logps) for batch, old_logps in zip(micro, old)]
    norm = optimizer_step(trainer, with_old, loss_of, args.lr)
    return Updated(sums, gaps, norm)


# ---- main ----

def main(args: argparse.Namespace, reward: Callable[..., tuple] = reward, play: Callable = play) -> None:
    check_trainer_engine(args)
    check_start(args)
    rank, world, device = ranks.start_distributed()
    if finished_before(args):
        ranks.say(f"{args.out} is finished already")
        return
    ranks.check_multiple("--prompts", args.prompts, f"--mini-batch {args.mini_batch}", args.mini_batch)
    ranks.check_multiple("--mini-batch", args.mini_batch, f"the {world} ranks", world)
    starts = Starts(args.data, args.start_at)
    eval_tasks = read_tasks(args.eval_tasks) if args.eval_tasks else []
    steps = args.steps or math.ceil(args.epochs * len(starts.records) / args.prompts)
    judge = Teacher.judge_from_args(args)                  # None: rules alone decide
    finished_before(args)                                  # again: now the name of the judge is known
    set_sandbox(args.sandbox, args.preload)
    search = search_from_args(args)
    chat = load_chat(args.model, args.chat_template)
    policy = load_policy(args.model, args)
    reference = load_reference(args) if args.kl else None
    trainer = make_trainer(policy, args)
    engine = trainer_engine(args, trainer, chat, starts.records + eval_tasks)
    anchored_on = args.anchor or ("trainer" if engine.separate else "engine")
    probe = starts.records[0]["messages"]                  # what a sync is checked with
    state = {"step": 0, "best": None, "generated": 0} | load_state(trainer, args.out)
    starts.resume(state.pop("starts", None))
    if state["step"]:
        sync(engine, trainer, probe, device)
    metrics = Metrics(args, rank, state["step"])
    save_args(args)
    shown = rl_log.ShownRollouts(args, rank, state["step"])
    ranks.say(f"{len(starts.records)} starts; {steps} steps of {args.prompts} starts x {args.group} "
              f"rollouts, {args.prompts // args.mini_batch} updates each; from step {state['step']}")
    rewards = Rewards(partial(reward, judge=judge, args=args), args.concurrency)

    if eval_tasks and state["best"] is None:               # the starting model is the first to beat
        keep_best(trainer, chat.tokenizer, args.out, state, share_solved(engine, eval_tasks, search, args))
        ranks.say(f"before training: eval {state['best']:.3f}")

    save_times = SaveTimes(args.save_every)
    for step in range(state["step"], steps):
        # ---- rollout: this rank's starts, one replayed prefix and G forks each; rewards as they end ----
        clock = Clock()
        batch = starts.batch(range(step * args.prompts + rank, (step + 1) * args.prompts, world), args.seed)
        groups = play(batch, args.group, engine, trainer, search, rewards.ask, args, step)
        engine.sleep()
        clock.phase("rollout")
        trajectories = rewards.collect(groups)
        clock.phase("reward")

        # ---- advantages ----
        trained = [to_train(group, played) for group, played in zip(groups, trajectories)]
        sampled = rl_log.rollout_row(groups, trajectories, trained, skipped=len(batch) - len(groups))
        row = {"step": step + 1, **sampled}
        fault = rl_log.fault_of(row, args.max_failed)
        if fault:
            save_state(trainer, args.out, **state, starts=starts.saved())      # as before this step
            raise InputError(f"step {step + 1}: {fault}")

        # ---- update: every mini-batch once, after pi_old of all of them ----
        size = args.mini_batch // world
        batches = [mini_batch(trained[i:i + size], args, device)
                   for i in range(0, args.prompts // world, size)]
        old = [anchor(trainer, micro, anchored_on, args.temperature) for micro, _ in batches]
        updates = [update(trainer, *micro, logps, reference, args) for micro, logps in zip(batches, old)]
        clock.phase("update")
        sync_gap = ranks.sum_over_ranks(sync(engine, trainer, probe, device))[0] / world
        clock.phase("sync")

        # ---- log ----
        state["step"] = step + 1
        state["generated"] += row["step_tokens"]
        row |= {"generated_tokens": state["generated"], "sync_gap": sync_gap}
        row |= rl_log.update_row(updates) | rl_log.cost_row(row, clock)
        ended = step + 1 == steps or state["generated"] >= (args.max_generated_tokens or math.inf)
        if eval_tasks and ((step + 1) % args.eval_every == 0 or ended):
            row["eval_accuracy"] = share_solved(engine, eval_tasks, search, args)
            keep_best(trainer, chat.tokenizer, args.out, state, row["eval_accuracy"])
        metrics.write(row)
        rl_log.check_gaps(row, args.max_logp_gap)
        ranks.say(rl_log.log_line(row, steps))
        shown.write(step + 1, trajectories)
        if ended:
            break
        if save_times.come(step + 1):
            save_state(trainer, args.out, **state, starts=starts.saved())

    save_model(trainer, chat.tokenizer, args.out)
    remove_state(args.out)
    ranks.say(f"{args.out}: trained")


if __name__ == "__main__":
    cli(main, parse_args())
