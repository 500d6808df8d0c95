"""The model as this project uses it: tokens in, log-probs of the marked tokens out, nowhere T x V logits."""
import torch

from assets.attention import use_segments


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
