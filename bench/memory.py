"""What the stages need: memory of a GPU and of the host, disk, computed; --measure checks the arithmetic.

  python bench/memory.py --model 7B --gpus 8 --zero 3 --checkpointing
  torchrun --nproc_per_node 2 bench/memory.py --measure          # a small model takes two real steps on CPUs

In bf16, for P trained parameters on W ranks, the largest of them M, B in a bucket of DeepSpeed's, bytes:

  --zero    held between two steps    more at the peak of a step
  0, 2      2 P + 12 P / W            4 P / W + 4 B + 4 M
  1         6 P + 12 P / W            8 P
  3         18 P / W + 2 B            the larger of 4 P / W and 2 L, + 2 B + 2 M

(2: weights; 12: fp32 weights and AdamW's two moments; 4: sums of gradients; L: parameters that DeepSpeed's
stage 3 leaves gathered at once, all of them up to a billion.) With --offload the 12 P / W and 4 P / W are in
host memory. While it starts a rank holds all weights in bf16. Frozen weights, as under --lora-rank, take 2 bytes each, under ZeRO-3 2 / W. On
top come activations, 23 h + 8 I bytes a token and layer (hidden size h, MLP I, as measured; with
--checkpointing that of one layer, and 2 h of the others), and 4 bytes a logit of a chunk.
"""
import argparse
import gc
import os
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from plumbing.values import whole

GIB = 2 ** 30
LOGITS = 4 * (1 << 27)                                     # bytes of a chunk of TokenLogProbs
PERSISTENT = 100_000                                       # ZeRO-3 leaves smaller parameters whole
GATHERED = 1_000_000_000                                   # and that many that it will soon use again
# layers, hidden size, MLP, heads, key–value heads, head size, vocabulary, tied embeddings
QWEN25 = {"0.5B": (24, 896, 4864, 14, 2, 64, 151936, True), "1.5B": (28, 1536, 8960, 12, 2, 128, 151936, True),
          "3B": (36, 2048, 11008, 16, 2, 128, 151936, True), "7B": (28, 3584, 18944, 28, 4, 128, 152064, False),
          "14B": (48, 5120, 13824, 40, 8, 128, 152064, False), "32B": (64, 5120, 27648, 40, 8, 128, 152064, False)}


class Sizes(NamedTuple):
    """What memory depends on, in elements."""
    all: int                  # parameters
    trained: int
    largest: int              # trained parameter
    small: int                # trained parameters that ZeRO-3 leaves whole
    layers: int
    hidden: int
    mlp: int


def sizes_of(model: str, lora_rank: int = 0) -> Sizes:
    """The sizes of one of QWEN25, or of a Hugging Face folder."""
    import torch
    import transformers
    if model in QWEN25:
        layers, hidden, mlp, heads, kv_heads, head, vocabulary, tied = QWEN25[model]
        config = transformers.Qwen2Config(
            num_hidden_layers=layers, hidden_size=hidden, intermediate_size=mlp, num_attention_heads=heads,
            num_key_value_heads=kv_heads, head_dim=head, vocab_size=vocabulary, tie_word_embeddings=tied)
    else:
        config = transformers.AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config)
    if lora_rank:
        from plumbing.models import add_lora
        add_lora(made, lora_rank, 0)
    every = sum(p.numel() for p in made.parameters())
    return sizes(made, every if not lora_rank else every - lora_parameters(made))


def lora_parameters(model):
    return sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)


def sizes(model, every: int) -> Sizes:
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    config = model.config
    return Sizes(every, sum(trained), max(trained), sum(n for n in trained if n < PERSISTENT),
                 config.num_hidden_layers, config.hidden_size, config.intermediate_size)


class Bytes(NamedTuple):
    """Of one rank."""
    held: float               # on the GPU between two steps
    peak: float               # there during a step, without activations
    loading: float            # there while the trainer is made
    host: float


def states(s: Sizes, world: int, zero: int, offload: bool = False) -> Bytes:
    """Weights, gradients and optimizer of a training rank in bf16."""
    from plumbing.trainer import BUCKET
    zero = zero or 2                                       # as `zero_stage` has it
    P, W, B, M = s.trained, world, min(BUCKET, s.trained), s.largest
    frozen = 2 * (s.all - P) if s.trained < s.all else 0
    gathered = 0
    if zero == 3:
        frozen /= W
        weights, optimizer, more = 2 * P / W, 12 * P / W, 2 * B + 2 * M
        fixed = 2 * B + 2 * s.small * (1 - 1 / W)
        gradients, sums = 4 * P / W, 4 * P / W
        gathered = 2 * min(s.all, GATHERED)                # in the backward pass; the sums are made after it
    elif zero == 2:
        weights, optimizer, fixed, more = 2 * P, 12 * P / W, 0, 4 * B + 4 * M
        gradients, sums = 0, 4 * P / W
    else:
        weights, optimizer, fixed, more = 2 * P, 12 * P / W, 0, 8 * P
        gradients, sums = 4 * P, 0
    held = weights + fixed + frozen
    host = 0
    if offload:
        host = optimizer + gradients + sums
        sums = 0
    else:
        held += optimizer + gradients
    more += max(sums, gathered)
    loading = 2 * s.all + (2 * B if zero == 3 else 0)
    return Bytes(held, held + more, max(loading, held), host)


def activations(s: Sizes, tokens: int, checkpointing: bool) -> float:
    """Bytes that a forward pass of so many tokens keeps, with the logits of a chunk."""
    inside = (23 * s.hidden + 8 * s.mlp) * tokens
    if checkpointing:
        return inside + 2 * s.hidden * s.layers * tokens + LOGITS
    return inside * s.layers + LOGITS


def report(args: argparse.Namespace) -> None:
    """Print a table of the stages."""
    s = sizes_of(args.model, args.lora_rank)
    of_rank = states(s, args.gpus, args.zero, args.offload)
    print(f"{args.model}: {s.all / 1e9:.2f}B parameters, {s.trained / 1e9:.3f}B trained, {args.gpus} GPUs, --zero "
          f"{args.zero}, bf16. Computed, not measured; GiB.\n\n"
          "| | of each GPU | |\n|---|---:|---|")
    for stage, tokens in ("sft.py", 4096), ("grpo_short.py", 16384):
        tokens = args.row_tokens or tokens
        step = of_rank.peak + activations(s, tokens, args.checkpointing)
        print(f"| `{stage}`, rows of {tokens} tokens | {step / GIB:.1f} | {of_rank.held / GIB:.1f} held between steps |")
    print(f"| the same while it starts | {of_rank.loading / GIB:.1f} | every rank loads the whole model first |\n"
          f"| left to vLLM in `grpo_short.py` | {args.memory - of_rank.held / GIB:.1f} | "
          f"of {args.memory} GiB; --vllm-memory {(args.memory - of_rank.held / GIB) / args.memory:.2f} at most |\n"
          f"| weights in `mps.py`, `eval.py` | {2 * s.all / GIB:.1f} | the rest is for keys and values |\n\n"
          "| | in all | |\n|---|---:|---|\n"
          f"| host memory | {of_rank.host * args.gpus / GIB:.0f} | of --offload |\n"
          f"| disk, a state to resume from | {(2 * s.all + 12 * s.trained) / GIB:.0f} | two while one is written |\n"
          f"| disk, a trained model | {(4 if args.lora_rank else 2) * s.all / GIB:.0f} | |")


COLUMNS = {"--zero 0": {"zero": 0}, "--zero 1": {"zero": 1}, "--zero 3": {"zero": 3},
           "--zero 3 --offload": {"zero": 3, "offload": True}, "--zero 0 --lora-rank 16": {"zero": 0}}


def table() -> None:
    """Print weights, gradients and optimizer of one GPU of eight, held and at the peak of a step."""
    print("| Qwen2.5 | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for model in QWEN25:
        cells = []
        for name, how in COLUMNS.items():
            of_rank = states(sizes_of(model, 16 if "lora" in name else 0), 8, **how)
            cells.append(f"{of_rank.held / GIB:.1f} / {max(of_rank.peak, of_rank.loading) / GIB:.1f}")
        print(f"| {model} | " + " | ".join(cells) + " |")


# ---- what one process really takes ----

def measure(zero: int) -> None:
    """Two steps of a small model on this rank, and what was computed for them."""
    import torch
    import transformers
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    import sft
    from plumbing import trainer as making
    from plumbing.models import LogProbs
    from plumbing.packing import pack_examples
    from plumbing.ranks import start_distributed
    from plumbing.trainer import make_trainer, optimizer_step

    class Storages(TorchDispatchMode):
        """Keeps count of the bytes of all tensors that operations made and that are still there."""

        def __init__(self):
            super().__init__()
            self.live = {}
            self.peak = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            for x in tree_leaves(made):
                if isinstance(x, torch.Tensor) and x.device.type != "meta":
                    storage = x.untyped_storage()
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.peak = max(self.peak, self.now())
            return made

        def now(self):
            self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
            return sum(n for _, n in self.live.values())

    making.BUCKET = 300_000                                # small beside the model, as it is in a real run
    rank, world, device = start_distributed()
    flags = ["--model", "m", "--data", "d", "--out", "o", "--dtype", "bf16", "--zero", str(zero)]
    batch = pack_examples([(list(range(3, 11)), [1] * 8)], device)
    with Storages() as storages:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
            vocab_size=4096, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=4, tie_word_embeddings=True)).bfloat16()
        s = sizes(model, sum(p.numel() for p in model.parameters()))
        policy = LogProbs(model)
        gc.collect()
        trainer = make_trainer(policy, sft.parse_args(flags))
        optimizer_step(trainer, [batch, batch], lambda *b: -trainer(*b).mean(), 1e-3)
        gc.collect()
        held = storages.now()
        storages.peak = 0
        optimizer_step(trainer, [batch, batch], lambda *b: -trainer(*b).mean(), 1e-3)
    computed = states(s, world, zero)
    if rank == 0:
        print(f"zero {zero} ranks {world} parameters {s.all / 1e6:.1f}M; bytes a parameter, computed and measured: "
              f"held {computed.held / s.all:.2f} {held / s.all:.2f} peak {computed.peak / s.all:.2f} "
              f"{storages.peak / s.all:.2f}", flush=True)


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="7B", help=f"{', '.join(QWEN25)} (Qwen2.5), or a folder (default 7B)")
    p.add_argument("--gpus", type=whole(1), default=8, help="ranks (default 8)")
    p.add_argument("--memory", type=float, default=80, help="GiB of a GPU (default 80)")
    p.add_argument("--zero", type=int, choices=[0, 1, 2, 3], default=3, help="as in sft.py (default 3)")
    p.add_argument("--offload", action="store_true", help="as in sft.py")
    p.add_argument("--lora-rank", type=whole(0), default=0, help="as in sft.py (default 0)")
    p.add_argument("--checkpointing", action="store_true", help="as in sft.py")
    p.add_argument("--row-tokens", type=whole(1), help="as in sft.py (default: that of each script)")
    p.add_argument("--table", action="store_true", help="print the table of bench/README.md")
    p.add_argument("--measure", action="store_true", help="compare with a small model, in all ZeRO stages")
    return p.parse_args(argv)


if __name__ == "__main__":
    given = parse_args()
    if given.measure:
        for stage in range(4):
            measure(stage)
    elif given.table:
        table()
    else:
        report(given)
