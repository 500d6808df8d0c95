"""The flash-attention branch of packed rows, on the CPU: PyTorch's own wrapper, checks and autograd run, and
only the two kernels under them are replaced, so a changed signature or layout is seen without a GPU."""
import sys
import types

import pytest
import torch
import torch.nn.attention.varlen as varlen

import plumbing.attention
from plumbing.attention import find_varlen, use_segments
from plumbing.cli import InputError
from test_sft import assert_same, groups, policy, results, tree  # noqa: F401


def segments_of(q, k, v, ends_q, ends_k, scale):
    """Of each segment: rows of q, rows of k, probabilities (causal, aligned to the last key), keys, values."""
    for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        K, V = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1).float() for x in (k, v))
        hidden = ~torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        scores = torch.einsum("qhd,khd->hqk", q[a:b].float(), K) * scale
        yield slice(a, b), slice(c, d), scores.masked_fill(hidden, -torch.inf).softmax(-1), K, V


def attention_of(q, k, v, ends_q, ends_k, scale):
    parts = segments_of(q, k, v, ends_q, ends_k, scale)
    return torch.cat([torch.einsum("hqk,khd->qhd", p, V) for *_, p, _, V in parts]).to(q.dtype)


def check_layout(q, k, v, ends_q, ends_k, longest_q, longest_k):
    """What the kernels need of their arguments."""
    assert ends_q.dtype == ends_k.dtype == torch.int32 and ends_q.is_contiguous() and ends_k.is_contiguous()
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 and q.shape[2] % 8 == 0
    assert longest_q == ends_q.diff().max() and longest_k == ends_k.diff().max()


def forward(q, k, v, ends_q, ends_k, longest_q, longest_k, is_causal=False, scale=None, window_size=None, *_):
    check_layout(q, k, v, ends_q, ends_k, longest_q, longest_k)
    assert is_causal and list(window_size) == [-1, 0]
    log_sum = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return attention_of(q, k, v, ends_q, ends_k, scale), log_sum, torch.empty(2, dtype=torch.uint64)


def backward(g, q, k, v, out, log_sum, ends_q, ends_k, longest_q, longest_k, is_causal, rng, scale=None,
             window_size=None):
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    for i, j, p, K, V in segments_of(q, k, v, ends_q, ends_k, scale):
        dp = torch.einsum("qhd,khd->hqk", g[i].float(), V)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        dq[i] = torch.einsum("hqk,khd->qhd", ds, K)
        dk[j] += torch.einsum("hqk,qhd->khd", ds, q[i].float()).unflatten(1, (k.shape[1], -1)).sum(2)
        dv[j] += torch.einsum("hqk,qhd->khd", p, g[i].float()).unflatten(1, (k.shape[1], -1)).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors say that they are on CUDA, fp32 goes where half precision goes, and kernels run here."""
    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", backward)
    flash = plumbing.attention.attend_flash

    def either(q, k, v, segments, scaling):
        return flash(q, k, v, segments, scaling, find_varlen("torch"))
    monkeypatch.setattr(plumbing.attention, "attend_sdpa", either)


@pytest.mark.parametrize("recompute", [False, True])
def test_pytorchs_flash_attention_gives_what_sdpa_gives(policy, groups, recompute, request):  # noqa: F811
    if recompute:
        policy.model.train()
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = results(policy, tree(groups))
    request.getfixturevalue("as_on_a_gpu")
    assert_same(results(policy, tree(groups)), plain)


def test_half_precision_on_cuda_takes_flash_attention(policy, groups, as_on_a_gpu, monkeypatch):  # noqa: F811
    monkeypatch.undo()                                      # the choice is attend's own here
    policy.model.bfloat16()
    use_segments(policy.model, "sdpa")
    plain = results(policy, tree(groups))
    use_segments(policy.model, "torch")
    calls = []
    real = varlen.varlen_attn
    asks = plumbing.attention.asks_for_shared_heads(real)
    monkeypatch.setattr(plumbing.attention, "asks_for_shared_heads", lambda _: asks)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: calls.append(1) or real(*a, **k))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    flash = results(policy, tree(groups))
    assert calls
    torch.testing.assert_close(flash[0], plain[0], atol=0.3, rtol=0)
    for name, gradient in plain[1].items():
        gap = (flash[1][name].float() - gradient.float()).norm()
        assert gap < 0.1 * gradient.float().norm() + 1e-4, name


def test_a_pytorch_that_shares_heads_unasked_is_not_asked(monkeypatch):
    """varlen_attn of PyTorch 2.11 has no `enable_gqa`."""
    def older(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return attention_of(q, k, v, cu_seq_q, cu_seq_k, scale)
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    monkeypatch.setattr(varlen, "varlen_attn", older)
    out = find_varlen("torch")(q, k, k, ends, ends, 3, 3, 0.3)
    torch.testing.assert_close(out, attention_of(q, k, k, ends, ends, 0.3))


def test_the_package_is_called_where_it_is_installed(policy, groups, monkeypatch):  # noqa: F811
    """By its own signature, restated."""
    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                               softmax_scale=None, causal=False, window_size=(-1, -1)):
        check_layout(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        assert causal and not dropout_p
        return attention_of(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)
    with pytest.raises(InputError, match="--attention torch needs no package"):
        find_varlen("flash-attn")
    plain = results(policy, tree(groups))
    package = types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert find_varlen("auto") is find_varlen("flash-attn") is plumbing.attention.package_varlen
    assert find_varlen("sdpa") is None
    flash = plumbing.attention.attend_flash

    def either(q, k, v, segments, scaling):
        return flash(q, k, v, segments, scaling, find_varlen("auto"))
    monkeypatch.setattr(plumbing.attention, "attend_sdpa", either)                          # as on a GPU
    assert_same(results(policy, tree(groups)), plain)
