"""Stages 1 and 3: supervised fine-tuning on trajectories, with loss on what the policy writes alone.

  trajectories (JSON lines with `messages`) + a Hugging Face checkpoint  ->  a Hugging Face checkpoint

L = - E sum_t log pi(thought_t, code_t | h_t)   (paper, equation 1): thoughts, code and end-of-turn tokens
carry loss; the question and the observations are context. The mean is over all such tokens of the global
batch, on all ranks.

Differences from the paper: learning rate, schedule and warm-up are those of the authors' release.

  laptop:  python sft.py --model ckpt/init --data bc.jsonl --out ckpt/bc --dtype fp32 \\
             --lr 3e-3 --batch 16 --steps 400
  1 GPU:   python sft.py --model Qwen/Qwen2.5-1.5B-Instruct --data bc.jsonl --out ckpt/bc --micro-batch 8
  8 GPUs:  torchrun --nproc_per_node 8 sft.py --model Qwen/Qwen2.5-7B-Instruct --data bc.jsonl \\
             --out ckpt/bc --zero 3

A killed run goes on from its last saved state when the same command is given again.
"""
import argparse
import math
import os
import random
import shutil
import time
import zlib

import torch

from assets.attention import Segments, packed_inputs
from assets.logprobs import LogProbs
from env import Chat, load_model
from judge import Help, InputError, append_jsonl, cli, read_jsonl, resume_jsonl, save_args


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    g = p.add_argument_group("files")
    g.add_argument("--model", required=True, help="Hugging Face folder or hub name to start from")
    g.add_argument("--data", required=True, nargs="+", help="JSON lines with `messages`")
    g.add_argument("--out", required=True,
                   help="folder for the trained checkpoint, metrics.jsonl and the state to resume from")
    g = p.add_argument_group("optimisation")
    g.add_argument("--epochs", type=float, default=3, help="passes over the data")
    g.add_argument("--steps", type=int, help="optimizer steps, in place of --epochs")
    g.add_argument("--batch", type=int, default=128, help="trajectories per optimizer step, over all ranks")
    g.add_argument("--lr", type=float, default=7e-6, help="peak learning rate")
    g.add_argument("--warmup", type=float, default=0.1,
                   help="share of the steps with a rising learning rate; cosine to 0 after")
    add_training_flags(g)
    g.add_argument("--max-tokens", type=int, default=4096,
                   help="longest trajectory; longer ones are dropped and counted")
    g.add_argument("--save-every", type=int, default=200, help="steps between saved states")
    return p.parse_args(argv)


def add_training_flags(g):
    """The flags that sft.py and grpo_short.py share."""
    g.add_argument("--weight-decay", type=float, default=0.1, help="AdamW's weight decay")
    g.add_argument("--clip-grad", type=float, default=1.0, help="largest norm of the gradient")
    g.add_argument("--micro-batch", type=int, default=8,
                   help="sequences per forward pass and rank; changes memory, not results")
    g.add_argument("--dtype", choices=["bf16", "fp32"],
                   default="bf16" if torch.cuda.is_available() else "fp32",
                   help="of the forward pass; weights and optimizer are fp32")
    g.add_argument("--zero", type=int, choices=[0, 1, 2, 3], default=0,
                   help="DeepSpeed stage: shard nothing, optimizer, gradients, weights")
    g.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False,
                   help="recompute activations in the backward pass: less memory, a third more time")
    g.add_argument("--seed", type=int, default=0, help="order of the data")


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


def load_examples(paths, tokenizer, max_tokens, log=print):
    """-> [(input_ids, loss_mask)]; over-long trajectories are dropped, any other fault raises InputError."""
    chat, examples, dropped = Chat(tokenizer), [], 0
    for path in paths:
        for line, record in read_jsonl(path):
            roles = [m.get("role") for m in record.get("messages") or []
                     if isinstance(m, dict) and isinstance(m.get("content"), str)]
            if roles[:2] != ["user", "assistant"] or any(a == b for a, b in zip(roles, roles[1:])):
                raise InputError(f"{path}, line {line}: field `messages` must be turns of user and assistant "
                                 "in alternation")
            ids, mask = chat.encode(record["messages"])
            if len(ids) > max_tokens:
                dropped += 1
            else:
                examples.append((ids, mask))
    examples.sort(key=lambda e: zlib.crc32(bytes(str(e[0]), "ascii")))   # whatever the order of the lines
    if not examples:
        raise InputError(f"{', '.join(paths)}: no trajectory to train on "
                         f"({dropped} longer than {max_tokens} tokens)")
    log(f"{len(examples)} trajectories, {sum(sum(m) for _, m in examples):,} trained tokens; "
        f"{dropped} too long, dropped")
    return examples


def collate(examples, size):
    """`size` rows, right-padded -> input_ids, attention_mask, loss_mask (B, T); missing rows carry no loss.

    [1 2 3], [4 5] -> [[1 2 3] [4 5 0]], [[1 1 1] [1 1 0]]; attention is about what exists, loss about what
    was written.
    """
    rows = list(examples) + [([0], [0])] * (size - len(examples))
    width = max(len(ids) for ids, _ in rows)
    pad = lambda x: x + [0] * (width - len(x))
    return (torch.tensor([pad(ids) for ids, _ in rows]),
            torch.tensor([pad([1] * len(ids)) for ids, _ in rows]),
            torch.tensor([pad(mask) for _, mask in rows]))


def marked(input_ids, loss_mask):
    """(B, T) twice -> predict (N,), flat indices of the positions t before a token with loss, and target (N,), those
    tokens, row by row."""
    rows, t = loss_mask[:, 1:].nonzero(as_tuple=True)
    return rows * input_ids.shape[1] + t, input_ids[rows, t + 1]


def pack(examples):
    """Examples one after another in one row, without padding -> inputs, predict (N,), target (N,).

    [1 2 3], [4 5], loss on 3 and 5 -> [1 2 3 4 5] at positions [0 1 2 0 1], predict [1, 3], target [3, 5]
    """
    segments = Segments([len(ids) for ids, _ in examples])
    input_ids = torch.tensor([t for ids, _ in examples for t in ids])                              # (T,)
    loss = torch.tensor([m for _, mask in examples for m in [0, *mask[1:]]], dtype=torch.bool)
    return packed_inputs(input_ids, segments), segments.before[loss], input_ids[loss]


def learning_rate(step, steps, peak, warmup):
    """Linear over the first `warmup` share of the steps, then cosine to 0; `step` counts from 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


# ---- DeepSpeed: also used by grpo_short.py ----

def start_distributed():
    """Join the processes that torchrun started (one alone is a world of one) -> rank, world size, device."""
    for name, value in dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0",
                            MASTER_ADDR="127.0.0.1", MASTER_PORT="0").items():
        os.environ.setdefault(name, value)
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(
            max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    import logging

    import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do: it needs no C++ compiler
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def load_policy(path, args):
    """-> LogProbs around the checkpoint (fp32 weights), tokenizer. Raises InputError with what is wrong."""
    model, tokenizer = load_model(path, torch.float32)
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return LogProbs(model), tokenizer


def deepspeed_engine(policy, args):
    """DeepSpeed around the policy: AdamW, mixed precision, ZeRO. Learning rate and loss scale stay ours."""
    import deepspeed
    decay = [p for p in policy.parameters() if p.ndim > 1]
    rest = [p for p in policy.parameters() if p.ndim <= 1]                     # norms and biases do not decay
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=args.weight_decay),
                                   dict(params=rest, weight_decay=0.0)],
                                  lr=args.lr, betas=(0.9, 0.999), fused=True)
    return deepspeed.initialize(model=policy, optimizer=optimizer, config={
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "gradient_clipping": args.clip_grad, "zero_optimization": {"stage": args.zero},
        "zero_allow_untested_optimizer": True, "wall_clock_breakdown": False,
        "bf16": {"enabled": args.dtype == "bf16"}, "steps_per_print": 1 << 60})[0]


def optimizer_step(engine, micro_batches, loss_of, lr):
    """One update from the summed gradient of all micro-batches on all ranks -> gradient norm before clipping.

    loss_of(*micro_batch) is this rank's part of the loss, already divided by the *global* denominator;
    DeepSpeed averages gradients over ranks, hence the factor. Every rank must bring the same number of
    micro-batches.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    for i, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
        engine.backward(loss_of(*batch) * torch.distributed.get_world_size())
        if (i + 1 == len(micro_batches) and engine.get_data_types()[0] == torch.float32
                and not engine.zero_optimization()):               # DeepSpeed keeps the norm for itself here
            norm = torch.nn.utils.clip_grad_norm_(engine.parameters(), engine.gradient_clipping())
        engine.step()
    return float(norm if engine.get_global_grad_norm() is None else engine.get_global_grad_norm())


def sum_over_ranks(*numbers):
    """Element-wise sums of numbers over all ranks."""
    total = torch.tensor(numbers, dtype=torch.float64)
    if torch.cuda.is_available():
        total = total.cuda()
    torch.distributed.all_reduce(total)
    return total.tolist()


def save_state(engine, out, step, **extra):
    """Write all that resuming needs to OUT/state/step-N; the last one goes only when this is whole."""
    folder = os.path.join(out, "state")
    engine.save_checkpoint(folder, tag=f"step-{step}", client_state=dict(step=step, **extra),
                           save_latest=True)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        for name in os.listdir(folder):
            if name.startswith("step-") and name != f"step-{step}":
                shutil.rmtree(os.path.join(folder, name))


def load_state(engine, out):
    """-> what `save_state` was given, or {} for a fresh start."""
    if not os.path.exists(os.path.join(out, "state", "latest")):
        return {}
    return engine.load_checkpoint(os.path.join(out, "state"))[1]


def full_weights(engine):
    """Yield (name, tensor) of the model, gathered one by one under ZeRO-3, tied ones under both names."""
    import deepspeed
    model = engine.module.model
    named = dict(model.named_parameters())
    if model.config.tie_word_embeddings:
        named["lm_head.weight"] = model.get_input_embeddings().weight
    for name, p in named.items():
        with deepspeed.zero.GatheredParameters([p], enabled=engine.zero_optimization_stage() == 3):
            yield name, p.detach()


def save_model(engine, tokenizer, out):
    """Write a Hugging Face folder; config.json, which marks it as whole, comes last."""
    weights = {name: p.cpu().clone() for name, p in full_weights(engine)}
    if torch.distributed.get_rank() == 0:
        part = os.path.join(out, "part")
        model = engine.module.model
        if model.config.tie_word_embeddings:
            weights.pop("lm_head.weight")
        model.save_pretrained(part, state_dict=weights)
        tokenizer.save_pretrained(part)
        for name in sorted(os.listdir(part), key=lambda n: n == "config.json"):
            os.replace(os.path.join(part, name), os.path.join(out, name))
        os.rmdir(part)
    torch.distributed.barrier()


# ---- main ----

def main(args):
    rank, world, device = start_distributed()
    log = print if rank == 0 else lambda *_: None
    if os.path.exists(os.path.join(args.out, "config.json")):
        return log(f"{args.out} is finished already")
    policy, tokenizer = load_policy(args.model, args)
    examples = load_examples(args.data, tokenizer, args.max_tokens, log)
    steps = args.steps or math.ceil(args.epochs * len(examples) / args.batch)
    if args.batch % world:
        raise InputError(f"--batch {args.batch} is not a multiple of the {world} ranks")
    log(f"{steps} steps of {args.batch} trajectories = {args.batch // world} a rank = "
        f"{steps * args.batch / len(examples):.2f} epochs")
    if rank == 0:
        save_args(args, os.path.join(args.out, "args.json"))
    engine = deepspeed_engine(policy, args)
    done = load_state(engine, args.out).get("step", 0)
    metrics = open_metrics(args.out, done) if rank == 0 else None

    # ---- data order: a fresh permutation an epoch, the same for every number of ranks ----
    def batch_at(step):
        first, batch = step * args.batch, []
        for i in range(first, first + args.batch):
            epoch, at = divmod(i, len(examples))
            batch.append(examples[permutation(len(examples), args.seed, epoch)[at]])
        return sorted(batch, key=lambda e: len(e[0]))  # neighbours have similar lengths

    def loss_of(input_ids, attention_mask, loss_mask):
        nonlocal total
        logps = engine(dict(input_ids=input_ids, attention_mask=attention_mask), *marked(input_ids, loss_mask))
        total -= logps.detach().sum()
        return -logps.sum() / tokens

    for step in range(done, steps):
        start, batch = time.time(), batch_at(step)
        tokens, total = max(1, sum(sum(mask[1:]) for _, mask in batch)), torch.zeros((), device=device)
        wave = world * args.micro_batch
        micro = [collate(batch[i:i + wave][rank::world], args.micro_batch)
                 for i in range(0, len(batch), wave)]
        lr = learning_rate(step, steps, args.lr, args.warmup)
        norm = optimizer_step(engine, [[x.to(device) for x in m] for m in micro], loss_of, lr)
        loss, = sum_over_ranks(float(total))
        row = dict(step=step + 1, loss=loss / tokens, lr=lr, grad_norm=norm, tokens=tokens,
                   tokens_per_s=tokens / (time.time() - start))
        if rank == 0:
            append_jsonl(metrics, row)
            if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
                print(f"step {step + 1}/{steps}  loss {row['loss']:.4f}  lr {lr:.2e}  grad norm {norm:.2f}  "
                      f"{row['tokens_per_s']:.0f} trained tokens/s", flush=True)
        if (step + 1) % args.save_every == 0 and step + 1 < steps:
            save_state(engine, args.out, step + 1)
    save_model(engine, tokenizer, args.out)
    if rank == 0:
        shutil.rmtree(os.path.join(args.out, "state"), ignore_errors=True)
    log(f"{args.out}: trained")


def permutation(n, seed, epoch, cache={}):
    """A fixed random order of range(n)."""
    if (n, seed, epoch) not in cache:
        cache.clear()
        cache[n, seed, epoch] = random.Random(f"{seed} {epoch}").sample(range(n), n)
    return cache[n, seed, epoch]


def open_metrics(out, done, name="metrics.jsonl"):
    """OUT/metrics.jsonl for appending, cut back to the step that a resumed run starts from."""
    path = os.path.join(out, name)
    os.makedirs(out, exist_ok=True)
    rows = [row for row in resume_jsonl(path) if row["step"] <= done]
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            append_jsonl(f, row)
    return open(path, "a", encoding="utf-8")


if __name__ == "__main__":
    cli(main, parse_args())
