"""Loading a model, and the model as this project uses it: tokens in, log-probs of the marked tokens out."""
import contextlib
import os
import time

import torch

from plumbing.attention import use_segments
from plumbing.cli import InputError
from plumbing.packing import pack_examples


@contextlib.contextmanager
def named_on_error(path):
    """What Transformers says of a folder that holds no chat model, in one line that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use the model {path!r}: {' '.join(str(error).split())[:300]}") from None


def load_model(path, dtype):
    """-> model on this rank's device, tokenizer. Raises InputError for anything that is no chat model."""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    with named_on_error(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    cuda = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return model.to(cuda if torch.cuda.is_available() else "cpu"), tokenizer


def load_policy(path, args):
    """-> LogProbs around the checkpoint (fp32 weights), tokenizer. Raises InputError with what is wrong."""
    model, tokenizer = load_model(path, torch.float32)
    packed = args.pack
    ids = torch.arange(3, 11, device=model.device)               # any architecture that passes this will do
    try:
        policy = LogProbs(model)
        inputs, predict, target = pack_examples([(ids.tolist(), [0] + [1] * 7)] * 2, model.device)
        if not packed:
            inputs, predict, target = dict(input_ids=ids[None]), predict[:7], target[:7]
        with torch.no_grad():
            plain = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
            torch.testing.assert_close(policy(inputs, predict, target)[-7:], plain, atol=1e-2, rtol=0)
    except AssertionError:
        raise InputError(f"cannot train {path!r}: its logits are not output matrix times hidden states"
                         + ", or its attention takes no packed rows (give --no-pack)" * packed) from None
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot train {path!r}: {error}") from None
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy, tokenizer


def add_lora(model, args):
    """Freeze the model; put trainable low-rank matrices beside its linear layers, all but the output head."""
    import peft
    torch.manual_seed(args.seed)                                            # the same start on all ranks
    peft.inject_adapter_in_model(peft.LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank,
                                                 target_modules="all-linear"), model)


#
# ---- log-probs, nowhere T x V logits ----


class LogProbs(torch.nn.Module):
    """A Transformers causal language model around which sft.py and grpo_short.py put their losses."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        use_segments(model)
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise ValueError(f"{type(model).__name__}: the output head is not a plain matrix")
        head.__class__ = Head

    def forward(self, inputs, predict, target, temperature=1.0):
        """-> logps (N,) of tokens `target` (N,), each predicted at a flat index `predict` (N,) into B * T.

        inputs of the base model: padded (input_ids, attention_mask (B, T)) or packed (`packed_inputs`).
        """
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state        # (B, T, D)
        return self.model.get_output_embeddings()(hidden.flatten(0, 1)[predict], target, temperature)


class Head(torch.nn.Linear):
    """The output matrix, a module so that ZeRO-3 gathers it: hidden -> logits, or with target -> logps."""

    def forward(self, hidden, target=None, temperature=1.0):
        if target is None:
            return super().forward(hidden)
        return TokenLogProbs.apply(hidden, self.weight, target, temperature)


class TokenLogProbs(torch.autograd.Function):
    """hidden (N, D), weight (V, D), target (N,) -> fp32 log-probs (N,) of the targets; logits chunk by chunk.

    The backward pass recomputes the probabilities of every chunk but the last. Those are kept: it starts with
    them, so the peak is the same, and where all tokens fit into one chunk nothing is computed twice.
    """
    LOGITS = 1 << 27                                                       # in a chunk: 512 MiB of fp32

    @staticmethod
    def chunk(hidden, weight, target, temperature):
        """-> logps (n,), probs (n, V), in one buffer."""
        logits = (hidden @ weight.T).float()
        if temperature != 1:
            logits /= temperature
        logits -= logits.amax(-1, keepdim=True)
        chosen = logits.gather(1, target[:, None])[:, 0]
        total = logits.exp_().sum(-1)
        return chosen - total.log(), logits.div_(total[:, None])

    @staticmethod
    def forward(ctx, hidden, weight, target, temperature):
        ctx.save_for_backward(hidden, weight, target)
        n, size = len(hidden), max(1, TokenLogProbs.LOGITS // len(weight))
        ctx.temperature, ctx.probs, logps = temperature, None, []
        ctx.chunks = [slice(max(0, end - size), end) for end in range(n, 0, -size)] or [slice(0)]
        for at in reversed(ctx.chunks):                                    # the first one is the short one
            ctx.probs = None                                               # before the next chunk is made
            chosen, ctx.probs = TokenLogProbs.chunk(hidden[at], weight, target[at], temperature)
            logps.append(chosen)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, target = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), None
        for at in ctx.chunks:
            probs, ctx.probs = ctx.probs, None
            if probs is None:
                probs = TokenLogProbs.chunk(hidden[at], weight, target[at], ctx.temperature)[1]
            g = grad[at, None].float() / ctx.temperature           # d logp / d logits = onehot - probs
            to_logits = probs.mul_(-g).scatter_add_(1, target[at, None], g).to(weight.dtype)
            del probs
            torch.mm(to_logits, weight, out=to_hidden[at])
            if ctx.needs_input_grad[1]:
                to_weight = (to_logits.T @ hidden[at] if to_weight is None
                             else to_weight.addmm_(to_logits.T, hidden[at]))
        return to_hidden, to_weight, None, None


#
# ---- how much arithmetic training takes, and how fast this machine does it at best ----


def model_flops(model, lora):
    """-> function of examples: floating-point operations of training on them, recomputation not counted.

    A weight and token: 2 forward, 4 backward (LoRA: 2); the head where there is loss; causal attention. To be
    asked before ZeRO-3 shards the weights.
    """
    c, passes = model.config, 4 if lora else 6
    head = model.get_output_embeddings().weight.numel()
    body = (sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2)
            - model.get_input_embeddings().weight.numel())
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    return lambda examples: sum(passes * (body * len(e[0]) + head * sum(e[1][1:]))
                                + 6 * c.num_hidden_layers * width * len(e[0]) ** 2 for e in examples)


def matmul_rate(device, dtype):
    """Measured floating-point operations a second of a large product: what utilisation is a share of."""
    n = 8192 if device.type == "cuda" else 1024
    a, seconds = torch.ones(n, n, device=device, dtype=dtype), []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * n ** 3 / min(seconds)
