"""The engines: the growing cache, log-probs of what was sampled, whose weights they generate with."""
import argparse
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

import env
import grpo_short
import mps
import plumbing.engines
import plumbing.models
import sft
from plumbing.cli import InputError, cli
from plumbing.engines import TorchEngine, VLLMEngine, check_trainer_engine, load_engine, trainer_engine
from plumbing.kv_cache import ROOM, GrowingLayer, shortest_window
from plumbing.models import load_model


def test_a_growing_layer_holds_what_transformers_layer_holds():
    """Token by token past its room, and after rows were dropped, repeated or put in another order."""
    generator = torch.Generator().manual_seed(0)
    plain = DynamicLayer()
    plain.update(*torch.randn(2, 3, 2, 10, 4, generator=generator))
    growing = GrowingLayer(plain)
    for n, rows in (1, None), (ROOM, None), (5, [2, 0]), (3, [1, 1, 0, 0]), (2 * ROOM, [3]):
        for layer in plain, growing:
            if rows is not None:
                layer.batch_select_indices(torch.tensor(rows))
        for _ in range(n):
            new = torch.randn(2, len(plain.keys), 2, 1, 4, generator=generator)
            for ours, theirs in zip(growing.update(*new), plain.update(*new)):
                assert torch.equal(ours, theirs)
        assert growing.get_seq_length() == plain.get_seq_length()
        assert growing.get_mask_sizes(1) == plain.get_mask_sizes(1)


class OneInEight:
    """Ends a turn with one token in eight: an untrained model hardly finds the only right one."""

    def __eq__(self, token):
        return token % 8 == 0


class Talk(env.Episode):
    """Each turn gets an observation, after a time that differs by copy, as do the number of turns."""

    def turn(self, content, complete=True):
        time.sleep(0.01 * self.copy)
        self.calls += 1
        return "Observation: 7" if self.calls < 2 + 2 * self.copy else None


@pytest.mark.parametrize("batch, window", [(6, None), (1, 16), (6, 16), (6, 700)])
def test_log_probs_are_those_of_the_whole_rollout(checkpoint, batch, window):
    """Sampled column by column with a cache, and computed at once; one layer has a sliding window.

    The window counts columns, so rows may be padded only as far as it holds them all.
    """
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    if window:
        config.sliding_window = window
        config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    chat = env.load_chat(checkpoint)
    chat.end = OneInEight()
    chat.stray = frozenset()
    starts = [dict(question="Cy has 6 pears." + " ?" * n) for n in (0, 9, 30)]
    episodes = [Talk(start, None, max_tokens=300, copy=copy) for start in starts for copy in range(3)]
    TorchEngine(model, chat, batch=batch).play(episodes, temperature=0.7, top_p=0.9)
    assert {e.calls for e in episodes} == {2, 4, 6}
    for e in episodes:
        with torch.no_grad():
            logits = model(torch.tensor([e.ids])).logits[0, :-1]
        logps = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(e.ids[1:])[:, None])[:, 0]
        sampled = torch.tensor(e.loss_mask[1:]).bool()
        torch.testing.assert_close(logps[sampled], torch.tensor(e.logps[1:])[sampled], atol=1e-4, rtol=1e-4)


def test_a_model_of_its_own_takes_the_trainers_weights_and_the_trainers_model_is_left_alone(checkpoint):
    chat = env.load_chat(checkpoint)
    model = load_model(checkpoint, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = {name: p + 1 for name, p in before.items()}
    tied = {**moved, "lm_head.weight": moved["model.embed_tokens.weight"]}
    TorchEngine(model, chat, separate=False).load(tied.items())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    TorchEngine(model, chat).load(tied.items())
    assert all(torch.equal(p, moved[name]) for name, p in model.named_parameters())


def test_the_trainers_engine(checkpoint):
    """Its own model, with ZeRO-3 a copy; what gives no log-probs of the whole distribution is refused."""
    args = argparse.Namespace(lora_rank=0, engine="torch", model=checkpoint, zero=2, rollout_batch=7, threads=3, pack=True,
                              checkpointing=False, temperature=1.0, top_p=1.0, top_k=0, dtype="fp32")
    policy = SimpleNamespace(model=load_model(checkpoint, torch.float32))
    policy.parameters = policy.model.parameters
    trainer, chat = SimpleNamespace(module=policy), env.load_chat(checkpoint)
    shared = trainer_engine(args, trainer, chat, [])
    assert shared.model is policy.model and not shared.separate and shared.batch == 7
    args.zero = 3
    copy = trainer_engine(args, trainer, chat, [])
    assert copy.model is not policy.model and copy.separate
    policy.model.bfloat16()
    copy = trainer_engine(args, trainer, chat, [])
    assert {p.dtype for p in copy.model.parameters()} == {torch.bfloat16}
    assert copy.model.model.rotary_emb.inv_freq.dtype == torch.float32     # as DeepSpeed leaves it
    for engine, more, complaint in (("torch", {"temperature": 0}, "nothing to compare"),
                                    ("vllm", {"top_k": 20}, "train with 1 and 0")):
        wrong = argparse.Namespace(**{**vars(args), "engine": engine, **more})
        with pytest.raises(InputError, match=complaint):
            check_trainer_engine(wrong)


def load(kind, path, *flags, starts=()):
    """The engine of mps.py with these flags."""
    args = mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", "-", "--engine", kind,
                           *flags])
    return load_engine(args, path, env.load_chat, list(starts))


def test_vllm_has_room_for_the_longest_start_and_what_follows(checkpoint, monkeypatch):
    made = []
    monkeypatch.setattr(plumbing.engines, "VLLMEngine", lambda path, chat, **how: made.append(how))
    prefix = [{"role": "user", "content": "What is the ally?"},
              {"role": "assistant", "content": "<first_thought>I look.</first_thought>"},
              {"role": "user", "content": "Observation: None"}]
    starts = [{"question": "What?"}, {"question": "What is the ally?", "messages": prefix}]
    load("vllm", checkpoint, "--max-tokens", "100", "--vllm-memory", "0.7", starts=starts)
    length = len(env.load_chat(checkpoint).encode(prefix)[0])
    assert made[0]["longest"] == length + 201 and made[0]["memory"] == 0.7 and made[0]["attention"] is None
    load("vllm", checkpoint, "--max-model-len", "999", "--max-tokens", "100", "--vllm-attention", "FLASH_ATTN", starts=starts)
    assert made[1]["longest"] == 999 and made[1]["attention"] == "FLASH_ATTN"
    with pytest.raises(InputError, match=f"--max-tokens 100 after a start of {length} tokens is more than 105"):
        load("vllm", checkpoint, "--max-model-len", "105", "--max-tokens", "100", starts=starts)
    config = plumbing.models.load_config(checkpoint)
    most = config.max_position_embeddings
    load("vllm", checkpoint, "--max-tokens", str(most - length - 1), starts=starts)
    assert made[2]["longest"] == most
    with pytest.raises(InputError, match=f"--max-tokens 100000 after a start of {length} tokens"):
        load("vllm", checkpoint, "--max-tokens", "100000", starts=starts)


def test_what_cannot_be_loaded_is_named(tmp_path):
    assert not load("url", "m", "--student-url", "http://localhost:1").batched
    with pytest.raises(InputError, match=f"cannot use the model '{tmp_path}'"):
        load("torch", str(tmp_path))


# ---- architectures ----

def tiny(name, **more):
    """A model with random weights, of a config class of Transformers."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**dict(
        vocab_size=800, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, pad_token_id=0,
        bos_token_id=None, eos_token_id=1), **more}))


MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16)
WINDOWS = {"MistralConfig": {}, "Phi3Config": {}, "Starcoder2Config": {}, "Cohere2Config": {}, "Olmo3Config": {},
           "Qwen2Config": dict(use_sliding_window=True, max_window_layers=1),
           "Gemma2Config": dict(head_dim=8, query_pre_attn_scalar=8),
           "Gemma3TextConfig": dict(head_dim=8, query_pre_attn_scalar=8,
                                    layer_types=["sliding_attention", "full_attention"]),
           "GptOssConfig": dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2)}
REFUSED = {"Lfm2Config": dict(layer_types=["conv", "full_attention"], block_ff_dim=48),
           "Qwen3NextConfig": dict(head_dim=16, layer_types=["linear_attention", "full_attention"], num_experts=4,
                                   num_experts_per_tok=2, moe_intermediate_size=32, linear_key_head_dim=16,
                                   shared_expert_intermediate_size=32, linear_num_value_heads=2,
                                   linear_num_key_heads=2, linear_value_head_dim=16),
           "FalconH1Config": dict(MAMBA, mamba_d_ssm=32, mamba_d_head=8),
           "BambaConfig": dict(MAMBA, attn_layer_indices=[1]),
           "Mamba2Config": dict(num_heads=4, head_dim=16, n_groups=1, state_size=8, chunk_size=16),
           "MptConfig": dict(d_model=32, n_heads=4, n_layers=2)}             # counts columns in its biases


def batches(engine):
    """The sizes of the batches that it plays, to be read afterwards."""
    sizes, play = [], engine.play_batch
    engine.play_batch = lambda episodes, *rest: sizes.append(len(episodes)) or play(episodes, *rest)
    return sizes


@pytest.mark.parametrize("name", WINDOWS)
def test_a_sliding_window_sees_what_it_sees_in_the_plain_model(name, checkpoint):
    """The pool of threads makes turns of unequal length, so that rows wait for one another."""
    model, plain = (tiny(name, sliding_window=16, **WINDOWS[name]).eval() for _ in range(2))
    chat = env.load_chat(checkpoint)
    chat.end, chat.stray = OneInEight(), frozenset()
    episodes = [Talk(dict(question="Cy" + " ?" * n), None, max_tokens=60, copy=copy)
                for n in (0, 9, 30) for copy in range(2)]
    engine = TorchEngine(model, chat, batch=6)
    sizes = batches(engine)
    engine.play(episodes)
    assert sizes == [1] * 6 and max(len(e.ids) for e in episodes) > 30
    for e in episodes:
        with torch.no_grad():
            logits = plain(torch.tensor([e.ids])).logits[0, :-1]
        logps = torch.log_softmax(logits, -1).gather(1, torch.tensor(e.ids[1:])[:, None])[:, 0]
        sampled = torch.tensor(e.loss_mask[1:]).bool()
        torch.testing.assert_close(logps[sampled], torch.tensor(e.logps[1:])[sampled], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window, size", [(None, 6), (10_000, 6), (500, 4), (300, 2), (200, 1), (16, 1)])
def test_no_more_rows_play_together_than_a_window_holds(window, size, checkpoint):
    """Each of 6 may add 100 tokens to a prompt of some 20."""
    model = tiny("MistralConfig", sliding_window=window)
    assert shortest_window(model.config) == window
    engine = TorchEngine(model, env.load_chat(checkpoint), batch=6)
    episodes = [env.Episode(dict(question="Cy has 6 pears."), None, max_tokens=100) for _ in range(6)]
    for e in episodes:
        e.begin(engine.chat)
    assert engine.rows_together(episodes) == size and engine.rows_together([]) >= 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_generated_with_is_refused_at_load(name, checkpoint):
    model = tiny(name, **REFUSED[name])
    with pytest.raises(InputError, match=f"{model.__class__.__name__}.*keys and values.*--engine vllm"):
        TorchEngine(model, env.load_chat(checkpoint))


def test_loading_leaves_the_trainers_model_in_train_mode(checkpoint):
    model = tiny("Qwen3Config", head_dim=16).train()
    engine = TorchEngine(model, env.load_chat(checkpoint), separate=False)
    assert model.training
    engine.play([env.Episode(dict(question="q"), mock_interpreter(), max_tokens=5)])
    assert model.training and all(m.training for m in model.modules())


# ---- turns that end in a token that has no place in them ----

def mock_interpreter():
    interpreter = SimpleNamespace(run=lambda code: env.Observation("7", None, False), close=lambda: None)
    interpreter.fork = lambda: interpreter
    return interpreter


def test_a_stray_control_token_ends_the_rollout(checkpoint):
    """An untrained model samples them at times."""
    model, chat = load_model(checkpoint, torch.float32), env.load_chat(checkpoint)
    episodes = [env.Episode(dict(question="q" * n), mock_interpreter(), max_tokens=400) for n in range(1, 13)]
    TorchEngine(model, chat).play(episodes)
    ends = [e.ids[-1] for e in episodes if e.stop == "format" and e.ids[-1] != chat.end]
    assert len(ends) >= 3 and set(ends) <= chat.stray
    for e in episodes:
        sampled = e.ids[e.prompt_length:]
        assert not chat.stray & set(sampled[:-1]) and not chat.control.search(e.messages[-1]["content"])


def vllm_stand_in(chat, tokens, asked):
    """A VLLMEngine whose vLLM answers every request with `tokens`; like vLLM it takes no prompt without room."""
    engine = VLLMEngine.__new__(VLLMEngine)

    class StandIn:
        def add_request(self, name, prompt, params):
            assert len(prompt) < engine.longest
            asked.append(params)
            self.name = name

        def step(self):
            logprobs = [{token: SimpleNamespace(logprob=-1.0)} for token in tokens]
            out = SimpleNamespace(token_ids=tokens, logprobs=logprobs)
            return [SimpleNamespace(request_id=self.name, outputs=[out])]

    engine.chat, engine.threads, engine.llm = chat, 2, SimpleNamespace(llm_engine=StandIn())
    engine.longest, engine.stops = 100, [chat.end, *chat.stray]
    engine.vllm = SimpleNamespace(
        SamplingParams=lambda **how: how, inputs=SimpleNamespace(tokens_input=list),
        sampling_params=SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=1)))
    return engine


@pytest.mark.parametrize("last, stop", [("<|pad|>", "format"), ("<|user|>", "format"), (None, "max_tokens")])
def test_vllm_is_told_to_stop_at_stray_tokens(last, stop, checkpoint):
    """With a stand-in for vLLM, which gives back the tokens that it stopped at, as vLLM does."""
    chat = env.load_chat(checkpoint)
    asked = []
    engine = vllm_stand_in(chat, chat.ids("<thought>a") + (chat.ids(last) if last else []), asked)
    episode = env.Episode(dict(question="q"), mock_interpreter())
    engine.play([episode])
    assert set(asked[0]["stop_token_ids"]) == {chat.end} | chat.stray and len(chat.stray) >= 4
    assert episode.stop == stop and episode.messages[-1]["content"] == "<thought>a"


def test_what_vllm_says_when_it_does_not_start_is_one_sentence(checkpoint, monkeypatch):
    def fails(*_, **__):
        raise AssertionError("Error in memory profiling.\nInitial free memory 65.51 GiB")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=fails))
    with pytest.raises(InputError) as said:
        VLLMEngine(checkpoint, None, memory=0.4)
    assert str(said.value).startswith(f"vLLM does not start with {checkpoint}: Error in memory profiling. Initial free")
    assert "--vllm-memory 0.4" in str(said.value) and "\n" not in str(said.value)


def test_vllm_stops_at_tokens_that_it_knows(checkpoint, monkeypatch):
    """A tokenizer may have special tokens past the model's vocabulary: vLLM refuses a request that names them."""
    chat = env.load_chat(checkpoint)
    chat = SimpleNamespace(end=chat.end, stray={*chat.stray, 32000})
    config = SimpleNamespace(get_vocab_size=lambda: 32000)
    made = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda *_, **__: made))
    assert set(VLLMEngine(checkpoint, chat).stops) == {chat.end} | chat.stray - {32000}


@pytest.mark.parametrize("flags, lags", [("--engine vllm --dtype bf16", True), ("--zero 3 --dtype bf16", True),
                                         ("--engine vllm --dtype fp32", False), ("--dtype bf16", False)])
def test_lora_in_bf16_says_that_rollouts_lag(flags, lags, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(plumbing.engines, "say_once", print)
    monkeypatch.setattr(plumbing.engines, "VLLMEngine", lambda *_, **__: None)
    monkeypatch.setattr(plumbing.engines, "TorchEngine", lambda *_, **__: None)
    args = grpo_short.parse_args(["--model", checkpoint, "--data", "-", "--out", "-", "--teacher-url", "-",
                                  "--lora-rank", "4", "--max-tokens", "100", *flags.split()])
    trainer = SimpleNamespace(module=torch.nn.Linear(1, 1))
    trainer.module.model = None
    trainer_engine(args, trainer, env.load_chat(checkpoint), [{"question": "q"}])
    assert ("rollouts lag behind" in capsys.readouterr().out) == lags


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_vllm_is_asked_for_no_turn_without_room(turns, checkpoint):
    """Corrected steps fill it, before the first turn of an episode that goes on or before a later one."""
    chat = env.load_chat(checkpoint)
    turn = [*chat.ids("<thought>a</thought><code>1</code>"), chat.end]
    asked = []
    engine = vllm_stand_in(chat, turn, asked)
    play = lambda: engine.play([episode := env.Episode(dict(question="q"), mock_interpreter())]) or episode
    engine.longest = 1000
    whole = play()
    assert len(asked) == whole.calls > 3 and whole.stop == "max_steps"
    starts = [i for i, token in enumerate(whole.ids) if token == chat.end and whole.ids[i + 1 - len(turn):i + 1] == turn]
    engine.longest = whole.prompt_length if turns == 0 else starts[turns - 1] + 2           # ends in an observation
    asked.clear()
    episode = play()
    assert episode.stop == "max_tokens" and len(asked) == turns


def test_an_endpoint_gets_contents_without_white_space_at_their_ends(monkeypatch):
    sent = []

    def reply(url, body, **_):
        sent.append(body["messages"])
        return {"finish_reason": "stop", "message": {"content": "<code>1</code>\n" if len(sent) == 1 else "end"}}
    monkeypatch.setattr(plumbing.engines, "chat_completion", reply)
    episode = env.Episode(dict(question=" q\n"), mock_interpreter())
    load("url", "m", "--student-url", "http://localhost:1").play([episode])
    assert [m["content"] for m in sent[1]] == ["q", "<code>1</code>", "Observation: 7"]


# ---- dtype, weights ----

@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_policy_is_loaded_in_its_dtype_straight_to_its_gpu(dtype, checkpoint, monkeypatch):
    """8 ranks that each load fp32 into host memory would take 244 GB of it for a model of 7B."""
    class Stop(Exception):
        pass

    def from_pretrained(path, **how):
        assert how["device_map"] == {"": "cuda:3"}
        assert how["dtype"] == {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        raise Stop
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(Stop):
        plumbing.models.load_policy(checkpoint, SimpleNamespace(dtype=dtype, pack=True, max_tokens=64))



@pytest.mark.parametrize("where", ["loading", "the first check", "the engine's check"])
def test_a_full_gpu_is_named_and_not_the_model(where, checkpoint, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def main(_):
        if where == "loading":
            monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
        if where == "the first check":
            monkeypatch.setattr(plumbing.models.LogProbs, "forward", full)
        if where == "the engine's check":
            monkeypatch.setattr(TorchEngine, "prefill", full)
            load("torch", checkpoint)
        plumbing.models.load_policy(checkpoint, sft.parse_args(["--model", "m", "--data", "d", "--out", "o"]))
    with pytest.raises(SystemExit) as end:
        cli(main, argparse.Namespace())
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: the memory of a GPU is full; ")
    assert said.count("\n") == 1 and said.endswith("Tried to allocate 2.00 GiB)\n")


@pytest.mark.parametrize("saved, slow, expected", [
    ("bfloat16", True, "float32"), ("bfloat16", False, "bfloat16"), ("float16", True, "float32"),
    ("float32", True, "float32"), ("float32", False, "float32")])
def test_half_precision_is_used_where_the_processor_is_fast_with_it(saved, slow, expected, tmp_path, checkpoint,
                                                                    monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("about CPUs")
    rate = lambda device, dtype, n=None: 1e9 if slow and dtype != torch.float32 else 1e11
    monkeypatch.setattr(plumbing.models, "matmul_rate", rate)
    model = load_model(checkpoint, getattr(torch, saved))
    model.save_pretrained(tmp_path)
    env.load_chat(checkpoint).tokenizer.save_pretrained(tmp_path)
    assert load("torch", str(tmp_path)).model.dtype == getattr(torch, expected)
    load_model(str(tmp_path), "auto")
    assert capsys.readouterr().out.count("fp32 is used") == (saved != expected)           # said once
    assert load_model(str(tmp_path), torch.bfloat16).dtype == torch.bfloat16              # as it was asked for
    seen = []
    monkeypatch.setattr(plumbing.engines, "VLLMEngine", lambda path, chat, dtype, **_: seen.append(dtype))
    load("vllm", str(tmp_path), "--max-tokens", "100")
    assert seen == [getattr(torch, expected)]


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4},
                                 {"quant_method": "bitsandbytes", "load_in_4bit": True},
                                 {"quant_method": "fp8"}, {"quant_method": "compressed-tensors"}], ids=str)
def test_quantised_weights_are_refused_in_a_sentence(how, tmp_path, checkpoint):
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.quantization_config = how
    config.save_pretrained(tmp_path)
    for dtype in "auto", torch.float32:
        with pytest.raises(InputError, match=f"{tmp_path}.*quantised .{how['quant_method']}.*unquantised"):
            load_model(str(tmp_path), dtype)


@pytest.mark.parametrize("damage", ["truncated", "pointer", "one is missing", "others, as of GPTQ"])
def test_damaged_weights_are_named(damage, tmp_path, checkpoint):
    from safetensors.torch import load_file, save_file
    load_model(checkpoint, torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    else:
        missing = [name for name in weights if "up_proj" in name][:1 if damage == "one is missing" else None]
        for name in missing:
            weights[name.replace("weight", "qweight")] = weights.pop(name)
        save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=f"cannot use the model '{tmp_path}'"):
        load_model(str(tmp_path), torch.float32)
