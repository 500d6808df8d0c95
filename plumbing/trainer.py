"""DeepSpeed around a policy: the optimizer and its step, the order of the data, the metrics."""
import argparse
import functools
import math
import os
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plumbing.cli import InputError
from plumbing.models import LogProbs, add_lora, load_policy
from plumbing.ranks import wait_for_ranks
from plumbing.records import Record, append_jsonl, open_metrics

BUCKET = 50_000_000                                        # parameters that are sent in one message


def zero_stage(args: argparse.Namespace) -> int:
    """DeepSpeed's stage for --zero. In bf16 stage 2 does the work of 0, with less memory.

    There DeepSpeed's optimizer without ZeRO begins with an empty step, so that Adam's first real step is its
    second, and sums the gradients of micro-batches in bf16.
    """
    if args.dtype == "bf16" and args.zero == 0:
        return 2
    return args.zero


def make_trainer(policy: LogProbs, args: argparse.Namespace) -> Any:
    """DeepSpeed's engine around the policy: AdamW, mixed precision, ZeRO.

    Learning rate and the scale of the loss are set here, not by DeepSpeed. Weight decay is for matrices only,
    not for norms and biases.
    """
    import deepspeed
    wait_for_ranks("loading the model")
    if args.lora_rank:
        add_lora(policy.model, args.lora_rank, args.seed)
    trained = [p for p in policy.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.999), fused=True)
    bucket = min(BUCKET, sum(p.numel() for p in trained))
    zero: dict[str, Any] = {"stage": zero_stage(args), "reduce_bucket_size": bucket,
                            "allgather_bucket_size": bucket, "stage3_prefetch_bucket_size": bucket}
    if args.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": args.clip_grad,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,              # torch's AdamW, which needs nothing compiled
        "bf16": {"enabled": args.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},        # sums over many micro-batches
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 60,                        # never
    }
    trainer, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
    return trainer


def load_reference(args: argparse.Namespace) -> Any:
    """The starting model, frozen, for a KL term: in the trainer's dtype, and sharded under ZeRO-3."""
    import deepspeed
    reference = load_policy(args.model, args).eval()
    if args.zero < 3:
        return reference
    wait_for_ranks("loading the reference")
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3},
              "bf16": {"enabled": args.dtype == "bf16"}, "steps_per_print": 1 << 60}
    sharded, *_ = deepspeed.initialize(model=reference, config=config)
    return sharded.eval()


def optimizer_step(trainer: Any, micro_batches: Sequence[tuple], loss_of: Callable[..., Tensor],
                   lr: float) -> float:
    """One update from the summed gradient of all micro-batches on all ranks -> gradient norm before clipping.

    loss_of(*micro_batch) is this rank's part of the loss, already divided by the *global* denominator;
    DeepSpeed averages gradients over ranks, hence the factor. Every rank must bring the same number of
    micro-batches. The norm is nan where a gradient is no number; DeepSpeed may then have left out the step.
    """
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    world = torch.distributed.get_world_size()
    keeps_no_norm = trainer.get_data_types()[0] == torch.float32 and not trainer.zero_optimization()
    norm = None
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        trainer.set_gradient_accumulation_boundary(last)
        trainer.backward(loss_of(*batch) * world)
        if last and keeps_no_norm:
            norm = torch.nn.utils.clip_grad_norm_(trainer.parameters(), trainer.gradient_clipping())
        trainer.step()
    if not keeps_no_norm:
        norm = trainer.get_global_grad_norm()              # -1, or that of the step before, for nan
        if trainer.optimizer.overflow or norm < 0:
            return math.nan
    return float(norm)


def shuffled(items: list, places: range, seed: int) -> list:
    """Items at these places of an endless stream: a fresh permutation of all items every epoch.

    It is the same for every number of ranks. [a b c], places 2 to 4 -> the last of epoch 0, two of epoch 1
    """
    found = []
    for i in places:
        epoch, place = divmod(i, len(items))
        found.append(items[permutation(len(items), seed, epoch)[place]])
    return found


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """A fixed random order of range(n)."""
    return random.Random(f"{seed} {epoch}").sample(range(n), n)


class Metrics:
    """Where rank 0 logs a row a step: OUT/metrics.jsonl, and Weights & Biases with --wandb."""

    def __init__(self, args: argparse.Namespace, rank: int, done: int) -> None:
        """done: the step that a resumed run starts from; later rows are cut off."""
        self.out = args.out
        self.file = None
        self.run = None
        if rank == 0:
            self.file = open_metrics(args.out, done)
            if args.wandb:
                import wandb
                curve = zlib.crc32(os.path.abspath(args.out).encode())         # a resumed run goes on in it
                self.run = wandb.init(project=args.wandb, name=args.out, id=f"{curve:08x}", resume="allow",
                                      config=vars(args))

    def write(self, row: Record) -> None:
        """Log a step. Raises InputError if its loss or gradient norm is no number; nothing of it is kept."""
        for name in "loss", "grad_norm", "val_loss":
            if not math.isfinite(row.get(name, 0.0)):
                raise InputError(f"step {row['step']}: `{name}` is {row[name]}, training has diverged; what "
                                 f"was saved in {self.out} before it stays; try a lower --lr")
        if self.file is not None:
            append_jsonl(self.file, row)
        if self.run is not None:
            self.run.log(row, step=row["step"])
