"""Supervised training: packed rows against plain ones, the trainer against a loop of a page, broken saves."""
import copy
import itertools
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import time
import types

import pytest
import torch
import transformers

import plumbing.attention
import plumbing.models
import sft
from conftest import ROOT, script
from env import Chat
from plumbing.attention import Segments, packed_inputs
from plumbing.checkpoints import save_model
from plumbing.cli import InputError
from plumbing.models import LogProbs, add_lora, load_model, load_policy
from plumbing.packing import collate, fill_rows, marked, pack_examples
from plumbing.trainer import Metrics, permutation

FAMILIES = {"qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, dict(head_dim=16)),
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {})}


def tiny(family, **more):
    config, model, extra = FAMILIES[family]
    torch.manual_seed(0)
    return model(config(**{**dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                                  initializer_range=0.3, tie_word_embeddings=family != "llama"),
                            **extra, **more}))


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
    input_ids, attention_mask, loss_mask = collate(rows, len(rows))
    return dict(input_ids=input_ids, attention_mask=attention_mask), *marked(input_ids, loss_mask)


@pytest.fixture(params=FAMILIES)
def policy(request):
    return LogProbs(tiny(request.param))


@pytest.fixture
def documents():
    random.seed(1)
    lengths = [90, 2, 17, 40, 7, 200, 89, 31]
    return [(tokens(n), [0] + [int(random.random() < 0.6) for _ in range(n - 2)] + [1]) for n in lengths]


def tree(groups):
    """[(prefix, [(response, mask) …]) …] -> one packed row with each prefix once, as GRPO trains."""
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
    assert_same(results(policy, pack_examples(documents)), results(policy, padded(documents)))


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
    policy = LogProbs(tiny("qwen2"))
    whole = results(policy, pack_examples(documents))
    monkeypatch.setattr(plumbing.models.TokenLogProbs, "LOGITS", 61 * 50)       # 50 tokens a chunk, several
    assert_same(whole, results(policy, pack_examples(documents)))
    empty = collate([], 2)
    logps = policy(dict(input_ids=empty[0], attention_mask=empty[1]), *marked(empty[0], empty[2]))
    logps.sum().backward()                                  # a rank without work of its own
    assert logps.shape == (0,)


def test_layout_of_a_packed_row():
    s = Segments([3, 2, 2], [None, 0, 0])
    assert s.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4]] and s.before.tolist() == [-1, 0, 1, 2, 3, 2, 5]
    chain = Segments([2, 1, 3], [None, 0, 1])                    # a path is one sequence
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
            dense[q[:, None], k[None]] |= mask & (k[None] <= q[:, None])  # copies at the end see more
    keys, of_queries, of_keys = s.cumulative
    flash = torch.zeros_like(dense)
    for i in range(5):
        q, k = torch.arange(*of_queries[i:i + 2]), keys[of_keys[i]:of_keys[i + 1]]
        flash[q[:, None], k[None]] = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    assert torch.equal(dense, flash)
    assert flash.sum() == 10 + (12 + 6) + (8 + 3) + 15 + (4 + 3 + 1)


def test_decoding_shares_keys_between_heads_as_sdpa_does():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 6, 1, 8), torch.randn(5, 2, 7, 8), torch.randn(5, 2, 7, 8)
    for mask in (None, torch.rand(5, 1, 1, 7) < 0.7):
        found, expected = (attend(module, query, key, value, mask, scaling=0.5)[0]
                           for attend in (plumbing.attention.attend, sdpa_attention_forward))
        torch.testing.assert_close(found, expected)


def test_sliding_windows_are_refused_where_they_would_matter(documents):
    window = dict(use_sliding_window=True, sliding_window=64, max_window_layers=0)
    policy = LogProbs(tiny("qwen2", **window))
    with pytest.raises(InputError, match="sliding window"):
        policy(*pack_examples(documents))
    short = [d for d in documents if len(d[0]) <= 64]
    assert_same(results(policy, pack_examples(short)), results(policy, padded(short)))


def test_an_architecture_that_computes_otherwise_is_refused(tmp_path, tokenizer):
    args = sft.parse_args(["--model", "m", "--data", "d", "--out", "o"])
    config = dict(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, eos_token_id=1,
                  num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5, pad_token_id=0)
    tokenizer.save_pretrained(tmp_path)
    for scaling in (1.0, 4.0):                                              # of the logits
        torch.manual_seed(0)
        transformers.GraniteForCausalLM(transformers.GraniteConfig(**config, logits_scaling=scaling)
                                        ).save_pretrained(tmp_path)
        if scaling == 1.0:
            load_policy(str(tmp_path), args)
        else:
            with pytest.raises(InputError, match="not output matrix times hidden states"):
                load_policy(str(tmp_path), args)


def policy_of(folder, *flags):
    return load_policy(str(folder), sft.parse_args(["--model", "m", "--data", "d", "--out", "o", *flags]))


def saved_model(folder, name="Qwen3Config", **config):
    """A tiny model in a folder, as a user's is."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**dict(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, pad_token_id=0, eos_token_id=1),
        **config}))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("pack", [["--pack"], ["--no-pack"]], ids=str)
def test_checkpointing_recomputes_the_layers_of_a_model_from_a_folder(pack, tmp_path, documents):
    """Each layer runs a second time in the backward pass, few activations are kept, and nothing else changes."""
    saved_model(tmp_path, num_hidden_layers=4, head_dim=16)
    batch = pack_examples(documents) if pack == ["--pack"] else padded(documents)
    found, runs, kept = {}, {}, {}
    for flag in "--checkpointing", "--no-checkpointing":
        policy = policy_of(tmp_path, *pack, flag)
        calls, sizes = [], []
        for layer in policy.model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            logps = policy(*batch)
        (logps * torch.linspace(-1, 2, len(logps))).mean().backward()
        found[flag] = logps.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters()}
        runs[flag], kept[flag] = len(calls), sum(sizes)
    assert_same(found["--checkpointing"], found["--no-checkpointing"])
    assert runs == {"--checkpointing": 8, "--no-checkpointing": 4}
    assert kept["--checkpointing"] < 0.4 * kept["--no-checkpointing"], kept


@pytest.mark.parametrize("name, dropout", [
    ("Qwen3Config", dict(attention_dropout=0.5)), ("LlamaConfig", dict(attention_dropout=0.5)),
    ("GPT2Config", dict(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5, n_embd=32, n_layer=2, n_head=4)),
    ("Phi3Config", dict(resid_pdrop=0.5, attention_dropout=0.5, sliding_window=None)),
    ("SeedOssConfig", dict(attention_dropout=0.5, residual_dropout=0.5)),
    ("MixtralConfig", dict(router_jitter_noise=0.5, attention_dropout=0.5, num_local_experts=4))])
def test_training_knows_no_dropout(name, dropout, tmp_path, documents, capsys):
    plain = saved_model(tmp_path, name, **dropout).eval()
    policy = policy_of(tmp_path)
    assert all(module.training for module in policy.modules())
    ids, mask = documents[5]
    with torch.no_grad():
        logps = policy(*pack_examples([(ids, mask)]))
        plain = torch.log_softmax(plain(torch.tensor([ids])).logits[0, :-1], -1)
    plain = plain.gather(1, torch.tensor(ids[1:])[:, None])[:, 0][torch.tensor(mask[1:]).bool()]
    torch.testing.assert_close(logps, plain, atol=1e-5, rtol=1e-5)
    said = capsys.readouterr().out
    assert "without the dropout" in said and all(key in said for key in dropout if "drop" in key or "noise" in key)


@pytest.mark.parametrize("wrong", [
    dict(do_sample=False, temperature=0.9, top_p=0.6), dict(temperature=0.6), dict(top_k=20, do_sample=False),
    dict(min_p=0.1), dict(typical_p=0.9), dict(early_stopping=True), dict(length_penalty=1.2),
    dict(pad_token_id=-1), dict(output_scores=True), dict(temperature="0.7"), dict(max_new_tokens=0),
    dict(num_return_sequences=2), dict(cache_implementation="fast"), dict(early_stopping="soon")], ids=str)
def test_generation_settings_that_contradict_themselves_are_found_at_load(wrong, tmp_path, tokenizer, capsys,
                                                                          monkeypatch):
    """Transformers refuses to save them, which is when training has ended."""
    saved_model(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], **wrong}))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    try:
        policy = policy_of(tmp_path / "a")
    except InputError as error:
        assert str(tmp_path / "a") in str(error) and [*wrong][0] in str(error)
        return
    assert "contradicts itself" in capsys.readouterr().out
    trainer = types.SimpleNamespace(module=policy, zero_optimization_stage=lambda: 0)
    save_model(trainer, tokenizer, str(tmp_path / "b"))
    saved = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, 2] and not set(saved) & set(wrong)


@pytest.mark.parametrize("name, config", [
    ("MixtralConfig", dict(num_local_experts=4)), ("OlmoeConfig", dict(num_experts=4, num_experts_per_tok=2)),
    ("Qwen3MoeConfig", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)),
    ("Qwen3Config", {})])
def test_a_mixture_of_experts_is_told_what_its_loss_lacks(name, config, tmp_path, capsys):
    saved_model(tmp_path, name, **config)
    policy_of(tmp_path)
    assert ("auxiliary loss" in capsys.readouterr().out) == (name != "Qwen3Config")


@pytest.mark.parametrize("name, config", [
    ("MistralConfig", {}), ("Phi3Config", {}), ("Gemma3TextConfig", dict(layer_types=["sliding_attention"] * 2)),
    ("Qwen2Config", dict(use_sliding_window=True, max_window_layers=0))])
def test_a_window_shorter_than_a_trajectory_wants_padded_rows(name, config, tmp_path, documents):
    plain = saved_model(tmp_path, name, sliding_window=64, **config).eval()
    with pytest.raises(InputError, match="64 tokens back.*--max-tokens 4096.*--no-pack"):
        policy_of(tmp_path)
    policy_of(tmp_path, "--max-tokens", "64")
    policy = policy_of(tmp_path, "--no-pack")
    with torch.no_grad():
        logps = policy(*padded(documents))
        expected = []
        for ids, mask in documents:
            each = torch.log_softmax(plain(torch.tensor([ids])).logits[0, :-1], -1)
            expected.append(each.gather(1, torch.tensor(ids[1:])[:, None])[:, 0][torch.tensor(mask[1:]).bool()])
    torch.testing.assert_close(logps, torch.cat(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, config", [
    ("GptOssConfig", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8)),        # attention sinks
    ("Gemma2Config", dict(head_dim=8)),                                                    # softcap of the logits
    ("CohereConfig", dict(logit_scale=0.5)), ("Lfm2Config", dict(layer_types=["conv", "full_attention"]))])
def test_what_packed_attention_does_not_know_is_found_at_load(name, config, tmp_path):
    saved_model(tmp_path, name, **config)
    with pytest.raises(InputError, match=f"cannot train '{tmp_path}'"):
        policy_of(tmp_path, "--max-tokens", "16")


@pytest.mark.parametrize("change", [3e-5, 1e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lora_is_merged_without_rounding(dtype, change, tmp_path, tokenizer, monkeypatch):
    """Changes far below the resolution of bf16, at weights of about 0.3."""
    pytest.importorskip("peft")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    policy = LogProbs(tiny("qwen3").to(dtype))
    before = {n: p.detach().clone().float() for n, p in policy.model.named_parameters()}
    add_lora(policy.model, 2, seed=0)
    expected = dict(before)
    for name, module in policy.model.named_modules():
        if hasattr(module, "lora_B"):
            low, high = module.lora_A["default"].weight, module.lora_B["default"].weight
            torch.nn.init.normal_(high, std=change)
            expected[name + ".weight"] = before[name + ".weight"] + 2 * (high.float() @ low.float())
    trainer = types.SimpleNamespace(module=policy, zero_optimization_stage=lambda: 0)
    save_model(trainer, tokenizer, str(tmp_path / "out"))
    after = dict(load_model(str(tmp_path / "out"), "auto").named_parameters())
    assert {p.dtype for p in after.values()} == {torch.float32} and after.keys() == expected.keys()
    for name, weight in after.items():
        torch.testing.assert_close(weight.detach(), expected[name].detach(), atol=1e-8, rtol=1e-6)


# ---- what is no number ----

@pytest.mark.parametrize("name", ["loss", "grad_norm", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_no_number_ends_the_run(name, value):
    row = {"step": 7, "loss": 1.0, "grad_norm": 0.0}
    metrics = Metrics(types.SimpleNamespace(out="out", wandb=None), rank=1, done=0)
    metrics.write(row)
    metrics.write({**row, "val_loss": 1e30})
    with pytest.raises(InputError, match=f"step 7: `{name}` is .*out.*--lr"):
        metrics.write({**row, name: value})


@pytest.mark.parametrize("flags", [["--zero", 0], ["--zero", 2, "--dtype", "bf16"]], ids=str)
def test_a_run_that_diverges_stops_and_leaves_the_last_good_state(flags, tmp_path, checkpoint, data):
    """A learning rate at which the second step is no number; and one at which the weights already are none."""
    out = tmp_path / "out"
    command = ["sft.py", "--model", checkpoint, "--data", data, "--out", out, *FLAGS, "--save-every", 1, *flags]
    done = script(*command, "--lr", "1e30", check=False)
    assert done.returncode == 2 and "error: step 2: `" in done.stderr and "Traceback" not in done.stderr
    assert [r["step"] for r in rows_of(out)] == [1] and not (out / "config.json").exists()
    assert (out / "state" / "latest").read_text() == "step-1"
    command[6] = tmp_path / "second"
    done = script(*command, "--lr", "1e39", "--warmup", 0, check=False)
    assert done.returncode == 2 and "no numbers" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "second" / "state").exists()


# ---- examples and rows ----

def conversation(rng):
    """A question, a plan and some steps, of random words of the demo."""
    known = ["Cy", "Bo", "has", "6", "17", "pears", "print", "the", "of", "answer"]
    words = lambda n: " ".join(rng.choice(known) for _ in range(n))
    messages = [{"role": "user", "content": words(rng.randint(3, 9))},
                {"role": "assistant", "content": f"<first_thought>{words(4)}</first_thought>"}]
    for _ in range(rng.randint(1, 5)):
        messages += [{"role": "user", "content": "Observation: " + words(rng.randint(1, 12))},
                     {"role": "assistant", 
                      "content": f"<thought>{words(3)}</thought><code>{words(5)}</code>"}]
    return messages


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, path = random.Random(5), tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps({"messages": conversation(rng)}) + "\n" for _ in range(40)))
    return str(path)


def test_overlong_trajectories_are_dropped_whole_or_cut_after_a_step(data, tokenizer):
    whole = sft.load_examples([data], Chat(tokenizer), 4096)
    limit, said = sorted(len(ids) for ids, _ in whole)[20], []
    dropped = sft.load_examples([data], Chat(tokenizer), limit, "drop", said.append)
    assert sorted(dropped) == sorted(e for e in whole if len(e[0]) <= limit)
    assert f"{len(whole) - len(dropped)} too long" in said[0]
    cut = sft.load_examples([data], Chat(tokenizer), limit, "cut")
    records = [json.loads(line)["messages"] for line in open(data)]
    expected = []
    for messages in records:                                # the longest beginning that ends with a step
        fits = [sft.encode(tokenizer, messages[:n], 4096) for n in range(2, len(messages) + 1, 2)]
        expected += [e for e in fits if len(e[0]) <= limit][-1:]
    assert sorted(cut) == sorted(expected) and len(cut) > len(dropped)
    with pytest.raises(InputError, match="no trajectory"):
        sft.load_examples([data], Chat(tokenizer), 5, "cut")


def test_rows_hold_every_example_once_and_are_equally_full():
    rng = random.Random(0)
    for budget, ranks, n in ((100, 1, 50), (500, 2, 128), (64, 4, 3), (30, 2, 1)):
        lengths = [rng.randint(1, 60) for _ in range(n)]
        rows = fill_rows(lengths, budget, ranks)
        loads = [sum(lengths[i] for i in row) for row in rows]
        assert sorted(i for row in rows for i in row) == list(range(n)) and len(rows) % ranks == 0
        assert max(loads) <= max(budget, *lengths)
        if n > 10 * len(rows):
            assert max(loads) - min(loads) <= 60 and len(rows) <= sum(lengths) / budget + ranks + 1
    assert fill_rows([5, 4, 3, 2], 8, 1) == [[0, 3], [1, 2]]


def test_show_colours_what_is_trained(data, checkpoint, tokenizer):
    shown = script("sft.py", "--model", checkpoint, "--data", data, "--out", "-", "--show", 2).stdout
    for ids, mask in sft.load_examples([data], Chat(tokenizer), 4096)[:2]:
        green = "".join(re.findall(r"\x1b\[32m(.*?)\x1b\[0m", shown, re.DOTALL))
        for trained, run in itertools.groupby(zip(ids, mask), key=lambda pair: pair[1]):
            text = tokenizer.decode([token for token, _ in run])
            assert (text in green) if trained else (text in re.sub(r"\x1b\[\d+m", "", shown))
    assert shown.count("----") == 2


# ---- the trainer, in processes of its own as a user runs it ----

STEPS, BATCH = 5, 8
FLAGS = ["--dtype", "fp32", "--batch", BATCH, "--steps", STEPS, "--lr", "3e-3", "--clip-grad", 0.5]


def rows_of(out):
    return [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]


def curve(out):
    return [(r["loss"], r["grad_norm"]) for r in rows_of(out)]


def order_of_data(examples, steps, batch, seed=0):
    """The batches of sft.py, one example after another."""
    flat = [examples[permutation(len(examples), seed, i // len(examples))[i % len(examples)]]
            for i in range(steps * batch)]
    return [flat[i:i + batch] for i in range(0, len(flat), batch)]


def loss_of_one(model, ids, mask):
    """Summed loss of one trajectory, as plainly as can be."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return (losses * torch.tensor(mask[1:])).sum()


@pytest.fixture(scope="module")
def plain_loop(checkpoint, data, tokenizer):
    """(loss, gradient norm) a step of an ordinary loop: no packing, padding, DeepSpeed or shared code."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(checkpoint), []
    decayed, rest = [[p for p in model.parameters() if (p.ndim > 1) == flag] for flag in (True, False)]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.1),
                                   dict(params=rest, weight_decay=0.0)])
    for step, batch in enumerate(order_of_data(sft.load_examples([data], Chat(tokenizer), 4096), STEPS, BATCH)):
        loss = sum(loss_of_one(model, *e) for e in batch) / sum(sum(mask[1:]) for _, mask in batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * max(0, step - 1) / (STEPS - 1)))
        optimizer.step(), optimizer.zero_grad()
        found.append((float(loss.detach()), float(norm)))
    return found


@pytest.mark.parametrize("ranks, flags", [
    (None, ["--row-tokens", 4096]), (None, ["--row-tokens", 150, "--checkpointing"]),
    (None, ["--no-pack", "--micro-batch", 3]), (2, ["--row-tokens", 150]),
    (2, ["--no-pack", "--micro-batch", 8]), (2, ["--row-tokens", 300, "--zero", 3, "--checkpointing"]),
    (None, ["--zero", 2, "--offload"])], ids=str)
def test_any_split_trains_as_a_plain_loop_does(ranks, flags, tmp_path, checkpoint, data, plain_loop):
    script("sft.py", "--model", checkpoint, "--data", data, "--out", tmp_path / "out", *FLAGS, *flags,
           ranks=ranks)
    for ours, plain in zip(curve(tmp_path / "out"), plain_loop, strict=True):
        assert ours == pytest.approx(plain, abs=1e-5, rel=1e-5)
    assert plain_loop[-1][0] < plain_loop[0][0] - 0.1


@pytest.mark.slow
def test_bf16_begins_at_step_one_and_resumes_to_the_bit(tmp_path, checkpoint, data):
    """DeepSpeed's own bf16 optimizer without ZeRO takes a step while it starts: --zero 0 is not run with it."""
    from test_stages import kill_when
    flags = ["--model", checkpoint, "--data", data, *FLAGS, "--dtype", "bf16"]
    script("sft.py", *flags, "--zero", 1, "--out", tmp_path / "sharded")
    script("sft.py", *flags, "--zero", 0, "--out", tmp_path / "whole")
    for ours, theirs in list(zip(curve(tmp_path / "whole"), curve(tmp_path / "sharded")))[:3]:
        assert ours == pytest.approx(theirs, abs=1e-4)
    command = [sys.executable, os.path.join(ROOT, "sft.py"), *map(str, flags), "--zero", "0", "--save-every",
               "2", "--out", str(tmp_path / "killed")]
    kill_when(command, lambda n: (tmp_path / "killed" / "state" / "latest").exists(), 1)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.slow
def test_lora_trains_little_merges_on_saving_and_resumes(tmp_path, checkpoint, data, tokenizer):
    pytest.importorskip("peft")
    flags = ["--model", checkpoint, "--data", data, "--val", data, *FLAGS, "--lora-rank", 4]
    script("sft.py", *flags, "--out", tmp_path / "a")
    script("sft.py", *flags, "--out", tmp_path / "b", "--zero", 3, ranks=2)
    assert curve(tmp_path / "a") == [pytest.approx(row, abs=1e-4) for row in curve(tmp_path / "b")]
    before = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    for out in "ab":
        after, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / out,
                                                                        output_loading_info=True)
        assert not any(told[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
        changed = {n: not torch.equal(p, q)
                   for (n, p), q in zip(before.named_parameters(), after.parameters())}
        assert all(c == ("_proj." in n) for n, c in changed.items()) and any(changed.values())
        examples = sft.load_examples([data], Chat(tokenizer), 4096)
        with torch.no_grad():
            loss = sum(loss_of_one(after, *e) for e in examples) / sft.trained_tokens(examples)
        assert float(loss) == pytest.approx(rows_of(tmp_path / out)[-1]["val_loss"], abs=1e-4)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_state_and_says_so(tmp_path, checkpoint, data):
    """Once a state is there, files may not grow, as on a full disk; a second run goes on from that state."""
    out = tmp_path / "out"
    command = [sys.executable, os.path.join(ROOT, "sft.py"), "--model", checkpoint, "--data", data,
               "--out", out, "--dtype", "fp32", "--batch", 4, "--steps", 60, "--save-every", 5]
    command = list(map(str, command))
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (out / "state" / "latest").exists():
        assert run.poll() is None
        time.sleep(0.02)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    message = run.communicate()[1]
    assert run.returncode == 2 and "could not be written" in message and "Traceback" not in message
    latest = (out / "state" / "latest").read_text()
    torn = [n for n in os.listdir(out / "state") if n.startswith("step-") and n != latest]
    assert torn and not (out / "config.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [r["step"] for r in rows_of(out)] == list(range(1, 61))
    script("sft.py", *command[2:6], "--out", tmp_path / "whole", *command[8:])
    assert curve(out) == curve(tmp_path / "whole")                      # to the bit
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_an_older_checkpoint_is_replaced_only_by_a_whole_one(tmp_path, tokenizer, monkeypatch):
    engine = types.SimpleNamespace(module=LogProbs(tiny("qwen3")), zero_optimization_stage=lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    out, weight = tmp_path / "best", engine.module.model.model.norm.weight
    read = lambda: transformers.AutoModelForCausalLM.from_pretrained(out).model.norm.weight[0].item()
    save_model(engine, tokenizer, str(out))
    assert read() == 1.0
    weight.data.fill_(2.0)
    with monkeypatch.context() as m:
        full = lambda *_: (_ for _ in ()).throw(OSError("No space left"))
        m.setattr(type(tokenizer), "save_pretrained", full)
        with pytest.raises(InputError, match="No space left"):
            save_model(engine, tokenizer, str(out))
    assert read() == 1.0
    save_model(engine, tokenizer, str(out))
    assert read() == 2.0 and sorted(os.listdir(tmp_path)) == ["best"]


# ---- TRL, where it is installed ----

def test_ten_steps_equal_those_of_trl(tmp_path, checkpoint, data, tokenizer):
    """TRL makes its masks itself, from marks in the template; order, schedule and optimizer are ours."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    script("sft.py", "--model", checkpoint, "--data", data, "--out", tmp_path / "ours", "--dtype", "fp32",
           "--batch", 4, "--steps", 10, "--lr", "3e-3", "--weight-decay", 0)
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    records = [json.loads(line)["messages"] for line in open(data)]
    by_ids = {tuple(sft.encode(tokenizer, m, 4096)[0]): m for m in records}
    batches = order_of_data(sft.load_examples([data], Chat(tokenizer), 4096), 10, 4)
    ordered = datasets.Dataset.from_list([{"messages": by_ids[tuple(ids)]} for b in batches for ids, _ in b])

    class InOrder(trl.SFTTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: sft.learning_rate(s, 10, 1.0, 0.1))
    config = trl.SFTConfig(str(tmp_path / "trl"), assistant_only_loss=True, per_device_train_batch_size=4,
                           max_steps=10, logging_steps=1, logging_first_step=True, report_to=[], use_cpu=True,
                           bf16=False, gradient_checkpointing=False, max_grad_norm=1.0, save_strategy="no",
                           max_length=None, disable_tqdm=True)
    trainer = InOrder(model, args=config, train_dataset=ordered, processing_class=marked,
                      optimizers=(optimizer, schedule))
    trainer.train()
    theirs = [(r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "grad_norm" in r]
    assert len(theirs) == 10 and theirs[0][0] != theirs[-1][0]
    for a, b in zip(curve(tmp_path / "ours"), theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


REAL = {"qwen2_5": ("<|im_end|>", ["<|im_start|>"], {}),
        "llama3_1": ("<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
                     {"bos_token": "<|begin_of_text|>"}),
        "qwen3": ("<|im_end|>", ["<|im_start|>"], {})}


@pytest.mark.parametrize("name", REAL)
def test_real_chat_templates_are_kept_to_the_character_or_refused(name):
    """As published, in TRL's collection: Qwen2.5 and Llama 3.1 exactly; Qwen3 drops earlier reasoning."""
    trl = pytest.importorskip("trl")
    import env
    import student
    tokenizer, (eos, specials, more) = student.make_tokenizer(), REAL[name]
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": specials, **more})
    path = os.path.join(os.path.dirname(trl.__file__), "chat_templates", name + ".jinja")
    tokenizer.chat_template = open(path, encoding="utf-8").read()
    if name == "qwen3":
        with pytest.raises(ValueError, match="rewrites history"):
            env.Chat(tokenizer)
        return
    for messages in (conversation(random.Random(seed)) for seed in range(5)):
        ids, mask = sft.encode(tokenizer, messages, 4096)
        whole, ours = tokenizer.apply_chat_template(messages, tokenize=False), tokenizer.decode(ids)
        assert whole.startswith(ours) and whole[len(ours):] in ("", "\n")
        runs = itertools.groupby(zip(ids, mask), key=lambda pair: pair[1])
        assert [tokenizer.decode([i for i, _ in run]) for trained, run in runs if trained] == [
            m["content"] + eos for m in messages[1::2]]
