"""Stage 4: short-horizon GRPO. Rollouts start at the verified prefix before the student's error.

  rl.jsonl (prefixes, hard and easy tasks) + ckpt/sft  ->  ckpt/rl

A step of training: G rollouts from each of B starts -> rewards, also for the key step -> advantages within
each group -> one pass of clipped updates over mini-batches of starts.

  R = 1 if the answer is right, else 0.5 if the key step (the first after the prefix) equals the teacher's,
      0 if it equals the rejected one, 0.1 otherwise                         (paper, section 3.3)
  A_i = (R_i - mean R) / (std R + eps)                                       within a group
  L = - 1/N sum min(rho A, clip(rho, 1 - eps, 1 + eps) A)                    per token, rho = pi / pi_old,
                                                                             N: sampled tokens of the
                                                                             mini-batch, over all ranks
Differences from the paper: learning rate, dual clip and exact rewards are the release's; starts are every
corrected prefix, half of the hard and a tenth of the easy tasks; without a KL term there is no reference
model. `--no-short-horizon` starts at the question, `--no-key-step-reward` leaves 1 or 0; both together are
plain GRPO.

  laptop:  torchrun --nproc_per_node 2 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --lr 1e-4 --prompts 16 --group 8 --mini-batch 8 --teacher-url http://127.0.0.1:8008
  8 GPUs:  torchrun --nproc_per_node 8 grpo_short.py --model ckpt/sft --data mps/rl.jsonl --out ckpt/rl \\
             --engine vllm --zero 3 --teacher-url http://teacher:8000 \\
             --search http:https://google.serper.dev/search
  2 nodes: the same on each, with torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d \\
             --rdzv_endpoint FIRST_NODE:29500; OUT and the model on a disk that both see

Logged each step (metrics.jsonl): reward and the share of rollouts with a right answer, the chosen and the
rejected key step; zero_variance, the share of groups with equal rewards (they have no gradient and are not
trained on); skipped, starts whose prefix did not replay; dropped, rollouts whose search, interpreter or judge
failed; response_tokens; truncated; clip_fraction; logp_gap between the engine that sampled and the trainer,
mean over tokens before the first update; sync_gap, the same for greedy tokens right after the weights were
handed over; grad_norm; seconds of each phase. A loss near 0 is expected: advantages sum to 0 and rho starts
at 1.
"""
import argparse
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from env import Chat, make_episodes, rollout
from judge import Teacher, correct_answer, key_step_reward
from plumbing.chat_api import BadReply
from plumbing.checkpoints import full_weights, load_state, save_model, save_state
from plumbing.cli import (Help, InputError, add_env_flags, add_sampling_flags, add_teacher_flags, add_training_flags,
                          cli, sampling_from_args)
from plumbing.engines import TorchEngine, VLLMEngine
from plumbing.models import load_policy
from plumbing.packing import Rollout, pack_groups, pad_rollouts, share_prefixes
from plumbing.records import append_jsonl, open_metrics, part_of_rank, read_jsonl, read_tasks, save_args
from plumbing.replies import same_step_cheap
from plumbing.search import search_from_args
from plumbing.trainer import (deepspeed_engine, optimizer_step, permutation, start_distributed, start_wandb,
                              sum_over_ranks)
from plumbing.trajectory import render, step_at, step_of
from sandbox.interpreter import set_sandbox


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder to start from")
    g.add_argument("--data", required=True, help="rl.jsonl of mps.py")
    g.add_argument("--out", required=True,
                   help="folder for the trained checkpoint, metrics.jsonl, rollouts.jsonl and the state")
    g.add_argument("--eval-tasks",
                   help="JSON lines of held-out tasks; the checkpoint that solves most is kept in OUT/best")
    g.add_argument("--eval-every", type=int, default=20, help="steps between these evaluations")
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
    g.add_argument("--epochs", type=float, default=3, help="passes over the starts")
    g.add_argument("--steps", type=int, help="steps of training, in place of --epochs")
    g.add_argument("--prompts", type=int, default=128, help="starts per step, over all ranks")
    g.add_argument("--group", type=int, default=16, help="rollouts per start")
    g.add_argument("--rollout-batch", type=int, default=128,
                   help="rollouts generated together by the torch engine, per rank")
    g.add_argument("--mini-batch", type=int, default=16, help="starts per update, over all ranks")
    g.add_argument("--lr", type=float, default=7e-7, help="learning rate, constant")
    g.add_argument("--clip", type=float, default=0.2,
                   help="range of the ratio that carries gradient: 1 - clip to 1 + clip")
    g.add_argument("--dual-clip", type=float, default=3.0,
                   help="bound on the loss of a token with negative advantage; 0 for none")
    g.add_argument("--kl", type=float, default=0.0,
                   help="weight of the KL term to the starting model (k3 estimator)")
    g.add_argument("--max-logp-gap", type=float, default=0.2,
                   help="stop if engine and trainer differ by more, mean over tokens, in nats")
    g.add_argument("--vllm-memory", type=float, default=0.5,
                   help="share of the GPU for vLLM while it generates; while the trainer works it has none")
    add_training_flags(g)
    g.add_argument("--pack", action=argparse.BooleanOptionalAction, default=True,
                   help="rows in which a group's prefix stands once; otherwise padded rollouts")
    g.add_argument("--row-tokens", type=int, default=16384,
                   help="tokens per forward pass and rank, for --pack; changes memory, not results")
    g.add_argument("--wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")
    g.add_argument("--save-every", type=int, default=20, help="steps between saved states")
    g.add_argument("--show-every", type=int, default=10,
                   help="steps between groups put in rollouts.jsonl and, as text, in OUT/rollouts/")
    add_sampling_flags(p, temperature=1.0, top_p=1.0, top_k=0)
    add_env_flags(p)
    add_teacher_flags(p)
    return p.parse_args(argv)


# ---- the mathematics ----

def truncate(messages, step):
    """The messages before a step: the question, and every earlier step with its observation.

    [question, plan, None, step 1, observation 1, step 2], step 2
    -> [question, plan, None, step 1, observation 1]
    """
    return messages[:1 + 2 * step]


def group_advantages(rewards, eps=1e-6):
    """A_i = (R_i - mean) / (std + eps) within each row: (B, G) -> (B, G).

    The std is the unbiased one, as in GRPO's code. [[1, 0, 0.5]] -> [[1, -1, 0]]; equal rewards -> zeros.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if rewards.shape[1] < 2:
        return torch.zeros_like(rewards)
    return torch.where(centred.abs().amax(1, keepdim=True) > eps,
                       centred / (rewards.std(1, keepdim=True) + eps), 0.0)


def policy_loss(logps, old_logps, advantages, loss_mask, clip=0.2, dual_clip=0.0, denominator=None):
    """Clipped policy gradient, mean over tokens -> scalar, {"clip_fraction", "ratio"}.

    logps, old_logps, loss_mask (B, T); advantages (B,), or any shape that broadcasts over tokens.
    `denominator`: number of tokens to divide by, where this is a part of a larger batch. Dual clip (Ye et
    al. 2020) bounds the loss of a token by -dual_clip * A where A < 0. Ratio 1.5, A 1, clip 0.2 -> loss -1.2
    and no gradient; ratio 0.5 -> -0.5.
    """
    if advantages.dim() < logps.dim():
        advantages = advantages[:, None]
    mask = loss_mask.to(logps.dtype)
    ratio = torch.exp(logps - old_logps)                                                # (B, T)
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    gain = torch.minimum(plain, clipped)
    if dual_clip:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    count = mask.sum().clamp(min=1) if denominator is None else denominator
    stats = {"clip_fraction": ((clipped < plain) * mask).sum().detach() / count,
             "ratio": (ratio * mask).sum().detach() / count}
    return -(gain * mask).sum() / count, stats


def k3(logps, reference_logps):
    """Per token, the unbiased and never negative estimate of KL(policy || reference): exp(d) - d - 1."""
    d = reference_logps - logps
    return torch.exp(d) - d - 1


# ---- starts and rewards ----

def load_starts(path, short_horizon):
    """RL records -> starts for `make_episodes`; `key` is the index of the key step, None if there is none."""
    starts = []
    for line, r in read_jsonl(path):
        for field in ("id", "question", "answer", "messages"):
            if not r.get(field):
                raise InputError(f"{path}, line {line}: field `{field}` is missing")
        key = step_of(r["messages"]) if r.get("chosen") else None
        starts.append({**r, "key": key,
                       "messages": r["messages"] if short_horizon else truncate(r["messages"], 0)})
    if not starts:
        raise InputError(f"{path}: no record to train on")
    return starts


def reward(trajectory, teacher, args):
    """-> reward, {"correct", "chosen", "rejected"}: what it was made of. Raises BadReply of the judge."""
    t, key = trajectory, trajectory["key"]
    parts = dict(correct=False, chosen=False, rejected=False)
    if t["stop"] == "answer":
        parts["correct"] = bool(correct_answer(teacher, t["question"], t["prediction"], t["answer"]))
    if parts["correct"] or key is None or not args.key_step_reward:
        return float(parts["correct"]), parts
    steps, finished = step_of(t["messages"]), t["stop"] == "answer"
    if (steps <= key or args.key_step_finished and not finished
            or args.key_step_not_answer and finished and steps == key + 1):
        return 0.0, parts
    step, before = step_at(t["messages"], key, t["prediction"]), truncate(t["messages"], key)

    def same(other):
        return bool(same_step_cheap(step, other)) or teacher.same_step(t["question"], before, step, other)
    parts["chosen"] = same(t["chosen"])
    parts["rejected"] = not parts["chosen"] and any(map(same, [t["rejected"], *t.get("also_rejected", [])]))
    return key_step_reward(False, parts["chosen"], parts["rejected"]), parts


def score(groups, teacher, args, pool):
    """Rewards and advantages of groups of episodes -> groups of `Rollout`, counts for the log.

    The judge is asked concurrently; rollouts without a reward are left out of their group.
    """
    episodes = [e for group in groups for e in group]
    for e in episodes:
        e.record = e.trajectory()
    futures = {id(e): pool.submit(reward, e.record, teacher, args) for e in episodes
               if e.stop != "failed" and not e.interpreter.lost}
    log = dict(rollouts=len(episodes), reward=0.0, correct=0, chosen=0, rejected=0, zero_variance=0,
               dropped=0, truncated=0, response_tokens=sum(sum(e.loss_mask) for e in episodes),
               entropy=-sum(sum(e.logps) for e in episodes), groups=len(groups))
    trained = []
    for group in groups:
        scored = []
        for e in group:
            log["truncated"] += e.stop == "max_tokens"
            try:
                value, parts = futures[id(e)].result()
            except (KeyError, BadReply):               # the search, the interpreter or the judge failed
                log["dropped"] += 1
                continue
            e.record.update(reward=value, **{f"reward_{k}": v for k, v in parts.items()})
            for k, v in dict(reward=value, **parts).items():
                log[k] += v
            scored.append((e, value))
        rewards = torch.tensor([[value for _, value in scored]])
        advantages = group_advantages(rewards)[0].tolist() if scored else []
        log["zero_variance"] += not any(advantages)
        trained.append([Rollout(e.ids, e.loss_mask, e.logps, a, e.prompt)
                        for (e, _), a in zip(scored, advantages)])
    return trained, log


# ---- one update ----

def update(engine, groups, reference, args, device):
    """One clipped update on this rank's groups of a mini-batch -> sums for the log, gradient norm or None."""
    tokens, = sum_over_ranks(sum(sum(r.loss_mask) for group in groups for r in group))
    live = [[r for r in group if r.advantage or args.kl] for group in groups]
    if args.pack:
        micro = [pack_groups(row, device) for row in share_prefixes(live, args.row_tokens)]
    else:
        rollouts = sorted((r for group in live for r in group), key=lambda r: len(r.input_ids))
        micro = [pad_rollouts(rollouts[i:i + args.micro_batch], device)
                 for i in range(0, len(rollouts), args.micro_batch)]
    count = torch.tensor(len(micro), device=device)
    torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
    micro += [pack_groups([], device)] * (int(count) - len(micro))                 # as many passes on every rank
    log = dict(loss=0.0, clip_fraction=0.0, logp_gap=0.0, kl=0.0,
               trained_tokens=sum(sum(r.loss_mask) for group in live for r in group))
    if not micro:
        return log, None

    def loss_of(inputs, predict, target, old_logps, advantages):
        logps = engine(inputs, predict, target, args.temperature)                # (N,) the sampled tokens
        loss, stats = policy_loss(logps, old_logps, advantages, torch.ones_like(logps), args.clip,
                                  args.dual_clip, max(tokens, 1))
        if reference is not None:
            with torch.no_grad():
                away = reference(inputs, predict, target, args.temperature)
            kl = k3(logps, away).sum() / max(tokens, 1)
            loss, log["kl"] = loss + args.kl * kl, log["kl"] + float(kl.detach())
        log["loss"] += float(loss.detach())
        log["clip_fraction"] += float(stats["clip_fraction"])
        log["logp_gap"] += float((logps.detach() - old_logps).abs().sum())
        return loss

    return log, optimizer_step(engine, micro, loss_of, args.lr)


# ---- main ----

def make_engine(args, engine, tokenizer, device, probe):
    """The generator, and a function that brings it the trainer's weights -> gap between the two after it.

    The gap is that of the log-probs of greedy tokens after `probe`, mean over tokens, in nats; 0 where both
    are one model, or plain copies.
    """
    if args.engine == "url":
        raise InputError("--engine url has no token ids and log-probs: it is for mps.py and eval.py")
    if args.engine == "vllm":
        if args.top_p < 1 or args.top_k:
            raise InputError("--engine vllm gives log-probs after --top-p and --top-k: train with 1 and 0")
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[args.dtype]
        generator = VLLMEngine(args.model, Chat(tokenizer), args.vllm_memory, args.seed, dtype, True)

        def sync():
            generator.load(full_weights(engine))
            prompt = generator.chat.encode(probe)[0]
            tokens, theirs = generator.greedy(prompt)
            mask, none = [0] * len(prompt) + [1] * len(tokens), [0.0] * len(prompt)
            *what, theirs, _ = pad_rollouts([Rollout(prompt + tokens, mask, none + theirs, 0.0, len(prompt))], device)
            with torch.no_grad():
                return float((engine(*what) - theirs).abs().mean())
        return generator, sync
    if args.zero < 3:
        return TorchEngine(engine.module.model, Chat(tokenizer), args.rollout_batch), lambda: 0.0
    policy, _ = load_policy(args.model, args)  # ZeRO-3 shards: generate with a copy
    policy.to(device, dtype=next(engine.module.parameters()).dtype)
    state = dict(policy.model.named_parameters())

    def sync():
        for name, p in full_weights(engine):
            if name in state:
                state[name].data.copy_(p)
        return 0.0
    return TorchEngine(policy.model, Chat(tokenizer), args.rollout_batch), sync


def evaluate(generator, tasks, search, args):
    """Share of the held-out tasks solved greedily, this rank's part of them summed over ranks."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    played = rollout(generator, part_of_rank(tasks, rank, world), max_steps=args.max_steps,
                     max_tokens=args.max_tokens, search=search, temperature=0)
    right, n = sum_over_ranks(
        sum(correct_answer(None, t["question"], t["prediction"], t["answer"]) for t in played), len(played))
    return right / n


def summary(counts, updates):
    """A step's counts and [(sums, gradient norm)] of its updates, on this rank -> the log, over all ranks."""
    n = dict(zip(counts, sum_over_ranks(*counts.values())))
    sums = [dict(zip(s, sum_over_ranks(*s.values()))) for s, _ in updates]
    norms = [norm for _, norm in updates if norm is not None]
    scored, rollouts = max(1, n["rollouts"] - n["dropped"]), max(1, n["rollouts"])
    return dict(reward=n["reward"] / scored, reward_correct=n["correct"] / scored,
                reward_chosen=n["chosen"] / scored, reward_rejected=n["rejected"] / scored,
                zero_variance=n["zero_variance"] / max(1, n["groups"]), dropped=n["dropped"],
                truncated=n["truncated"] / rollouts, response_tokens=n["response_tokens"] / rollouts,
                entropy=n["entropy"] / max(1, n["response_tokens"]),          # E[-log p], as it was sampled
                loss=sum(s["loss"] for s in sums), kl=sum(s["kl"] for s in sums) / len(sums),
                clip_fraction=sum(s["clip_fraction"] for s in sums) / len(sums),
                logp_gap=sums[0]["logp_gap"] / max(1, sums[0]["trained_tokens"]),
                updates=len(norms), grad_norm=sum(norms) / max(1, len(norms)))


def show(file, folder, step, group):
    """Append a group of rollouts to rollouts.jsonl, and write it as text to read."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"step-{step}.txt"), "w", encoding="utf-8") as f:
        for i, r in enumerate(e.record for e in group):
            append_jsonl(file, {"step": step, **r})
            made_of = ", ".join(k.removeprefix("reward_") for k in r if k.startswith("reward_") and r[k])
            f.write(f"==== rollout {i}: reward {r.get('reward')} ({made_of or '-'}), stop {r['stop']}, "
                    f"prediction {r['prediction']}, answer {r['answer']}\n{r['messages'][0]['content']}\n"
                    f"{render(r['messages'])}\n\n")


def main(args):
    rank, world, device = start_distributed()
    log = print if rank == 0 else lambda *_, **__: None
    if os.path.exists(os.path.join(args.out, "config.json")):
        return log(f"{args.out} is finished already")
    for name, n in ("--prompts", args.prompts), ("--mini-batch", args.mini_batch):
        if n % world:
            raise InputError(f"{name} {n} is not a multiple of the {world} ranks")
    if args.prompts % args.mini_batch:
        raise InputError(f"--prompts {args.prompts} is not a multiple of --mini-batch {args.mini_batch}")
    starts = load_starts(args.data, args.short_horizon)
    eval_tasks = read_tasks(args.eval_tasks) if args.eval_tasks else []
    steps = args.steps or math.ceil(args.epochs * len(starts) / args.prompts)
    set_sandbox(args.sandbox, args.preload)
    teacher, search = Teacher.from_args(args), search_from_args(args)
    policy, tokenizer = load_policy(args.model, args)
    if rank == 0:
        save_args(args, os.path.join(args.out, "args.json"))
    reference = load_policy(args.model, args)[0].to(device).eval() if args.kl else None
    engine = deepspeed_engine(policy, args)
    generator, sync = make_engine(args, engine, tokenizer, device, starts[0]["messages"])
    state = load_state(engine, args.out)
    done, best = state.get("step", 0), state.get("best")
    if done:
        sync()
    metrics = open_metrics(args.out, done) if rank == 0 else None
    shown = open_metrics(args.out, done, "rollouts.jsonl") if rank == 0 else None
    publish = start_wandb(args) if rank == 0 and args.wandb else lambda row: None
    log(f"{len(starts)} starts; {steps} steps of {args.prompts} starts x {args.group} rollouts, "
        f"{args.prompts // args.mini_batch} updates each; from step {done}")
    pool = ThreadPoolExecutor(args.concurrency)

    def keep_best(accuracy):
        nonlocal best
        if best is None or accuracy > best:
            best = accuracy
            save_model(engine, tokenizer, os.path.join(args.out, "best"))
        return accuracy

    if eval_tasks and best is None:                                        # the start is the first to beat
        log(f"before training: eval {keep_best(evaluate(generator, eval_tasks, search, args)):.3f}")

    for step in range(done, steps):
        # ---- rollout: this rank's starts, one replayed prefix and G forks each ----
        clock = [time.time()]
        batch = [starts[permutation(len(starts), args.seed, i // len(starts))[i % len(starts)]]
                 for i in range(step * args.prompts + rank, (step + 1) * args.prompts, world)]
        skipped = []
        episodes = make_episodes(batch, args.group, args.max_steps, args.max_tokens, search, skipped)
        for start, reason in skipped:
            print(f"rank {rank}: {start['id']} is left out, its prefix does not replay: {reason}", flush=True)
        generator.play(episodes, **sampling_from_args(args, 7919 * step))
        generator.sleep()
        clock.append(time.time())

        # ---- reward ----
        groups = [episodes[i:i + args.group] for i in range(0, len(episodes), args.group)]
        trained, counts = score(groups, teacher, args, pool)
        clock.append(time.time())

        # ---- update: every mini-batch once ----
        size = args.mini_batch // world
        updates = [update(engine, trained[i:i + size], reference, args, device)
                   for i in range(0, args.prompts // world, size)]
        sync_gap = sum_over_ranks(sync())[0] / world
        clock.append(time.time())

        # ---- log ----
        row = dict(step=step + 1, skipped=sum_over_ranks(len(skipped))[0], **summary(counts, updates),
                   sync_gap=sync_gap, seconds_rollout=clock[1] - clock[0], seconds_reward=clock[2] - clock[1],
                   seconds_update=clock[3] - clock[2])
        if not max(row["logp_gap"], sync_gap) <= args.max_logp_gap:                # also if it is no number
            raise InputError(f"step {step + 1}: engine and trainer disagree by {row['logp_gap']:.3f} nats "
                             f"a token ({sync_gap:.3f} after the update), more than --max-logp-gap")
        if eval_tasks and ((step + 1) % args.eval_every == 0 or step + 1 == steps):
            row["eval_accuracy"] = keep_best(evaluate(generator, eval_tasks, search, args))
        if rank == 0:
            append_jsonl(metrics, row)
            publish(row)
            if (step + 1) % args.show_every == 0 or step == 0:
                show(shown, os.path.join(args.out, "rollouts"), step + 1, groups[0] if groups else [])
            print(f"step {step + 1}/{steps}  reward {row['reward']:.3f}  right {row['reward_correct']:.3f}  "
                  f"no variance {row['zero_variance']:.2f}  tokens {row['response_tokens']:.0f}  "
                  f"grad norm {row['grad_norm']:.2f}  gap {row['logp_gap']:.1e}  "
                  f"{row['seconds_rollout']:.1f} + {row['seconds_reward']:.1f} + "
                  f"{row['seconds_update']:.1f} s"
                  + (f"  eval {row['eval_accuracy']:.3f}" if "eval_accuracy" in row else ""), flush=True)
        if (step + 1) % args.save_every == 0 and step + 1 < steps:
            save_state(engine, args.out, step + 1, best=best)

    save_model(engine, tokenizer, args.out)
    if rank == 0:
        shutil.rmtree(os.path.join(args.out, "state"), ignore_errors=True)
    log(f"{args.out}: trained")


if __name__ == "__main__":
    cli(main, parse_args())
