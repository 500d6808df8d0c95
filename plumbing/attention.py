"""Attention over packed rows: many sequences in one row without padding, a shared prefix only once.

A packed row is (1, T): segments one after another. A segment attends causally to itself and, if it has a
parent, to all of the parent (and of the parent's parent …). Trajectories of supervised training are
segments without parents; a group of GRPO is [prefix, r_1 … r_G], the prefix every r's parent.

No T x T square is made. On CUDA in half precision one call of flash-attention does a row (the keys of a
shared prefix are gathered for each child).
Elsewhere SDPA, one call for all segments with prefixes of one length and similar lengths of their own.
"""
import functools
import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention


class Segments:
    """What stands where in a packed row, and who sees whom.

    lengths [3, 2, 2], parents [None, 0, 0] -> position_ids [0 1 2 | 3 4 | 3 4] and `before`, the index of the
    token that predicts each token, [-1 0 1 | 2 3 | 2 5], -1 for none. A parent stands before its children.
    """

    def __init__(self, lengths, parents=None, device="cpu", backend=None):
        parents = parents or [None] * len(lengths)
        ordered = all(p is None or 0 <= p < i for i, p in enumerate(parents))
        if not ordered or min(lengths, default=0) < 1:
            raise ValueError("segments need at least one token each, and parents that stand before them")
        self.device, self.backend = device, backend
        self.starts = [0, *itertools.accumulate(lengths)]
        self.above, positions, before = [], [], []                   # above: the indices of all ancestors
        for i, (n, parent) in enumerate(zip(lengths, parents)):
            start = self.starts[i]
            self.above.append([] if parent is None else self.above[parent] + [parent])
            prefix = sum(lengths[a] for a in self.above[i])
            positions.append(torch.arange(prefix, prefix + n))
            before.append(torch.arange(start - 1, start + n - 1))
            before[-1][0] = -1 if parent is None else self.starts[parent + 1] - 1
        self.lengths, self.prefixes = lengths, [int(p[0]) for p in positions]
        self.position_ids = torch.cat(positions)[None].to(device)          # (1, T)
        self.before = torch.cat(before).to(device)                         # (T,)

    def span(self, i):
        return torch.arange(self.starts[i], self.starts[i + 1])

    def prefix(self, i):
        return torch.cat([self.span(a) for a in self.above[i]] or [torch.arange(0)])

    @functools.cached_property
    def calls(self):
        """For SDPA -> [(queries (n, L), keys (n, P + L), mask or None for causal)], order (T,).

        The n segments of a call are padded to the longest with their own last token: no earlier token sees
        it, and `order` finds each token's output among those of all calls, so the copies get no gradient.
        """
        calls, order, done = [], torch.empty(self.starts[-1], dtype=torch.long), 0
        waiting = sorted(range(len(self.lengths)), key=lambda i: (self.prefixes[i], self.lengths[i]))
        while waiting:
            longest = waiting[-1]
            P, L = self.prefixes[longest], self.lengths[longest]
            alike = [i for i in waiting if self.prefixes[i] == P and
                     (4 * self.lengths[i] >= 3 * L or L - self.lengths[i] <= 64)]
            waiting = waiting[:-len(alike)]
            queries = torch.stack([torch.arange(L).clamp(max=self.lengths[i] - 1) + self.starts[i]
                                   for i in alike])
            keys = torch.cat([torch.stack([self.prefix(i) for i in alike]), queries], 1)
            mask = torch.ones(L, P + L, dtype=torch.bool).tril(P).to(self.device) if P else None
            for row, i in enumerate(alike):
                order[self.span(i)] = torch.arange(self.lengths[i]) + done + row * L
            calls.append((queries.to(self.device), keys.to(self.device), mask))
            done += queries.numel()
        return calls, order.to(self.device)

    @functools.cached_property
    def cumulative(self):
        """For flash-attention -> indices of the keys (None: the row), cu_seqlens of queries and of keys."""
        keys = torch.cat([torch.cat([self.prefix(i), self.span(i)]) for i in range(len(self.lengths))])
        ends = torch.tensor([[0, *itertools.accumulate(self.lengths)],
                             [0, *itertools.accumulate(map(sum, zip(self.lengths, self.prefixes)))]])
        return keys.to(self.device) if any(self.prefixes) else None, *ends.int().to(self.device)


def attend(module, query, key, value, attention_mask, segments=None, scaling=None, dropout=0.0,
           sliding_window=None, **kwargs):
    """Transformers' attention interface: query (B, H, T, D), key and value (B, Hkv, T, D) -> (B, T, H, D)."""
    shared = query.shape[1] // key.shape[1]                # heads of queries that see the same keys
    if segments is None and query.shape[2] == 1 and shared > 1:            # they become queries of one head,
        q = query.reshape(len(query), key.shape[1], shared, -1)            # no key or value is repeated
        out = scaled_dot_product_attention(q, key, value, attention_mask, scale=scaling)
        return out.reshape(len(query), 1, query.shape[1], -1), None
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      dropout=dropout, sliding_window=sliding_window, **kwargs)
    span = max(map(sum, zip(segments.lengths, segments.prefixes)))
    if dropout or sliding_window is not None and span > sliding_window:
        raise ValueError("packed rows know no attention dropout and no sliding window shorter than a "
                         "trajectory; give --no-pack")
    half = query.is_cuda and query.dtype != torch.float32
    backend = segments.backend or ("flash" if half else "sdpa")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))                         # (T, H, D)
    if backend == "flash":
        from torch.nn.attention.varlen import varlen_attn
        keys, of_queries, of_keys = segments.cumulative
        k, v = (x if keys is None else x[keys] for x in (k, v))
        out = varlen_attn(q, k, v, of_queries, of_keys, max(segments.lengths), span, scale=scaling,
                          window_size=(-1, 0), enable_gqa=shared > 1)       # causal, aligned to the last key
        return out[None], None
    if shared > 1 and query.is_cuda:                       # under a mask, CUDA's SDPA wants equal heads
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    calls, order = segments.calls
    take = lambda x, index: x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
    outs = [scaled_dot_product_attention(take(q, queries), take(k, keys), take(v, keys), mask, scale=scaling,
                                         is_causal=mask is None, enable_gqa=k.shape[1] != q.shape[1])
            for queries, keys, mask in calls]                              # (n, H, L, D) each
    return torch.cat([o.transpose(1, 2).flatten(0, 1) for o in outs]).index_select(0, order)[None], None


def use_segments(model):
    """Let the model take packed rows (`segments=` and its position_ids); without, it computes what it did.

    A name without a mask function would get no padding mask at all, hence SDPA's is registered with it.
    """
    from transformers import AttentionInterface            # takes seconds: not for --help or a wrong path
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    AttentionInterface.register("segments", attend)
    AttentionMaskInterface.register("segments", sdpa_mask)
    model.set_attn_implementation("segments")


def packed_inputs(input_ids, segments):
    """Tokens (T,) of a packed row -> the model's inputs. The 4-D mask says nothing: with it Transformers
    builds none of its own, a T x T one for positions that restart (which it reads as packed documents)."""
    return dict(input_ids=input_ids[None], position_ids=segments.position_ids, segments=segments,
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device))
