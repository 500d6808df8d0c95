"""The baseline DPO (the paper's Figure 5; Rafailov et al. 2023): learning from MPS's pairs, without rollouts.

  mps.jsonl (pairs h_k, chosen > rejected) + ckpt/sft  ->  a Hugging Face checkpoint

  L = - mean log sigmoid(r(chosen) - r(rejected)),   r(step) = beta log [pi(step | h_k) / pi_ref(step | h_k)]

What it changes against sft.py: an example is a pair of steps after one prefix, which a packed row holds once;
loss is only on the tokens of that one step and its end of turn, never on the prefix; the mean is over pairs,
the log-probs of a step are summed; pi_ref is --model, asked once before training: its log-probs are kept in
the saved state, and there is no second model in memory; there is no --val, --show, --overlong.

Pairs: each corrected step of the tasks that were solved in the end, with each step that was rejected there:
the student's, and corrections of it that failed in their turn. By default of all such tasks in mps.jsonl,
whichever half they are in; `--data mps/rl.jsonl` takes only those that grpo_short.py starts from.

  laptop:  torchrun --nproc_per_node 2 baselines/dpo.py --model ckpt/sft --data mps/mps.jsonl \\
             --out ckpt/dpo --lr 1e-5 --batch 16
  8 GPUs:  torchrun --nproc_per_node 8 baselines/dpo.py --model ckpt/sft --data mps/mps.jsonl \\
             --out ckpt/dpo --zero 3 --checkpointing

beta and lr are TRL's and, with the batch, the DPO paper's; one epoch, cosine, warm-up are Zephyr's recipe's.

Logged each step (metrics.jsonl): loss, log 2 in the first step; chosen_reward and rejected_reward, r of these
steps; margin, their difference; accuracy, the share of pairs with a margin above 0, which says nothing in the
first step; lr; grad_norm before clipping; seconds.
"""
import argparse
import math
import os
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from env import load_chat
from mps import key_steps
from plumbing.checkpoints import SaveTimes, load_state, remove_state, save_model, save_state
from plumbing.cli import CHAT_TEMPLATE, InputError, Parser, cli, training_flags
from plumbing.models import load_policy
from plumbing.pairs import Pair, fingerprint, load_pairs, pair_batches, reference_logps, step_logps
from plumbing.ranks import check_multiple, say_once, start_distributed, sum_over_ranks
from plumbing.records import Record
from plumbing.start import check_start, finished_before, save_args
from plumbing.trainer import Metrics, make_trainer, optimizer_step, shuffled
from plumbing.values import not_negative, positive, share, whole
from sft import learning_rate


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder or hub name: start and reference")
    g.add_argument("--chat-template", help=CHAT_TEMPLATE)
    g.add_argument("--data", required=True, nargs="+", help="mps.jsonl or rl.jsonl of mps.py")
    g.add_argument("--out", required=True, help="folder for checkpoint, metrics.jsonl, state")
    g = p.add_argument_group("optimisation")
    g.add_argument("--beta", type=positive, default=0.1, help="how much it costs to leave the reference")
    g.add_argument("--epochs", type=positive, default=1, help="passes over the pairs")
    g.add_argument("--steps", type=whole(1), help="optimizer steps (default: as many as --epochs needs)")
    g.add_argument("--batch", type=whole(1), default=64, help="pairs per step, over all ranks")
    g.add_argument("--lr", type=not_negative, default=1e-6, help="peak learning rate")
    g.add_argument("--warmup", type=share, default=0.1, help="share of the steps with a rising learning rate")
    g.add_argument("--max-tokens", type=whole(1), default=4096, help="tokens of the longest prefix and step")
    training_flags(g, row_tokens=4096)
    return p.parse_args(argv)


# ---- the pairs and the loss ----

def starts_of(record: Record) -> list[Record]:
    """The RL records of a line: all corrected steps of a solved task; a line of rl.jsonl is one itself."""
    if "corrections" not in record:
        return [record]
    return key_steps(record, {}, "all") if record["correct"] else []


def dpo_loss(logps: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Log-probs of whole steps, (n, 2) each: chosen, rejected -> losses (n,), rewards (n, 2).

    beta 0.1, reference -4 -4, policy -3 -5 -> rewards 0.1 -0.1, loss -log sigmoid(0.2) = 0.598
    """
    rewards = beta * (logps - reference)
    return -logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards.detach()


# ---- training ----

def update(trainer: Any, pairs: list[Pair], reference: Tensor, lr: float, args: argparse.Namespace,
           device: torch.device) -> Record:
    """One optimizer step on a global batch of P pairs and its reference (P, 2) -> its part of the log."""
    sums = Counter()                                       # over this rank's pairs

    def loss_of(*batch: Any) -> Tensor:
        losses, rewards = dpo_loss(step_logps(trainer, batch), reference[batch[-1]], args.beta)
        chosen, rejected = rewards.sum(0).tolist()
        right = float((rewards[:, 0] > rewards[:, 1]).sum())
        sums.update(loss=float(losses.detach().sum()), chosen=chosen, rejected=rejected, right=right)
        return losses.sum() / len(pairs)

    norm = optimizer_step(trainer, pair_batches(pairs, args, device), loss_of, lr)
    total = sum_over_ranks(sums["loss"], sums["chosen"], sums["rejected"], sums["right"])
    loss, chosen, rejected, accuracy = [value / len(pairs) for value in total]
    return {"loss": loss, "chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected,
            "accuracy": accuracy, "lr": lr, "grad_norm": norm}


def main(args: argparse.Namespace) -> None:
    check_start(args)
    rank, world, device = start_distributed()
    if finished_before(args):
        say_once(f"{args.out} is finished already")
        return
    check_multiple("--batch", args.batch, f"the {world} ranks", world)
    chat = load_chat(args.model, args.chat_template)
    pairs = load_pairs(args.data, starts_of, chat, args.max_tokens)
    steps = args.steps or math.ceil(args.epochs * len(pairs) / args.batch)
    say_once(f"{steps} steps of {args.batch} pairs = {steps * args.batch / len(pairs):.2f} epochs")
    trainer = make_trainer(load_policy(args.model, args), args)
    state = load_state(trainer, args.out)
    if state and state["pairs"] != fingerprint(pairs):     # the reference is of others
        raise InputError(f"{args.out}/state was made from other pairs than --data holds: give another --out")
    reference = state["reference"] if state else reference_logps(trainer, pairs, args, device)
    done = state.get("step", 0)
    save_args(args)
    metrics = Metrics(args, rank, done)
    save_times = SaveTimes(args.save_every)
    for step in tqdm(range(done, steps), initial=done, total=steps, unit="step", disable=rank > 0 or None):
        start = time.time()
        batch = shuffled([*range(len(pairs))], range(step * args.batch, (step + 1) * args.batch), args.seed)
        lr = learning_rate(step, steps, args.lr, args.warmup)
        row = update(trainer, [pairs[i] for i in batch], reference[batch].to(device), lr, args, device)
        metrics.write({"step": step + 1, **row, "seconds": time.time() - start})
        if rank == 0 and (step + 1) % max(1, steps // 20) == 0:
            tqdm.write(f"step {step + 1}/{steps}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2f}")
            sys.stdout.flush()
        if step + 1 < steps and save_times.come(step + 1):
            save_state(trainer, args.out, step + 1, reference=reference, pairs=fingerprint(pairs))
    save_model(trainer, chat.tokenizer, args.out)
    remove_state(args.out)
    say_once(f"{args.out}: trained")


if __name__ == "__main__":
    cli(main, parse_args())
