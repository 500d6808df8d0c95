"""DeepSpeed around a policy: ranks, the optimizer and its step, metrics."""
import os
import random
import zlib

import torch

from plumbing.cli import InputError
from plumbing.models import add_lora


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


def deepspeed_engine(policy, args):
    """DeepSpeed around the policy: AdamW, mixed precision, ZeRO. Learning rate and loss scale stay ours."""
    import deepspeed
    if args.offload and not args.zero:
        raise InputError("--offload needs --zero 1, 2 or 3")
    if args.lora_rank:
        add_lora(policy.model, args)
    trained = [p for p in policy.parameters() if p.requires_grad]
    decay, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]    # rest: norms …
    optimizer = torch.optim.AdamW([dict(params=part, weight_decay=rate)
                                   for part, rate in ((decay, args.weight_decay), (rest, 0.0)) if part],
                                  lr=args.lr, betas=(0.9, 0.999), fused=True)
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return deepspeed.initialize(model=policy, optimizer=optimizer, config={
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "gradient_clipping": args.clip_grad, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": args.zero, **(offload if args.offload else {})},
        "zero_force_ds_cpu_optimizer": False,                   # torch's AdamW, which needs nothing compiled
        "bf16": {"enabled": args.dtype == "bf16"}, "wall_clock_breakdown": False,
        "steps_per_print": 1 << 60})[0]


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


def start_wandb(args):
    """-> function that logs a row of metrics to Weights & Biases."""
    import wandb
    same = f"{zlib.crc32(os.path.abspath(args.out).encode()):08x}"      # a resumed run goes on in its curve
    run = wandb.init(project=args.wandb, name=args.out, id=same, resume="allow", config=vars(args))
    return lambda row: run.log(row, step=row["step"])


def permutation(n, seed, epoch, cache={}):
    """A fixed random order of range(n)."""
    if (n, seed, epoch) not in cache:
        cache.clear()
        cache[n, seed, epoch] = random.Random(f"{seed} {epoch}").sample(range(n), n)
    return cache[n, seed, epoch]
