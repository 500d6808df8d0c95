"""Supervised training: packed rows against plain ones, the trainer against a loop of a page, broken saves."""
import random

import pytest
import torch
import transformers

import assets.logprobs
import sft
from assets.attention import Segments, packed_inputs

FAMILIES = {"qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, dict(head_dim=16)),
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {})}


def tiny(family, **more):
    config, model, extra = FAMILIES[family]
    torch.manual_seed(0)
    return model(config(**{**dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                                  initializer_range=0.3, tie_word_embeddings=family != "llama"), **extra, **more}))


def tokens(n):
    return [random.randrange(61) for _ in range(n)]


def results(policy, *batches):
    """logps of all batches together, gradients of a loss in which no two tokens weigh the same."""
    policy.zero_grad()
    logps = torch.cat([policy(*batch, temperature=0.8) for batch in batches])
    (logps * torch.linspace(-1, 2, len(logps))).mean().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters()}


def assert_same(a, b):
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-5)
    assert a[1].keys() == b[1].keys() and min(g.abs().max() for g in a[1].values()) > 1e-3
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], atol=1e-5, rtol=1e-5, msg=lambda m: f"{name}: {m}")


def padded(rows):
    """(ids, mask) rows -> what LogProbs takes, the plain way: right-padded with an attention mask."""
    input_ids, attention_mask, loss_mask = sft.collate(rows, len(rows))
    return dict(input_ids=input_ids, attention_mask=attention_mask), *sft.marked(input_ids, loss_mask)


@pytest.fixture(params=FAMILIES)
def policy(request):
    return sft.LogProbs(tiny(request.param))


@pytest.fixture
def documents():
    random.seed(1)
    lengths = [90, 2, 17, 40, 7, 200, 89, 31]
    return [(tokens(n), [0] + [int(random.random() < 0.6) for _ in range(n - 2)] + [1]) for n in lengths]


def tree(groups):
    """[(prefix, [(response, mask) …]) …] -> one packed row with each prefix once, as grpo_short.py trains."""
    lengths, parents, ids, loss = [], [], [], []
    for prefix, responses in groups:
        parent = len(lengths)
        for part, mask, above in [(prefix, [0] * len(prefix), None), *((r, m, parent) for r, m in responses)]:
            lengths.append(len(part)), parents.append(above), ids.extend(part), loss.extend(mask)
    segments, input_ids, loss = Segments(lengths, parents), torch.tensor(ids), torch.tensor(loss).bool()
    return packed_inputs(input_ids, segments), segments.before[loss], input_ids[loss]


@pytest.fixture
def groups():
    """Unequal prefixes and responses, observations without loss inside, one response of a single token."""
    random.seed(2)
    made = []
    for P, lengths in ((50, [30, 80, 1, 29]), (9, [5]), (51, [120, 3, 119]), (9, [90, 6])):
        made.append((tokens(P), [(tokens(n), [1] + [int(random.random() < 0.7) for _ in range(n - 1)])
                                 for n in lengths]))
    return made


# ---- packed rows ----

def test_packed_documents_equal_padded_ones(policy, documents):
    assert_same(results(policy, sft.pack(documents)), results(policy, padded(documents)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_groups_equal_their_rollouts_one_by_one(policy, groups, checkpointing):
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = [padded([(prefix + r, [0] * len(prefix) + m)]) for prefix, rs in groups for r, m in rs]
    assert_same(results(policy, tree(groups)), results(policy, *plain))


def test_padding_and_generation_are_untouched_by_the_packed_attention(policy, documents):
    reference = tiny(next(f for f, (_, m, _) in FAMILIES.items() if type(policy.model) is m)).eval()
    inputs, policy = padded(documents)[0], policy.eval()
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(policy.model(**inputs).logits[real], reference(**inputs).logits[real])
    ids = torch.tensor([documents[3][0]])
    assert torch.equal(policy.model.generate(ids, max_new_tokens=20, do_sample=False),
                       reference.generate(ids, max_new_tokens=20, do_sample=False))


def test_chunks_of_logits_do_not_change_results(documents, monkeypatch):
    policy = sft.LogProbs(tiny("qwen2"))
    whole = results(policy, sft.pack(documents))
    monkeypatch.setattr(assets.logprobs.TokenLogProbs, "LOGITS", 61 * 50)       # 50 tokens a chunk, several
    assert_same(whole, results(policy, sft.pack(documents)))
    empty = sft.collate([], 2)
    logps = policy(dict(input_ids=empty[0], attention_mask=empty[1]), *sft.marked(empty[0], empty[2]))
    logps.sum().backward()                                                       # a rank without work of its own
    assert logps.shape == (0,)


def test_layout_of_a_packed_row():
    s = Segments([3, 2, 2], [None, 0, 0])
    assert s.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4]] and s.before.tolist() == [-1, 0, 1, 2, 3, 2, 5]
    chain = Segments([2, 1, 3], [None, 0, 1])                                    # a path of segments is one sequence
    assert chain.position_ids[0].tolist() == list(range(6)) and chain.before.tolist() == list(range(-1, 5))
    for lengths, parents in (([2, 0], None), ([2, 2], [1, None]), ([2], [0])):
        with pytest.raises(ValueError, match="segments need"):
            Segments(lengths, parents)


def test_flash_and_flex_layouts_say_the_same_as_the_calls_of_sdpa():
    """Queries and keys of every backend, as a dense square: who sees whom (their kernels need a GPU)."""
    s = Segments([4, 3, 2, 5, 1], [None, 0, 0, None, 1])
    T = s.starts[-1]
    dense = torch.zeros(T, T, dtype=torch.bool)
    for queries, keys, mask in s.calls[0]:
        mask = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool).tril() if mask is None else mask
        for q, k in zip(queries, keys):
            dense[q[:, None], k[None]] |= mask & (k[None] <= q[:, None])         # the copies at the end see more
    keys, of_queries, of_keys = s.cumulative
    flash = torch.zeros_like(dense)
    for i in range(5):
        q, k = torch.arange(*of_queries[i:i + 2]), keys[of_keys[i]:of_keys[i + 1]]
        flash[q[:, None], k[None]] = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    assert s.block_mask is not None
    t = torch.arange(T)
    assert torch.equal(s.mask_mod(0, 0, t[:, None], t[None]), flash) and torch.equal(dense, flash)
    assert flash.sum() == 10 + (12 + 6) + (8 + 3) + 15 + (4 + 3 + 1)


def test_sliding_windows_are_refused_where_they_would_matter(documents):
    window = dict(use_sliding_window=True, sliding_window=64, max_window_layers=0)
    policy = sft.LogProbs(tiny("qwen2", **window))
    with pytest.raises(ValueError, match="sliding window"):
        policy(*sft.pack(documents))
    short = [d for d in documents if len(d[0]) <= 64]
    assert_same(results(policy, sft.pack(short)), results(policy, padded(short)))
