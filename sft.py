"""Stages 1 and 3: supervised fine-tuning on trajectories, with loss only on the policy's own tokens.

  trajectories (JSON lines with `messages`) + a Hugging Face checkpoint  ->  a Hugging Face checkpoint

L = - E sum_t log pi(thought_t, code_t | h_t)   (paper, equation 1): thoughts, code and end-of-turn tokens
carry loss; the question and the observations are context. The mean is over all such tokens of the global
batch, on all ranks.

Differences from the paper: learning rate, schedule and warm-up are those of the authors' release;
trajectories are packed into rows without padding (plumbing/packing.py), which changes no result.

  laptop:  python sft.py --model ckpt/init --data bc.jsonl --out ckpt/bc --dtype fp32 \\
             --lr 3e-3 --batch 16 --steps 400
  1 GPU:   python sft.py --model Qwen/Qwen2.5-1.5B-Instruct --data bc.jsonl --out ckpt/bc
  8 GPUs:  torchrun --nproc_per_node 8 sft.py --model Qwen/Qwen2.5-7B-Instruct --data bc.jsonl \\
             --out ckpt/bc --zero 3 --checkpointing
  look:    python sft.py --model … --data bc.jsonl --out - --show 2     (trained tokens in green)

A killed run goes on from its last saved state when the same command is given again.
"""
import argparse
import itertools
import math
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from env import Chat, load_chat
from plumbing.checkpoints import SaveTimes, load_state, remove_state, save_model, save_state
from plumbing.cli import CHAT_TEMPLATE, InputError, Parser, cli, training_flags
from plumbing.models import load_policy, matmul_rate, model_flops
from plumbing.packing import NOTHING, Batch, Example, fill_rows, pack_examples, pad_examples
from plumbing.ranks import check_multiple, start_distributed, sum_over_ranks
from plumbing.records import Record, read_jsonl
from plumbing.start import check_start, finished_before, save_args
from plumbing.trainer import Metrics, make_trainer, optimizer_step, shuffled
from plumbing.trajectory import fault_of_turns
from plumbing.values import not_negative, positive, share, whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder or hub name to start from")
    g.add_argument("--chat-template", help=CHAT_TEMPLATE)
    g.add_argument("--data", required=True, nargs="+", help="JSON lines with `messages`")
    g.add_argument("--val", nargs="+", help="JSON lines with `messages` whose loss is logged, not trained on")
    g.add_argument("--val-every", type=whole(1), default=100,
                   help="steps between two such losses; the last is at the end")
    g.add_argument("--show", type=whole(0), default=0, metavar="N",
                   help="print N examples, their trained tokens in green, and end; 0: train")
    g.add_argument("--out", required=True,
                   help="folder for the trained checkpoint, metrics.jsonl and the state to resume from")
    g = p.add_argument_group("optimisation")
    g.add_argument("--epochs", type=positive, default=3, help="passes over the data")
    g.add_argument("--steps", type=whole(1), help="optimizer steps (default: as many as --epochs needs)")
    g.add_argument("--batch", type=whole(1), default=128, help="trajectories per step, over all ranks")
    g.add_argument("--lr", type=not_negative, default=7e-6, help="peak learning rate")
    g.add_argument("--warmup", type=share, default=0.1,
                   help="share of the steps with a rising learning rate; cosine to 0 after")
    g.add_argument("--max-tokens", type=whole(1), default=4096, help="tokens of the longest trajectory")
    g.add_argument("--overlong", choices=["drop", "cut"], default="drop",
                   help="longer ones are counted and dropped, or cut after their last step that fits")
    training_flags(g, row_tokens=4096)
    return p.parse_args(argv)


# ---- the loss ----

def bc_loss(logps: Tensor, tokens: int) -> Tensor:
    """Equation 1 of the paper, behaviour cloning: the mean of -log pi over the policy's own tokens.

    logps (N,): log-probs only of those tokens: thoughts, code and ends of turns. The question and the
    observations are part of what they are conditioned on, and nowhere in the sum. tokens: how many of them
    the *global* batch has, so that the losses of all micro-batches and ranks add up to the mean.
    """
    return -logps.sum() / tokens


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear over the first `warmup` share of the steps, then cosine to 0; `step` counts from 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


# ---- examples ----

def encode(tokenizer: Any, messages: list[dict[str, str]], max_tokens: int) -> Example:
    """-> input_ids, loss_mask (length T): 1 on thoughts, code, end-of-turn; 0 on question, observations.

    The mask is made by `Chat.encode`. Raises ValueError for more than max_tokens tokens, or for a chat
    template that does not keep the messages as they are.
    """
    ids, mask = Chat(tokenizer).encode(messages)
    if len(ids) > max_tokens:
        raise ValueError(f"{len(ids)} tokens, more than {max_tokens}")
    return ids, mask


def load_examples(paths: list[str], chat: Chat, max_tokens: int, overlong: str = "drop",
                  log: Callable[[str], None] = print) -> list[Example]:
    """-> [(input_ids, loss_mask)]; over-long ones are dropped or cut, other faults raise InputError.

    Also dropped are those whose text the chat template would change.
    """
    examples = []
    long = 0
    changed = []                                           # what the template does to them
    for path in paths:
        line = 0
        for line, record in read_jsonl(path):
            if not alternates(record):
                raise InputError(f"{path}, line {line}: field `messages` must be turns of user and assistant "
                                 "in alternation, each with a text")
            try:
                ids, mask = chat.encode(record["messages"])
            except ValueError as error:
                changed.append(f"{path}, line {line}: {error}")
                continue
            if len(ids) > max_tokens:
                long += 1
                end = end_of_last_step(mask, max_tokens) if overlong == "cut" else 0
                ids = ids[:end]
                mask = mask[:end]
            if ids:
                examples.append((ids, mask))
        if line == 0:
            raise InputError(f"{path} is empty: it holds no trajectory")
    if not examples:
        first = "".join(f"; {each}" for each in changed[:1])
        raise InputError(f"{', '.join(paths)}: no trajectory to train on ({long} longer than {max_tokens} "
                         f"tokens, {len(changed)} that the chat template changes{first})")
    examples.sort(key=lambda e: zlib.crc32(bytes(str(e[0]), "ascii")))   # whatever the order of the lines
    fate = "cut after a step or dropped" if overlong == "cut" else "dropped"
    log(f"{', '.join(paths)}: {len(examples)} trajectories, {trained_tokens(examples):,} trained tokens; "
        f"{long} too long, {fate}")
    if changed:
        log(f"{len(changed)} dropped, the first of them {changed[0]}")
    return examples


def alternates(record: Record) -> bool:
    """Whether a record's messages are texts of user and assistant in alternation, the user first."""
    messages = record.get("messages")
    return fault_of_turns(messages) is None and len(messages) > 1


def end_of_last_step(mask: list[int], max_tokens: int) -> int:
    """Where the last step ends that fits whole; 0 if none does. [0 0 1 1 0 1 1], 6 -> 4"""
    return max((t for t in range(1, max_tokens + 1) if mask[t - 1] > mask[t]), default=0)


def trained_tokens(examples: list[Example]) -> int:
    """Tokens with loss; nothing predicts the first one of an example."""
    return sum(sum(mask[1:]) for _, mask in examples)


def show(args: argparse.Namespace) -> None:
    """Print examples as the model sees them, the tokens it is trained on in green."""
    chat = load_chat(args.model, args.chat_template)
    examples = load_examples(args.data, chat, args.max_tokens, args.overlong)
    for ids, mask in examples[:args.show]:
        print(f"---- {len(ids)} tokens, {trained_tokens([(ids, mask)])} of them trained")
        for trained, run in itertools.groupby(zip(ids, mask), key=lambda pair: pair[1]):
            text = chat.tokenizer.decode([token for token, _ in run])
            print(f"\x1b[32m{text}\x1b[0m" if trained else text, end="")
        print()


# ---- batches ----

def micro_batches(examples: list[Example], rank: int, world: int, args: argparse.Namespace,
                  device: torch.device) -> list[Batch]:
    """This rank's share of a batch -> [(inputs, predict, target)], equally many on every rank."""
    micro = []
    if args.pack:
        rows = fill_rows([len(ids) for ids, _ in examples], args.row_tokens, world)
        for row in rows[rank::world]:
            micro.append(pack_examples([examples[i] for i in row] or [NOTHING], device))
        return micro
    examples = sorted(examples, key=lambda e: len(e[0]))                   # neighbours have similar lengths
    wave = world * args.micro_batch
    for i in range(0, len(examples), wave):
        micro.append(pad_examples(examples[i:i + wave][rank::world], device))
    return micro


# ---- one update ----

def update(trainer: Any, micro: list[Batch], tokens: int, lr: float) -> tuple[float, float]:
    """One optimizer step on this rank's micro-batches -> loss of the global batch, gradient norm."""
    sums = []                                              # of -log pi, one a micro-batch

    def loss_of(inputs: dict, predict: Tensor, target: Tensor) -> Tensor:
        logps = trainer(inputs, predict, target)           # (N,) the policy's own tokens
        sums.append(-logps.detach().sum())
        return bc_loss(logps, tokens)

    norm = optimizer_step(trainer, micro, loss_of, lr)
    total, = sum_over_ranks(float(sum(sums)))
    return total / tokens, norm


# ---- main ----

def main(args: argparse.Namespace) -> None:
    if args.show:
        show(args)
        return
    check_start(args)
    rank, world, device = start_distributed()

    def log(text: str) -> None:
        if rank == 0:
            tqdm.write(text)                                               # above the bar
            sys.stdout.flush()

    if finished_before(args):
        log(f"{args.out} is finished already")
        return
    check_multiple("--batch", args.batch, f"the {world} ranks", world)
    chat = load_chat(args.model, args.chat_template)
    examples = load_examples(args.data, chat, args.max_tokens, args.overlong, log)
    val = load_examples(args.val, chat, args.max_tokens, args.overlong, log) if args.val else []
    steps = args.steps or math.ceil(args.epochs * len(examples) / args.batch)
    log(f"{steps} steps of {args.batch} trajectories = {args.batch // world} per rank = "
        f"{steps * args.batch / len(examples):.2f} epochs")
    policy = load_policy(args.model, args)
    flops = model_flops(policy.model, args.lora_rank)
    limit = world * matmul_rate(device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    trainer = make_trainer(policy, args)
    done = load_state(trainer, args.out).get("step", 0)
    save_args(args)
    metrics = Metrics(args, rank, done)
    bar = tqdm(total=steps, initial=done, unit="step",
               disable=None if rank == 0 else True)          # None: off where there is no terminal

    save_times = SaveTimes(args.save_every)
    for step in range(done, steps):
        start = time.time()
        batch = shuffled(examples, range(step * args.batch, (step + 1) * args.batch), args.seed)
        tokens = max(1, trained_tokens(batch))
        lr = learning_rate(step, steps, args.lr, args.warmup)
        loss, norm = update(trainer, micro_batches(batch, rank, world, args, device), tokens, lr)
        seconds = time.time() - start
        row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens,
               "tokens_per_s": tokens / seconds, "utilisation": flops(batch) / seconds / limit}
        if val and ((step + 1) % args.val_every == 0 or step + 1 == steps):
            row["val_loss"] = mean_loss(trainer, micro_batches(val, rank, world, args, device), val)
        metrics.write(row)
        bar.update()
        bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_s']:.0f} trained tokens/s, "
                            f"{row['utilisation']:.0%} of matmul rate")
        if (step + 1) % max(1, steps // 20) == 0 or "val_loss" in row:
            log(log_line(row, steps))
        if step + 1 < steps and save_times.come(step + 1):
            save_state(trainer, args.out, step + 1)

    save_model(trainer, chat.tokenizer, args.out)
    remove_state(args.out)
    bar.close()
    log(f"{args.out}: trained")


def log_line(row: Record, steps: int) -> str:
    """A row of metrics as a line for the terminal."""
    line = (f"step {row['step']}/{steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"grad norm {row['grad_norm']:.2f}  {row['tokens_per_s']:.0f} trained tokens/s")
    if "val_loss" in row:
        line += f"  val loss {row['val_loss']:.4f}"
    return line


def mean_loss(trainer: Any, micro: list[Batch], examples: list[Example]) -> float:
    """Loss per token over all ranks, without a gradient."""
    total = 0.0
    with torch.no_grad():
        for batch in micro:
            total -= float(trainer(*batch).sum())
    return sum_over_ranks(total)[0] / max(1, trained_tokens(examples))


if __name__ == "__main__":
    cli(main, parse_args())
