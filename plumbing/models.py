"""Loading a model, and the model as this project uses it: tokens in, log-probs of the marked tokens out."""
import argparse
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from plumbing.attention import use_segments
from plumbing.cli import InputError
from plumbing.packing import Example, pack_examples, pad_examples
from plumbing.ranks import say_once


def fault_of_folder(path: str) -> str | None:
    """What is wrong with a path that should be a checkpoint; None for the folder of one and for hub names."""
    if os.path.isfile(path):
        return "it is a file, not the folder of a checkpoint"
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "config.json")):
            return "it is a folder without config.json, so it holds no checkpoint"
    elif path.count("/") > 1 or path[0] in "./~":
        return "there is no such folder"
    return None


@contextlib.contextmanager
def named_on_error(path: str) -> Iterator[None]:
    """Turn what Transformers says of a folder that holds no chat model into one line that names it."""
    fault = fault_of_folder(path)
    if fault:
        raise InputError(f"cannot use the model {path!r}: {fault}")
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    # whatever is raised of a torn file, or of one of another kind
    foreign = (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError,
               ImportError, SafetensorError, StrictDataclassError)
    try:
        yield
    except foreign as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, SafetensorError):
            said = f"its weights cannot be read ({said}): are they torn, or a pointer of Git LFS?"
        if not os.path.isdir(path):
            said = f"there is no such folder, and as a name on the hub: {said}"
        raise InputError(f"cannot use the model {path!r}: {said}") from None


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub name. Raises InputError."""
    import transformers
    with named_on_error(path):
        names = os.listdir(path) if os.path.isdir(path) else ["tokenizer.json"]
        if not any("token" in name or name.startswith(("vocab", "spiece")) for name in names):
            raise ValueError("it is a folder without a tokenizer (tokenizer.json, tokenizer_config.json)")
        return transformers.AutoTokenizer.from_pretrained(path)


def load_config(path: str) -> Any:
    """The config.json of a folder or hub name. Raises InputError."""
    import transformers
    with named_on_error(path):
        return transformers.AutoConfig.from_pretrained(path)


def load_model(path: str, dtype: torch.dtype | str, training: bool = False) -> torch.nn.Module:
    """The causal language model of a folder or hub name, on this rank's device. Raises InputError.

    dtype: "auto" is that of its weights, or fp32 on a processor that is slow in it. training: no dropout.
    """
    import transformers
    transformers.utils.logging.disable_progress_bar()
    config = load_config(path)
    quantised = getattr(config.get_text_config(), "quantization_config", None)
    quantised = getattr(config, "quantization_config", quantised)
    if quantised:
        method = dict(quantised).get("quant_method", "unknown method")
        raise InputError(f"cannot use the model {path!r}: its weights are quantised ({method}, says its "
                         "config.json); take the unquantised model that it was made from")
    if training:
        without_dropout(config, path)
    where = {}
    if torch.cuda.is_available():                          # straight to its GPU, not by way of host memory
        where["device_map"] = {"": f"cuda:{os.environ.get('LOCAL_RANK', 0)}"}
    with named_on_error(path):
        model, told = transformers.AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype,
                                                                        output_loading_info=True, **where)
    if told["missing_keys"]:                               # Transformers has put random numbers there
        raise InputError(f"cannot use the model {path!r}: its files have no weights for "
                         f"{len(told['missing_keys'])} parameters, as {min(told['missing_keys'])}")
    if dtype == "auto" and usable_dtype(path, model.dtype) != model.dtype:
        return model.float()
    return model


def without_dropout(config: Any, path: str) -> None:
    """Set every dropout of a model's config to 0: rollouts and updates have to give the same log-probs."""
    found = []
    for part in config, config.get_text_config():
        for name, value in vars(part).items():
            drops = "drop" in name or "jitter" in name
            of_another_head = name.startswith(("classifier_", "summary_"))
            if drops and not of_another_head and isinstance(value, float) and value > 0:
                setattr(part, name, 0.0)
                found.append(f"{name} {value}")
    if found:
        say_once(f"{path}: without the dropout of its config.json ({', '.join(found)})")


def usable_dtype(path: str, dtype: torch.dtype) -> torch.dtype:
    """fp32 in place of half precision on a processor that multiplies it slowly, or else this dtype."""
    device = torch.device("cpu")
    if torch.cuda.is_available() or dtype == torch.float32:
        return dtype
    slowness = matmul_rate(device, torch.float32, 256) / matmul_rate(device, dtype, 256)
    if slowness < 3:
        return dtype
    say_once(f"{path}: this processor multiplies {dtype} {slowness:.0f} times slower than fp32: fp32 is used")
    return torch.float32


def load_policy(path: str, args: argparse.Namespace) -> "LogProbs":
    """The checkpoint in --dtype as a policy in train mode. Raises InputError with what is wrong.

    Any architecture works whose log-probs of a few packed tokens equal the plain model's. From bf16 weights
    DeepSpeed makes its own fp32 ones.
    """
    from plumbing.kv_cache import shortest_window
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = load_model(path, dtype, training=True)
    window = shortest_window(model.config)
    if args.pack and window is not None and window < args.max_tokens:
        raise InputError(f"cannot train {path!r} in packed rows: its layers see {window} tokens back, fewer "
                         f"than --max-tokens {args.max_tokens}; give --no-pack")
    mend_generation_config(model, path)
    experts = "num_experts", "num_local_experts", "n_routed_experts"
    if any(getattr(model.config.get_text_config(), name, None) for name in experts):
        say_once(f"{path}: a mixture of experts; no auxiliary loss that balances them is added")
    ids = torch.arange(3, 11, device=model.device)                         # (8,)
    try:
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1].float()
            plain = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
        policy = LogProbs(model, args.attention).train()   # in eval mode nothing would be recomputed
        if args.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if args.pack:
            batch = pack_examples([(ids.tolist(), [1] * 8)] * 2, model.device)
        else:
            batch = pad_examples([(ids.tolist(), [1] * 8)], model.device)
        with torch.no_grad():
            gap = (policy(*batch)[-7:] - plain).abs().mean()
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(f"cannot train {path!r}: {error}") from error
    largest = 0.01 if dtype == torch.float32 else 0.3                      # nats; bf16 rounds
    if not gap <= largest:
        why = "its log-probs are not the plain model's: its logits are not output matrix times hidden states"
        if args.pack:
            why += ", or its attention takes no packed rows (give --no-pack)"
        raise InputError(f"cannot train {path!r}: {why}")
    return policy


def mend_generation_config(model: torch.nn.Module, path: str) -> None:
    """Leave out of generation_config.json what Transformers would refuse to save at the end of training."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        named = ", ".join(re.findall(r"- `(\w+)`:", str(error))) or error
        say_once(f"{path}: its generation_config.json contradicts itself ({named}); only the tokens that "
                 "begin and end a text are kept of it")
        model.generation_config = type(config)(bos_token_id=config.bos_token_id,
                                               eos_token_id=config.eos_token_id)


def add_lora(model: torch.nn.Module, rank: int, seed: int) -> None:
    """Freeze the model; put trainable low-rank matrices beside its linear layers, all but the output head."""
    import peft
    torch.manual_seed(seed)                                                # the same start on all ranks
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    peft.inject_adapter_in_model(config, model)


# ---- log-probs, nowhere T x V logits ----

class LogProbs(torch.nn.Module):
    """A Transformers causal language model around which sft.py and grpo_short.py put their losses."""

    def __init__(self, model: torch.nn.Module, attention: str = "auto") -> None:
        """attention: auto | flash-attn | torch | sdpa, as --attention."""
        super().__init__()
        self.model = model
        use_segments(model, attention)
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise ValueError(f"{type(model).__name__}: the output head is not a plain matrix")
        model.set_output_embeddings(Head(head.weight))

    def forward(self, inputs: dict[str, Any], predict: Tensor, target: Tensor | None,
                temperature: float = 1.0) -> Tensor:
        """-> logps (N,) of tokens `target` (N,), each predicted at a flat index `predict` (N,) into B * T.

        inputs of the base model: padded (input_ids, attention_mask (B, T)) or packed (`packed_inputs`).
        Without a target: the entropies (N,) of what is predicted there.
        """
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state        # (B, T, D)
        predicting = hidden.flatten(0, 1)[predict]                                         # (N, D)
        return self.model.get_output_embeddings()(predicting, target, temperature, entropy=target is None)


class Head(torch.nn.Linear):
    """The output matrix, a module so that ZeRO-3 gathers it: hidden -> logits, or with target -> logps.

    It shares the weight (V, D) of the head that it replaces, which may be tied to the embeddings.
    """

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, hidden: Tensor, target: Tensor | None = None, temperature: float = 1.0,
                entropy: bool = False) -> Tensor:
        if entropy:
            return entropies(hidden, self.weight, temperature)
        if target is None:
            return super().forward(hidden)
        return TokenLogProbs.apply(hidden, self.weight, target, temperature)


def entropies(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """hidden (N, D), weight (V, D) -> entropies (N,) of the next token, in nats; logits chunk by chunk."""
    found = []
    for part in hidden.split(max(1, TokenLogProbs.LOGITS // len(weight))):
        logps = torch.log_softmax((part @ weight.T).float() / temperature, -1)             # (n, V)
        found.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(found)


class TokenLogProbs(torch.autograd.Function):
    """hidden (N, D), weight (V, D), target (N,) -> fp32 log-probs (N,) of the targets; logits chunk by chunk.

    The backward pass recomputes the probabilities of every chunk but the last. Those are kept: it starts with
    them, so the peak is the same, and where all tokens fit into one chunk nothing is computed twice.
    """
    LOGITS = 1 << 27                                                       # in a chunk: 512 MiB of fp32

    @staticmethod
    def chunk(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """-> logps (n,), probs (n, V), computed in one buffer."""
        logits = (hidden @ weight.T).float()                               # (n, V)
        if temperature != 1:
            logits /= temperature
        logits -= logits.amax(-1, keepdim=True)
        chosen = logits.gather(1, target[:, None])[:, 0]
        total = logits.exp_().sum(-1)
        return chosen - total.log(), logits.div_(total[:, None])

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(hidden, weight, target)
        size = max(1, TokenLogProbs.LOGITS // len(weight))                 # tokens in a chunk
        ctx.temperature = temperature
        ctx.chunks = [slice(max(0, end - size), end) for end in range(len(hidden), 0, -size)] or [slice(0)]
        logps = []
        for at in reversed(ctx.chunks):                                    # the first one is the short one
            ctx.probs = None                                               # before the next chunk is made
            chosen, ctx.probs = TokenLogProbs.chunk(hidden[at], weight, target[at], temperature)
            logps.append(chosen)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, target = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = None
        for at in ctx.chunks:
            probs = ctx.probs
            ctx.probs = None
            if probs is None:
                _, probs = TokenLogProbs.chunk(hidden[at], weight, target[at], ctx.temperature)
            g = grad[at, None].float() / ctx.temperature       # d logp / d logits = one-hot - probs
            to_logits = probs.mul_(-g).scatter_add_(1, target[at, None], g).to(weight.dtype)
            del probs
            torch.mm(to_logits, weight, out=to_hidden[at])
            if ctx.needs_input_grad[1]:
                if to_weight is None:
                    to_weight = to_logits.T @ hidden[at]
                else:
                    to_weight.addmm_(to_logits.T, hidden[at])
        return to_hidden, to_weight, None, None


# ---- how much arithmetic training takes, and how fast this machine does it at best ----

def model_flops(model: torch.nn.Module, lora: bool) -> Callable[[list[Example]], int]:
    """-> function of examples: floating-point operations of training on them, recomputation not counted.

    A weight and token: 2 forward, 4 backward (LoRA: 2); the head only where there is loss; causal attention.
    To be asked before ZeRO-3 shards the weights.
    """
    config = model.config
    passes = 4 if lora else 6
    head = model.get_output_embeddings().weight.numel()
    matrices = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2)
    body = matrices - model.get_input_embeddings().weight.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head_dim      # by tokens squared

    def flops(examples: list[Example]) -> int:
        total = 0
        for ids, mask in examples:
            total += passes * (body * len(ids) + head * sum(mask[1:])) + attention * len(ids) ** 2
        return total
    return flops


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """Measured floating-point operations a second of a product of n x n matrices, by default large ones: what
    utilisation is a share of."""
    if n is None:
        n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * n ** 3 / min(seconds)
