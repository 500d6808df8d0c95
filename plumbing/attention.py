"""Attention over packed rows: many sequences in one row without padding, a shared prefix only once.

A packed row is (1, T): segments one after another. A segment attends causally to itself and, if it has a
parent, to all of the parent (and of the parent's parent …). Trajectories of supervised training are
segments without parents; a group of GRPO is [prefix, r_1 … r_G], the prefix every r's parent.

No T x T square is made. On CUDA in half precision one call of flash-attention does a row (the keys of a
shared prefix are gathered for each child): that of the package flash-attn, or PyTorch's own. Elsewhere SDPA:
one call for all segments with prefixes of one length and similar lengths of their own.
"""
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from plumbing.cli import InputError


class Call(NamedTuple):
    """n segments that one call of SDPA does together, by the indices of their tokens in the row."""
    queries: Tensor           # (n, L)
    keys: Tensor              # (n, P + L): the prefix, then the segment itself
    mask: Tensor | None       # (L, P + L), True where a query sees a key; None: plainly causal


class Segments:
    """What stands where in a packed row, and who sees whom.

    lengths [3, 2, 2], parents [None, 0, 0] -> position_ids [0 1 2 | 3 4 | 3 4] and `before`, the index of the
    token that predicts each token, [-1 0 1 | 2 3 | 2 5], -1 for none. A parent stands before its children.
    """

    def __init__(self, lengths: list[int], parents: list[int | None] | None = None,
                 device: torch.device | str = "cpu") -> None:
        parents = parents or [None] * len(lengths)
        for i, parent in enumerate(parents):
            if parent is not None and not 0 <= parent < i:
                raise ValueError("segments need parents that stand before them")
        if min(lengths, default=0) < 1:
            raise ValueError("segments need at least one token each")
        self.device = device
        self.lengths = lengths
        self.starts = [0, *itertools.accumulate(lengths)]
        self.ancestors: list[list[int]] = []
        self.prefix_lengths: list[int] = []
        positions = []
        before = []
        for i, (length, parent) in enumerate(zip(lengths, parents)):
            start = self.starts[i]
            ancestors = []
            first_sees = -1                                # who predicts the segment's first token
            if parent is not None:
                ancestors = self.ancestors[parent] + [parent]
                first_sees = self.starts[parent + 1] - 1
            prefix_length = sum(lengths[a] for a in ancestors)
            self.ancestors.append(ancestors)
            self.prefix_lengths.append(prefix_length)
            positions.append(torch.arange(prefix_length, prefix_length + length))
            before.append(torch.tensor([first_sees]))
            before.append(torch.arange(start, start + length - 1))
        self.position_ids = torch.cat(positions)[None].to(device)          # (1, T)
        self.before = torch.cat(before).to(device)                         # (T,)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment together with its prefix."""
        return max(map(sum, zip(self.lengths, self.prefix_lengths)))

    def span(self, i: int) -> Tensor:
        """Indices of the tokens of segment i."""
        return torch.arange(self.starts[i], self.starts[i + 1])

    def prefix(self, i: int) -> Tensor:
        """Indices of the tokens of all its ancestors."""
        return torch.cat([torch.arange(0), *map(self.span, self.ancestors[i])])

    @functools.cached_property
    def calls(self) -> tuple[list[Call], Tensor]:
        """For SDPA -> the calls, and for each of the T tokens where it stands among their outputs.

        The n segments of a call are padded to the longest with their own last token: no earlier token sees
        it, and its output is never read, so the copies get no gradient.
        """
        calls = []
        order = torch.empty(self.starts[-1], dtype=torch.long)             # (T,)
        done = 0                                           # outputs of the calls so far
        waiting = sorted(range(len(self.lengths)), key=lambda i: (self.prefix_lengths[i], self.lengths[i]))
        while waiting:
            longest = waiting[-1]
            P = self.prefix_lengths[longest]
            L = self.lengths[longest]
            alike = [i for i in waiting if self.prefix_lengths[i] == P and close(self.lengths[i], L)]
            waiting = waiting[:-len(alike)]
            queries = torch.stack([torch.arange(L).clamp(max=self.lengths[i] - 1) + self.starts[i]
                                   for i in alike])
            keys = torch.cat([torch.stack([self.prefix(i) for i in alike]), queries], 1)
            mask = None
            if P:
                mask = torch.ones(L, P + L, dtype=torch.bool).tril(P).to(self.device)
            for row, i in enumerate(alike):
                order[self.span(i)] = torch.arange(self.lengths[i]) + done + row * L
            calls.append(Call(queries.to(self.device), keys.to(self.device), mask))
            done += queries.numel()
        return calls, order.to(self.device)

    @functools.cached_property
    def cumulative(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """For flash-attention -> indices of the keys (None: the whole row), ends of queries, ends of keys."""
        keys = None
        if any(self.prefix_lengths):
            parts = [torch.cat([self.prefix(i), self.span(i)]) for i in range(len(self.lengths))]
            keys = torch.cat(parts).to(self.device)
        seen = map(sum, zip(self.lengths, self.prefix_lengths))            # keys of each segment
        ends_of_queries = torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32)
        ends_of_keys = torch.tensor([0, *itertools.accumulate(seen)], dtype=torch.int32)
        return keys, ends_of_queries.to(self.device), ends_of_keys.to(self.device)


def close(length: int, longest: int) -> bool:
    """Whether padding a segment to the longest wastes less than another call would."""
    return 4 * length >= 3 * longest or longest - length <= 64


# ---- the attention function that Transformers calls in every layer ----

def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           segments: Segments | None = None, scaling: float | None = None, dropout: float = 0.0,
           sliding_window: int | None = None, varlen: Callable[..., Tensor] | None = None,
           **kwargs: Any) -> tuple[Tensor, None]:
    """Transformers' attention interface: query (B, H, T, D), key and value (B, Hkv, T, D) -> (B, T, H, D).

    varlen: the flash-attention for packed rows on CUDA in half precision; None: SDPA there too.
    """
    if segments is not None:
        if dropout or (sliding_window is not None and segments.longest > sliding_window):
            raise InputError("packed rows know no attention dropout and no sliding window shorter than a "
                             "trajectory; give --no-pack")
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))      # (T, H, D)
        if varlen is not None and query.is_cuda and query.dtype != torch.float32:
            return attend_flash(q, k, v, segments, scaling, varlen)[None], None
        return attend_sdpa(q, k, v, segments, scaling)[None], None
    if query.shape[2] == 1 and query.shape[1] > key.shape[1]:
        return attend_column(query, key, value, attention_mask, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                  dropout=dropout, sliding_window=sliding_window, **kwargs)


def attend_column(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                  scaling: float | None) -> Tensor:
    """Decoding, one query a row: (B, H, 1, D) -> (B, 1, H, D).

    Heads that share their keys become queries of one head, so that no key or value is repeated.
    """
    B, H, _, D = query.shape
    shared = query.reshape(B, key.shape[1], H // key.shape[1], D)
    out = scaled_dot_product_attention(shared, key, value, attention_mask, scale=scaling)
    return out.reshape(B, 1, H, D)


def attend_flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float | None,
                 varlen: Callable[..., Tensor]) -> Tensor:
    """q (T, H, D), k and v (T, Hkv, D) -> (T, H, D), by flash-attention."""
    keys, ends_of_queries, ends_of_keys = segments.cumulative
    if keys is not None:
        k = k[keys]
        v = v[keys]
    return varlen(q, k, v, ends_of_queries, ends_of_keys, max(segments.lengths), segments.longest, scaling)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """q (T, H, D), k and v (T, Hkv, D) -> (T, H, D), by PyTorch's scaled dot-product attention."""
    if q.is_cuda and q.shape[1] != k.shape[1]:             # under a mask, CUDA's SDPA wants equal heads
        shared = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(shared, 1)
        v = v.repeat_interleave(shared, 1)
    calls, order = segments.calls
    outs = []
    for queries, keys, mask in calls:
        out = scaled_dot_product_attention(take(q, queries), take(k, keys), take(v, keys), mask,
                                           is_causal=mask is None, scale=scaling,
                                           enable_gqa=k.shape[1] != q.shape[1])
        outs.append(out.transpose(1, 2).flatten(0, 1))                     # (n L, H, D)
    return torch.cat(outs).index_select(0, order)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (T, H, D), index (n, L) -> (n, H, L, D)"""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


# ---- flash-attention: the package, or PyTorch's own ----

# Both take q (T, H, D), k and v (S, Hkv, D), where the segments end in q and in k, and the longest of each.
# Both are causal, aligned to the last key, and let heads share keys.

def package_varlen(q: Tensor, k: Tensor, v: Tensor, ends_of_queries: Tensor, ends_of_keys: Tensor,
                   longest_query: int, longest_key: int, scaling: float | None) -> Tensor:
    """The flash-attention of the package flash-attn."""
    from flash_attn import flash_attn_varlen_func
    return flash_attn_varlen_func(q, k, v, ends_of_queries, ends_of_keys, longest_query, longest_key,
                                  softmax_scale=scaling, causal=True)


def torch_varlen(q: Tensor, k: Tensor, v: Tensor, ends_of_queries: Tensor, ends_of_keys: Tensor,
                 longest_query: int, longest_key: int, scaling: float | None) -> Tensor:
    """The flash-attention that comes with PyTorch."""
    from torch.nn.attention.varlen import varlen_attn
    shares = {}
    if asks_for_shared_heads(varlen_attn):
        shares["enable_gqa"] = q.shape[1] != k.shape[1]
    return varlen_attn(q, k, v, ends_of_queries, ends_of_keys, longest_query, longest_key, scale=scaling,
                       window_size=(-1, 0), **shares)


@functools.cache
def asks_for_shared_heads(varlen_attn: Callable) -> bool:
    """Whether this PyTorch wants to be told that heads share keys: 2.12 does, 2.11 shares them unasked."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def find_varlen(attention: str) -> Callable[..., Tensor] | None:
    """What --attention names; None is SDPA. Raises InputError for a package that is not there."""
    if attention == "sdpa":
        return None
    if attention in ("auto", "flash-attn"):
        try:
            import flash_attn  # noqa: F401
            return package_varlen
        except ImportError as error:
            if attention == "flash-attn":
                raise InputError(f"--attention flash-attn: the package cannot be imported ({error}); "
                                 "--attention torch needs no package") from None
    return torch_varlen


# ---- how a model gets it ----

def use_segments(model: torch.nn.Module, attention: str = "auto") -> None:
    """Let the model take packed rows (`segments=` and its position_ids); without them it works as before.

    attention: auto | flash-attn | torch | sdpa, as --attention. A name without a mask function would get no
    padding mask at all, hence SDPA's is registered with it.
    """
    from transformers import AttentionInterface  # takes seconds: not for --help or a wrong path
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    name = "segments_" + attention.replace("-", "_")
    AttentionInterface.register(name, functools.partial(attend, varlen=find_varlen(attention)))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)


def packed_inputs(input_ids: Tensor, segments: Segments) -> dict[str, Any]:
    """Tokens (T,) of a packed row -> the model's inputs.

    The 4-D mask is a dummy: given one, Transformers builds none of its own, which would be T x T where
    positions restart (it takes them for packed documents).
    """
    return {"input_ids": input_ids[None], "position_ids": segments.position_ids, "segments": segments,
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)}
