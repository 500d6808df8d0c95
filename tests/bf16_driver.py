"""Under torchrun: sft.py and grpo_short.py in bf16 in every ZeRO stage, one process start for all of them.

  torchrun --nproc_per_node 2 tests/bf16_driver.py MODEL TRAJECTORIES RECORDS OUT TEACHER_URL
"""
import os
import sys

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

import grpo_short  # noqa: E402
import sft  # noqa: E402
import sharding  # noqa: E402, F401
from plumbing.packing import pack_examples  # noqa: E402
from plumbing.trainer import make_trainer, optimizer_step  # noqa: E402

MODEL, TRAJECTORIES, RECORDS, OUT, TEACHER_URL = sys.argv[1:]
MANY = 300                                     # micro-batches: in bf16 a sum of equal parts stands still at 256


def gradient_of_many(zero: int) -> tuple[float, float]:
    """Norms of the gradient of one micro-batch, and of MANY equal ones of a MANYth of its loss."""
    args = sft.parse_args(["--model", MODEL, "--data", TRAJECTORIES, "--out", OUT, "--dtype", "bf16",
                           "--zero", str(zero), "--clip-grad", "1e9"])
    trainer = make_trainer(sft.load_policy(MODEL, args), args)
    batch = pack_examples([(list(range(3, 15)), [1] * 12)], torch.device("cpu"))
    norms = []
    for n in (1, MANY):
        norms.append(optimizer_step(trainer, [batch] * n, lambda *b: -trainer(*b).mean() / n, lr=0.0))
    return norms[0], norms[1]


for zero in range(4):
    out = f"{OUT}/{zero}"
    stage = ["--dtype", "bf16", "--zero", str(zero)]
    sft.main(sft.parse_args(["--model", MODEL, "--data", TRAJECTORIES, "--out", out + "/sft", *stage,
                             "--batch", "4", "--steps", "3", "--lr", "1e-3", "--checkpointing"]))
    grpo_short.main(grpo_short.parse_args([
        "--model", MODEL, "--data", RECORDS, "--out", out + "/rl", "--teacher-url", TEACHER_URL, *stage,
        "--prompts", "4", "--mini-batch", "2", "--group", "4", "--steps", "2", "--lr", "1e-3",
        "--max-tokens", "60", "--kl", "0.01"]))
    if zero > 0 and torch.distributed.get_world_size() == 1:                # 0 is run as 2
        print("gradient", zero, *gradient_of_many(zero), flush=True)
