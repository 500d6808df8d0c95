"""Stages 1 and 3: supervised fine-tuning on trajectories, with loss on what the policy writes alone.

  trajectories (JSON lines with `messages`) + a Hugging Face checkpoint  ->  a Hugging Face checkpoint

L = - E sum_t log pi(thought_t, code_t | h_t)   (paper, equation 1): thoughts, code and end-of-turn tokens
carry loss; the question and the observations are context. The mean is over all such tokens of the global
batch, on all ranks.

Differences from the paper: learning rate, schedule and warm-up are those of the authors' release;
trajectories are packed into rows without padding (assets/attention.py), which changes no result.

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
import os
import shutil
import sys
import time
import zlib

import torch
from tqdm import tqdm

from env import Chat
from plumbing.checkpoints import load_state, save_model, save_state
from plumbing.cli import Help, InputError, add_training_flags, cli
from plumbing.models import load_policy, matmul_rate, model_flops
from plumbing.packing import collate, fill_rows, marked, pack_examples
from plumbing.records import append_jsonl, open_metrics, read_jsonl, save_args
from plumbing.trainer import (deepspeed_engine, optimizer_step, permutation, start_distributed, start_wandb,
                              sum_over_ranks)


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder or hub name to start from")
    g.add_argument("--data", required=True, nargs="+", help="JSON lines with `messages`")
    g.add_argument("--val", nargs="+", help="JSON lines with `messages` whose loss is logged, not trained on")
    g.add_argument("--val-every", type=int, default=100, help="steps between these losses; also at the end")
    g.add_argument("--show", type=int, default=0, help="print N examples, trained tokens green, and end")
    g.add_argument("--out", required=True,
                   help="folder for the trained checkpoint, metrics.jsonl and the state to resume from")
    g = p.add_argument_group("optimisation")
    g.add_argument("--epochs", type=float, default=3, help="passes over the data")
    g.add_argument("--steps", type=int, help="optimizer steps, in place of --epochs")
    g.add_argument("--batch", type=int, default=128, help="trajectories per optimizer step, over all ranks")
    g.add_argument("--lr", type=float, default=7e-6, help="peak learning rate")
    g.add_argument("--warmup", type=float, default=0.1,
                   help="share of the steps with a rising learning rate; cosine to 0 after")
    g.add_argument("--pack", action=argparse.BooleanOptionalAction, default=True,
                   help="rows without padding; otherwise padded sequences")
    g.add_argument("--row-tokens", type=int, default=4096,
                   help="tokens per forward pass and rank, for --pack; changes memory, not results")
    add_training_flags(g)
    g.add_argument("--max-tokens", type=int, default=4096, help="longest trajectory")
    g.add_argument("--overlong", choices=["drop", "cut"], default="drop",
                   help="longer ones are counted and dropped, or cut after their last step that fits")
    g.add_argument("--save-every", type=int, default=200, help="steps between saved states")
    g.add_argument("--wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")
    return p.parse_args(argv)


# ---- examples ----

def encode(tokenizer, messages, max_tokens):
    """-> input_ids, loss_mask (length T): 1 on thoughts, code, end-of-turn; 0 on question, observations.

    Raises ValueError for more than max_tokens tokens, or a chat template that does not keep the messages
    as they are.
    """
    ids, mask = (tokenizer if isinstance(tokenizer, Chat) else Chat(tokenizer)).encode(messages)
    if len(ids) > max_tokens:
        raise ValueError(f"{len(ids)} tokens, more than {max_tokens}")
    return ids, mask


def load_examples(paths, tokenizer, max_tokens, overlong="drop", log=print):
    """-> [(input_ids, loss_mask)]; over-long ones are dropped or cut, other faults raise InputError."""
    chat, examples, long = Chat(tokenizer), [], 0
    for path in paths:
        for line, record in read_jsonl(path):
            roles = [m.get("role") for m in record.get("messages") or []
                     if isinstance(m, dict) and isinstance(m.get("content"), str)]
            if roles[:2] != ["user", "assistant"] or any(a == b for a, b in zip(roles, roles[1:])):
                raise InputError(f"{path}, line {line}: field `messages` must be turns of user and assistant "
                                 "in alternation")
            try:
                ids, mask = chat.encode(record["messages"])
            except ValueError as error:
                raise InputError(f"{path}, line {line}: field `messages`: {error}") from None
            if len(ids) > max_tokens:
                long, end = long + 1, last_step(mask, max_tokens) if overlong == "cut" else 0
                ids, mask = ids[:end], mask[:end]
            if ids:
                examples.append((ids, mask))
    examples.sort(key=lambda e: zlib.crc32(bytes(str(e[0]), "ascii")))   # whatever the order of the lines
    if not examples:
        raise InputError(f"{', '.join(paths)}: no trajectory to train on "
                         f"({long} longer than {max_tokens} tokens)")
    log(f"{', '.join(paths)}: {len(examples)} trajectories, {sum(map(tokens_with_loss, examples)):,} trained "
        f"tokens; {long} too long, {'cut after a step or ' if overlong == 'cut' else ''}dropped")
    return examples


def last_step(mask, max_tokens):
    """Where the last step ends that fits whole; 0 if none does. [0 0 1 1 0 1 1], 6 -> 4"""
    return max((t for t in range(1, max_tokens + 1) if mask[t - 1] > mask[t]), default=0)


def tokens_with_loss(example):
    return sum(example[1][1:])


def show(args):
    """Print examples as the model sees them, the tokens it is trained on in green."""
    import transformers
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        examples = load_examples(args.data, tokenizer, args.max_tokens, args.overlong)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use the model {args.model!r}: {error}") from None
    for ids, mask in examples[:args.show]:
        print(f"---- {len(ids)} tokens, {tokens_with_loss((ids, mask))} of them trained")
        for trained, run in itertools.groupby(zip(ids, mask), key=lambda pair: pair[1]):
            text = tokenizer.decode([token for token, _ in run])
            print(f"\x1b[32m{text}\x1b[0m" if trained else text, end="")
        print()


def micro_batches(examples, rank, world, args, device):
    """This rank's share of a batch -> [(inputs, predict, target)], equally many on every rank."""
    if args.pack:
        rows = fill_rows([len(ids) for ids, _ in examples], args.row_tokens, world)
        return [pack_examples([examples[i] for i in row] or [([0], [0])], device) for row in rows[rank::world]]
    examples, wave, micro = sorted(examples, key=lambda e: len(e[0])), world * args.micro_batch, []
    for i in range(0, len(examples), wave):                                # neighbours have similar lengths
        batch = collate(examples[i:i + wave][rank::world], 1)
        ids, attention, loss = (x.to(device) for x in batch)
        micro.append((dict(input_ids=ids, attention_mask=attention), *marked(ids, loss)))
    return micro


def learning_rate(step, steps, peak, warmup):
    """Linear over the first `warmup` share of the steps, then cosine to 0; `step` counts from 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


# ---- DeepSpeed: also used by grpo_short.py ----


# ---- main ----

def main(args):
    if args.show:
        return show(args)
    rank, world, device = start_distributed()

    def log(text):
        if rank == 0:
            tqdm.write(text)                                               # above the bar
            sys.stdout.flush()
    if os.path.exists(os.path.join(args.out, "config.json")):
        return log(f"{args.out} is finished already")
    policy, tokenizer = load_policy(args.model, args)
    load = lambda paths: load_examples(paths, tokenizer, args.max_tokens, args.overlong, log)
    examples, val = load(args.data), load(args.val) if args.val else []
    steps = args.steps or math.ceil(args.epochs * len(examples) / args.batch)
    if args.batch % world:
        raise InputError(f"--batch {args.batch} is not a multiple of the {world} ranks")
    log(f"{steps} steps of {args.batch} trajectories = {args.batch // world} a rank = "
        f"{steps * args.batch / len(examples):.2f} epochs")
    flops = model_flops(policy.model, args.lora_rank)
    limit = world * matmul_rate(device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    engine = deepspeed_engine(policy, args)
    done = load_state(engine, args.out).get("step", 0)
    metrics = open_metrics(args.out, done) if rank == 0 else None
    publish = start_wandb(args) if rank == 0 and args.wandb else lambda row: None
    if rank == 0:
        save_args(args, os.path.join(args.out, "args.json"))
    bar = tqdm(total=steps, initial=done, unit="step", disable=None if rank == 0 else True)

    # ---- data order: a fresh permutation an epoch, the same for every number of ranks ----
    def batch_at(step):
        batch = []
        for i in range(step * args.batch, (step + 1) * args.batch):
            epoch, at = divmod(i, len(examples))
            batch.append(examples[permutation(len(examples), args.seed, epoch)[at]])
        return batch

    for step in range(done, steps):
        start, batch = time.time(), batch_at(step)
        tokens, total = max(1, sum(map(tokens_with_loss, batch))), torch.zeros((), device=device)

        def loss_of(inputs, predict, target):
            nonlocal total
            logps = engine(inputs, predict, target)
            total -= logps.detach().sum()
            return -logps.sum() / tokens
        lr = learning_rate(step, steps, args.lr, args.warmup)
        norm = optimizer_step(engine, micro_batches(batch, rank, world, args, device), loss_of, lr)
        loss, = sum_over_ranks(float(total))
        seconds = time.time() - start
        row = dict(step=step + 1, loss=loss / tokens, lr=lr, grad_norm=norm, tokens=tokens,
                   tokens_per_s=tokens / seconds, utilisation=flops(batch) / seconds / limit)
        if val and ((step + 1) % args.val_every == 0 or step + 1 == steps):
            row["val_loss"] = mean_loss(engine, micro_batches(val, rank, world, args, device), val)
        if rank == 0:
            append_jsonl(metrics, row)
            publish(row)
            bar.update()
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_s']:.0f} trained tokens/s, "
                                f"{row['utilisation']:.0%} of matmul rate")
        if (step + 1) % max(1, steps // 20) == 0 or "val_loss" in row:
            log(f"step {step + 1}/{steps}  loss {row['loss']:.4f}  lr {lr:.2e}  grad norm {norm:.2f}  "
                f"{row['tokens_per_s']:.0f} trained tokens/s"
                + (f"  val loss {row['val_loss']:.4f}" if "val_loss" in row else ""))
        if (step + 1) % args.save_every == 0 and step + 1 < steps:
            save_state(engine, args.out, step + 1)
    save_model(engine, tokenizer, args.out)
    if rank == 0:
        shutil.rmtree(os.path.join(args.out, "state"), ignore_errors=True)
    bar.close()
    log(f"{args.out}: trained")


def mean_loss(engine, micro, examples):
    """Loss per token over all ranks, without a gradient."""
    with torch.no_grad():
        total = sum(-float(engine(*batch).sum()) for batch in micro)
    return sum_over_ranks(total)[0] / max(1, sum(map(tokens_with_loss, examples)))


if __name__ == "__main__":
    cli(main, parse_args())
