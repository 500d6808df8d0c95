"""The engines: the growing cache, log-probs of what was sampled, whose weights they generate with."""
import argparse
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

import env
from plumbing.cli import InputError
from plumbing.engines import TorchEngine, load_engine, trainer_engine
from plumbing.kv_cache import ROOM, GrowingLayer
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


@pytest.mark.parametrize("batch, window", [(6, None), (1, 16)])
def test_log_probs_are_those_of_the_whole_rollout(checkpoint, batch, window):
    """Sampled column by column with a cache, and computed at once; one layer has a sliding window.

    The window counts columns, so with it only a row alone, which is never padded, is sure to be right.
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
    TorchEngine(model, chat, owns_weights=False).load(tied.items())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    TorchEngine(model, chat).load(tied.items())
    assert all(torch.equal(p, moved[name]) for name, p in model.named_parameters())


def test_the_trainers_engine(checkpoint):
    """Its own model, with ZeRO-3 a copy; what gives no log-probs of the whole distribution is refused."""
    args = argparse.Namespace(engine="torch", model=checkpoint, zero=2, rollout_batch=7, pack=True,
                              checkpointing=False, top_p=1.0, top_k=0, dtype="fp32")
    policy = SimpleNamespace(model=load_model(checkpoint, torch.float32))
    policy.parameters = policy.model.parameters
    trainer, chat = SimpleNamespace(module=policy), env.load_chat(checkpoint)
    shared = trainer_engine(args, trainer, chat)
    assert shared.model is policy.model and not shared.owns_weights and shared.batch == 7
    args.zero = 3
    copy = trainer_engine(args, trainer, chat)
    assert copy.model is not policy.model and copy.owns_weights
    policy.model.bfloat16()
    copy = trainer_engine(args, trainer, chat)
    assert {p.dtype for p in copy.model.parameters()} == {torch.bfloat16}
    assert copy.model.model.rotary_emb.inv_freq.dtype == torch.float32     # as DeepSpeed leaves it
    for engine, more, complaint in ("url", {}, "no token ids"), ("vllm", {"top_k": 20}, "train with 1 and 0"):
        wrong = argparse.Namespace(**{**vars(args), "engine": engine, **more})
        with pytest.raises(InputError, match=complaint):
            trainer_engine(wrong, trainer, chat)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match="--student-url"):
        load_engine("url", "m", None, env.load_chat)
    assert not load_engine("url", "m", "http://localhost:1", env.load_chat).batched
    with pytest.raises(InputError, match=f"cannot use the model '{tmp_path}'"):
        load_engine("torch", str(tmp_path), None, env.load_chat)
