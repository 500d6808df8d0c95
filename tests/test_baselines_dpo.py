"""DPO on the pairs of MPS: which pairs, their loss and gradients against the formula and TRL, ranks, resuming."""
import copy
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers

from baselines import dpo
from conftest import ROOT, script
from env import Chat
from plumbing.cli import InputError
from plumbing.models import LogProbs
from plumbing.pairs import load_pairs, pair_batches, reference_logps, step_logps
from plumbing.start import finished_before
from plumbing.trajectory import step_at
from test_stages import CHAIN, lines, mentor, write

WORDS = ["Cy", "Bo", "has", "6", "17", "pears", "print", "the", "of", "answer"]


def words(rng, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def step(rng, k):
    content = f"<first_thought>{words(rng, 6)}</first_thought>" if k == 0 else (
        f"<thought>{words(rng, 5)}</thought><code>{words(rng, 12)}</code>")
    return {"content": content, "observation": "None" if k == 0 else words(rng, 9)}


def record(rng, name, corrected):
    """A solved task as mps.py writes it; corrected: {step: how many corrections it took}."""
    messages = [{"role": "user", "content": words(rng, 12)}]
    corrections = []
    for k in range(5):
        now = step(rng, k)
        for _ in range(corrected.get(k, 0)):
            rejected, now = now, step(rng, k)
            corrections.append({"step": k, "chosen": now, "rejected": rejected, "analysis": None})
        messages.append({"role": "assistant", "content": now["content"]})
        messages.append({"role": "user", "content": f"Observation: {now['observation']}"})
    outcome = "corrected" if corrections else "solved"
    return {"id": name, "question": messages[0]["content"], "answer": "1", "messages": messages[:-1],
            "prediction": "1", "correct": True, "stop": "answer", "outcome": outcome, "reason": None,
            "interventions": len(corrections), "corrections": corrections, "usage": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """mps.jsonl with 30 pairs: after the question, after steps, two and three after one prefix."""
    rng = random.Random(3)
    kinds = [{0: 1}, {2: 1}, {1: 3}, {0: 2, 3: 1}, {1: 1, 4: 1}, {}]
    records = [record(rng, f"t{i}", kinds[i % 6]) for i in range(18)]
    hard = record(rng, "hard", {1: 5}) | {"outcome": "hard", "correct": False}
    return str(write(tmp_path_factory.mktemp("dpo") / "mps.jsonl", [hard, *records]))


def flags(checkpoint, data, out, *more):
    return list(map(str, ["--model", checkpoint, "--data", data, "--out", out, "--dtype", "fp32", *more]))


def read(path, tokenizer, max_tokens=4096):
    return load_pairs([str(path)], dpo.starts_of, Chat(tokenizer), max_tokens)


def texts(pairs, tokenizer):
    """(prefix, chosen, rejected) of pairs, as text; what is chosen and rejected is what has loss."""
    found = []
    for chosen, rejected in pairs:
        P = chosen.prompt_length
        assert rejected.prompt_length == P and chosen.input_ids[:P] == rejected.input_ids[:P]
        for r in (chosen, rejected):
            assert r.loss_mask == [0] * P + [1] * (len(r.input_ids) - P)
        found.append(tuple(tokenizer.decode(ids) for ids in (chosen.input_ids[:P], chosen.input_ids[P:],
                                                             rejected.input_ids[P:])))
    return sorted(found)


def prompt(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


# ---- which pairs ----

def test_pairs_are_the_corrected_steps_of_solved_tasks(data, tokenizer):
    expected = []
    for r in lines(data):
        for c in r["corrections"] if r["correct"] else []:
            before = r["messages"][:1 + 2 * c["step"]]
            final = step_at(r["messages"], c["step"])["content"]          # of the run that was right
            expected.append((prompt(tokenizer, before), final + "<|end|>", c["rejected"]["content"] + "<|end|>"))
    found = texts(read(data, tokenizer), tokenizer)
    assert found == sorted(expected) and len(found) == 30
    at_question = [before for before, _, _ in found if "Observation" not in before]
    assert len(at_question) == 9                           # steps 0
    by_prefix = [before for before, _, _ in found]
    assert max(map(by_prefix.count, by_prefix)) == 3


def test_equal_steps_make_no_pair_and_long_ones_are_dropped(tmp_path, tokenizer, capsys):
    r = record(random.Random(4), "a", {2: 3})
    first, second, third = r["corrections"]
    second["rejected"] = first["rejected"]                 # the same mistake twice
    third["rejected"] = third["chosen"]                    # rejected by one reply of the judge, not by another
    path = write(tmp_path / "mps.jsonl", [r])
    (pair,) = read(path, tokenizer)
    longest = max(len(rollout.input_ids) for rollout in pair)
    assert len(read(path, tokenizer, longest)) == 1
    with pytest.raises(InputError, match=rf"mps.jsonl: no pair .*1 longer than {longest - 1} tokens"):
        read(path, tokenizer, longest - 1)


def test_lines_of_a_real_run_and_its_rl_half(tmp_path, teacher_url, tokenizer):
    """What mps.py records of a student whose plan is wrong, and then its step 1; rl.jsonl has the same pairs."""
    bad = "<thought>Cy has 7.</thought><code>Cy=7\nprint(Cy)</code>"
    wrong = {0: "<first_thought>I guess.</first_thought>", 1: bad}
    r = mentor(teacher_url, CHAIN, lambda task, k, messages: wrong.get(k))
    assert r["outcome"] == "corrected" and [c["step"] for c in r["corrections"]] == [0, 1]
    found = read(write(tmp_path / "mps.jsonl", [r]), tokenizer)
    assert sorted(text.removesuffix("<|end|>") for _, _, text in texts(found, tokenizer)) == sorted(wrong.values())
    task = {name: r[name] for name in ("id", "question", "answer")}
    starts = dpo.key_steps(r, task, "all")
    hard = {**task, "messages": r["messages"][:1], "chosen": None, "rejected": None, "kind": "hard"}
    assert read(write(tmp_path / "rl.jsonl", [hard, *starts]), tokenizer) == found


def broken(change):
    r = record(random.Random(5), "b", {1: 1})
    change(r, r["corrections"][0])
    return r


@pytest.mark.parametrize("change, said", [
    (lambda r, c: r.pop("messages"), "field `messages` must be turns"),
    (lambda r, c: r["messages"].pop(0), "field `messages` must be turns"),
    (lambda r, c: r.pop("correct"), "field `correct`"),
    (lambda r, c: r.update(corrections={}), "field `corrections` must be a list"),
    (lambda r, c: r.update(corrections=["a"]), "field `corrections` must be a list of objects"),
    (lambda r, c: c.update(step=5), "field `corrections`: its `step` is 5, which is no step"),
    (lambda r, c: c.update(step="1"), "its `step` is '1'"), (lambda r, c: c.pop("step"), "its `step` is None"),
    (lambda r, c: c.pop("chosen"), "field `corrections`: `chosen` must be a step"),
    (lambda r, c: c["rejected"].update(content=None), "field `corrections`: `rejected` must be a step"),
    (lambda r, c: r.pop("corrections"), "field `messages` must end with a turn of the user"),
    (lambda r, c: [r.pop("corrections"), r["messages"].pop(), r.update(chosen={"content": 3, "observation": ""})],
     "`chosen` and `rejected` must be steps")], ids=lambda x: x if isinstance(x, str) else "")
def test_bad_lines_are_named(change, said, tmp_path, tokenizer):
    path = write(tmp_path / "mps.jsonl", [record(random.Random(6), "a", {1: 1}), broken(change)])
    with pytest.raises(InputError) as error:
        read(path, tokenizer)
    assert f"{path}, line 2: " in str(error.value) and said in str(error.value)


def test_a_file_without_pairs_is_named(tmp_path, tokenizer):
    path = write(tmp_path / "mps.jsonl", [record(random.Random(7), "a", {})])
    with pytest.raises(InputError, match="mps.jsonl: no pair to train on"):
        read(path, tokenizer)


def test_batches_have_to_divide_among_the_ranks(data, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(dpo, "start_distributed", lambda: (0, 2, torch.device("cpu")))
    with pytest.raises(InputError, match="--batch 3 is not a multiple of the 2 ranks"):
        dpo.main(dpo.parse_args(flags(checkpoint, data, tmp_path / "out", "--batch", 3)))


# ---- loss and gradients ----

@pytest.fixture(scope="module")
def models(tokenizer):
    """A policy and a reference that differ by more than training makes them."""
    torch.manual_seed(1)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    return transformers.Qwen3ForCausalLM(config), transformers.Qwen3ForCausalLM(config)


def summed_logp(model, rollout):
    """log pi of a step, a row of its own, as plainly as can be."""
    ids = torch.tensor(rollout.input_ids)
    logps = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
    return logps[rollout.prompt_length - 1:].sum()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(found, expected):
    assert found.keys() == expected.keys() and max(g.abs().max() for g in expected.values()) > 1e-2
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def ours(models, pairs, monkeypatch, *more):
    """`dpo.update` of all pairs as one batch -> its row of the log, the gradients; no DeepSpeed, no ranks."""
    def accumulate(trainer, micro_batches, loss_of, lr):
        assert len(micro_batches) > 1
        for batch in micro_batches:
            loss_of(*batch).backward()
        return 0.0

    args = dpo.parse_args(flags("m", "d", "o", "--beta", 0.3, "--batch", 7, *more))
    monkeypatch.setattr(dpo, "optimizer_step", accumulate)
    for module in dpo, sys.modules["plumbing.pairs"]:
        monkeypatch.setattr(module, "sum_over_ranks", lambda *numbers: list(numbers))
    policy, reference = (LogProbs(copy.deepcopy(model)) for model in models)
    cpu = torch.device("cpu")
    logps = reference_logps(reference, pairs, args, cpu)
    row = dpo.update(policy, pairs, logps, 0.0, args, cpu)
    return row, gradients(policy.model), logps


@pytest.mark.parametrize("more", [["--row-tokens", 150], ["--row-tokens", 700], ["--no-pack", "--micro-batch", 5],
                                  ["--no-pack", "--micro-batch", 1]], ids=str)
def test_loss_and_gradients_are_those_of_the_formula(more, models, data, tokenizer, monkeypatch):
    pairs = read(data, tokenizer)
    row, found, logps = ours(models, pairs, monkeypatch, *more)
    policy, reference = map(copy.deepcopy, models)
    rewards = []
    for i, pair in enumerate(pairs):
        with torch.no_grad():
            before = torch.stack([summed_logp(reference, rollout) for rollout in pair])
        torch.testing.assert_close(logps[i], before, atol=1e-4, rtol=1e-5)
        rewards.append(0.3 * (torch.stack([summed_logp(policy, rollout) for rollout in pair]) - before))
    chosen, rejected = torch.stack(rewards).unbind(1)
    loss = torch.log(1 + torch.exp(-(chosen - rejected))).mean()
    loss.backward()
    expected = {"loss": loss, "chosen_reward": chosen.mean(), "rejected_reward": rejected.mean(),
                "margin": (chosen - rejected).mean(), "accuracy": (chosen > rejected).float().mean()}
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value.detach()), abs=1e-5, rel=1e-5), name
    assert 0.2 < row["accuracy"] < 0.8 and row["loss"] > 0.5                 # neither all right nor all wrong
    assert_gradients(found, gradients(policy))


def test_the_example_of_the_docstring():
    loss, rewards = dpo.dpo_loss(torch.tensor([[-3.0, -5.0]]), torch.tensor([[-4.0, -4.0]]), 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.1, -0.1]]))
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-0.2)))) == pytest.approx(0.598, abs=1e-3)


def test_a_rank_without_pairs_takes_part(models, data, tokenizer, monkeypatch):
    """One pair, three ranks: two have nothing to do, and the sum of all is what one rank has."""
    pairs = read(data, tokenizer)[:1]
    for pack in "--pack", "--no-pack":
        args = dpo.parse_args(flags("m", "d", "o", pack))
        policy = LogProbs(copy.deepcopy(models[0]))
        found = []
        monkeypatch.setenv("WORLD_SIZE", "3")
        for rank in "012":
            monkeypatch.setenv("RANK", rank)
            (batch,) = pair_batches(pairs, args, "cpu")
            logps = step_logps(policy, batch)
            losses, _ = dpo.dpo_loss(logps, torch.zeros(1, 2)[batch[-1]], 0.1)
            losses.sum().backward()
            found += logps.tolist()
        plain = [float(summed_logp(models[0], rollout).detach()) for rollout in pairs[0]]
        assert found == [pytest.approx(plain, abs=1e-4)]


def test_loss_and_gradients_are_those_of_trl(models, data, tokenizer, tmp_path, monkeypatch):
    """The library makes tokens, masks, batches and the loss itself, from the messages."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    records = []
    for r in lines(data):
        for start in dpo.starts_of(r):
            for rejected in (start["rejected"], *start["also_rejected"]):
                say = lambda step: [{"role": "assistant", "content": step["content"]}]
                records.append({"prompt": start["messages"], "chosen": say(start["chosen"]),
                                "rejected": say(rejected)})
    policy, reference = map(copy.deepcopy, models)
    config = trl.DPOConfig(str(tmp_path), beta=0.3, use_cpu=True, bf16=False, gradient_checkpointing=False,
                           max_length=None, report_to=[], disable_tqdm=True)
    trainer = trl.DPOTrainer(policy, ref_model=reference, args=config, processing_class=tokenizer,
                             train_dataset=datasets.Dataset.from_list(records))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(records))])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    row, found, _ = ours(models, read(data, tokenizer), monkeypatch, "--row-tokens", 300)
    assert row["loss"] == pytest.approx(float(loss.detach()), abs=1e-5, rel=1e-5)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for name, theirs in (("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins"),
                         ("accuracy", "accuracies")):
        assert row[name] == pytest.approx(logged[f"rewards/{theirs}"], abs=1e-5, rel=1e-5)
    assert_gradients(found, gradients(policy))


# ---- the trainer, in processes of its own as a user runs it ----

RUN = ["--batch", 8, "--steps", 12, "--lr", "1e-2", "--row-tokens", 300]
CURVE = ("loss", "chosen_reward", "rejected_reward", "margin", "accuracy", "lr", "grad_norm")


def curve(out):
    return [[row[name] for name in CURVE] for row in lines(os.path.join(out, "metrics.jsonl"))]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, checkpoint, data):
    out = tmp_path_factory.mktemp("whole") / "out"
    script("baselines/dpo.py", *flags(checkpoint, data, out, *RUN))
    return out


def test_the_loss_falls_and_the_accuracy_rises(whole_run):
    rows = lines(whole_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["chosen_reward"] == pytest.approx(0, abs=1e-5) == rows[0]["rejected_reward"]
    assert rows[-1]["loss"] < 0.55 and rows[-1]["accuracy"] > 0.9 and rows[-1]["margin"] > 0.4
    assert not (whole_run / "state").exists()


def test_a_finished_run_is_known_and_other_flags_are_told(whole_run, checkpoint, data):
    assert finished_before(dpo.parse_args(flags(checkpoint, data, whole_run, *RUN)))
    with pytest.raises(InputError, match="made with --beta 0.1, not with --beta 0.5"):
        finished_before(dpo.parse_args(flags(checkpoint, data, whole_run, *RUN, "--beta", 0.5)))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_reference_of_the_start(whole_run, tmp_path, checkpoint, data):
    mine = tmp_path / "mps.jsonl"
    text = open(data).read()
    mine.write_text(text)
    out = tmp_path / "out"
    command = ["baselines/dpo.py", *flags(checkpoint, mine, out, *RUN, "--save-every", 1)]
    run = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    while not (out / "state" / "latest").exists():
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "config.json").exists()
    mine.write_text(text[:text.rindex('{"id": "t16"')])                     # one corrected task fewer
    done = script(*command, check=False)
    assert done.returncode == 2 and "state was made from other pairs than --data" in done.stderr
    mine.write_text(text)
    script(*command)
    assert curve(out) == curve(whole_run)                                   # to the bit
    assert (out / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", [[], ["--zero", 3, "--no-pack", "--micro-batch", 4]], ids=str)
def test_two_ranks_train_as_one(more, whole_run, tmp_path, checkpoint, data):
    script("baselines/dpo.py", *flags(checkpoint, data, tmp_path / "out", *RUN, *more), ranks=2)
    for found, expected in zip(curve(tmp_path / "out"), curve(whole_run), strict=True):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)
    one, two = (transformers.AutoModelForCausalLM.from_pretrained(out) for out in (whole_run, tmp_path / "out"))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-3, rtol=0)                  # Adam at 1e-2 a step
