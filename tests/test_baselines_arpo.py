"""The baseline ARPO: its reward, credit, entropies, branches, and a run that is killed."""
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch

import env
import grpo_short
from baselines import arpo
from conftest import ROOT, script
from plumbing import entropy, packing, rl_log
from plumbing.cli import InputError
from plumbing.models import LogProbs, entropies
from plumbing.starts import Starts
from test_sft import tiny
from test_stages import kill_when, lines, tasks, write

NEEDED = "--model m --data d --out o".split()
PLAN = "<first_thought>I add.</first_thought>"


def flags(*more):
    return grpo_short.parse_args([*NEEDED, *more], arpo.more_flags)


def say(code):
    return f"<thought>go on</thought><code>{code}</code>"


# ---- reward and credit ----

def trajectory(*codes, stop="answer", prediction="4"):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": PLAN},
                {"role": "user", "content": "Observation: None"}]
    for code in codes:
        messages += [{"role": "assistant", "content": say(code)}, {"role": "user", "content": "Observation: 4"}]
    return {"question": "q", "answer": "4", "messages": messages[:-1], "stop": stop, "prediction": prediction}


def test_the_reward_of_the_paper():
    value = lambda *codes, **how: arpo.reward(trajectory(*codes, **how), None, flags())[0]
    search, compute, answer = "print(web_search('a'))", "x = 2 + 2\nprint(x)", "final_answer_print(x)"
    assert value(search, compute, answer) == value(compute, search, answer) == 1.1
    assert value(search, answer) == value(compute, answer) == value(answer) == 1.0           # one tool, or none
    assert value(search, compute, answer, prediction="5") == 0.0
    for stop in ("max_steps", "max_tokens", "format"):
        assert value(search, compute, stop=stop, prediction=None) == -1.0
    assert arpo.reward(trajectory(search, compute, answer), None, flags())[1] == dict(
        format=True, correct=True, both_tools=True, undecided=False)


def test_soft_credit_by_hand_and_the_gradient_of_hard_credit():
    """Rollouts 0 and 1 share their first token. Soft: A_i at each token of rollout i. Hard: (A_0 + A_1) / 2 at the
    shared one. At ratio 1 both push every token alike."""
    group = [dict(reward=r, key=None) for r in (1.1, -1.0, 0.0, 1.0)]
    soft = grpo_short.group_advantages(torch.tensor([t["reward"] for t in group]))
    mean = (1.1 - 1 + 0 + 1) / 4                                               # 0.275
    std = (((1.1 - mean) ** 2 + (-1 - mean) ** 2 + mean ** 2 + (1 - mean) ** 2) / 3) ** 0.5
    by_hand = torch.tensor([(r - mean) / std for r in (1.1, -1.0, 0.0, 1.0)])
    torch.testing.assert_close(soft, by_hand, atol=1e-5, rtol=1e-5)
    assert soft[0] == pytest.approx(0.825 / 0.98446, abs=1e-4)

    token = torch.tensor([0, 1, 0, 2, 3, 4])          # rollout 0: tokens 0 1, rollout 1: 0 2, rollouts 2 and 3: one each
    owner = torch.tensor([0, 0, 1, 1, 2, 3])
    hard = by_hand[owner].clone()
    hard[[0, 2]] = (by_hand[0] + by_hand[1]) / 2
    gradients = []
    for advantages in (by_hand[owner], hard):
        logits = torch.linspace(-1, 1, 5).requires_grad_()
        logps = torch.log_softmax(logits, 0)[token]
        losses, _ = grpo_short.policy_loss(logps, logps.detach(), advantages, 0.2, 3.0)
        gradients.append(torch.autograd.grad(losses.mean(), logits)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0.01


# ---- entropy ----

@pytest.mark.parametrize("how", [("--row-tokens", "9999"), ("--row-tokens", "40"), ("--no-pack", "--micro-batch", "2")])
def test_entropies_are_those_of_the_policy(how, monkeypatch):
    monkeypatch.setattr(entropy, "most_over_ranks", lambda number: number + 1)         # another rank has one row more
    policy = LogProbs(tiny("qwen2"))
    masks = [[0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1], [0] * 5 + [1] * 20, [0, 1, 0, 1, 0, 1]]
    torch.manual_seed(0)
    episodes = [SimpleNamespace(loss_mask=m, ids=torch.randint(3, 61, (len(m),)).tolist()) for m in masks]
    found = entropy.turn_entropies(policy, episodes, 3, flags(*how, "--temperature", "0.7"))
    assert [[len(turn) for turn in turns] for turns in found] == [[3, 2, 1], [3], [1, 1, 1]]
    firsts = [[[3, 4, 5], [9, 10], [12]], [[5, 6, 7]], [[1], [3], [5]]]
    for episode, of_turns, turns in zip(episodes, found, firsts):
        assert entropy.first_tokens(episode.loss_mask, 3) == turns
        with torch.no_grad():
            logits = tiny("qwen2")(torch.tensor([episode.ids])).logits[0].float() / 0.7
        direct = torch.distributions.Categorical(logits=logits).entropy()
        for values, turn in zip(of_turns, turns):
            assert values == pytest.approx([float(direct[t - 1]) for t in turn], abs=1e-5)
    assert entropy.turn_entropies(policy, [], 3, flags(*how)) == []                    # a rank without rollouts
    weight, hidden = torch.randn(50, 8), torch.randn(9, 8)
    monkeypatch.setattr("plumbing.models.TokenLogProbs.LOGITS", 100)                   # two tokens in a chunk
    direct = torch.distributions.Categorical(logits=hidden @ weight.T).entropy()
    torch.testing.assert_close(entropies(hidden, weight, 1.0), direct)


def test_the_rise_by_hand():
    assert entropy.entropy_rise([1, 2], [2, 2, 5], round(math.e ** 2)) == pytest.approx(1 / math.log(7))
    assert entropy.entropy_rise([1, 2, 9], [0.5, 0.5], 10) == pytest.approx(-2 / math.log(10))


# ---- branches ----

class Typist:
    """An engine that samples what `script(episode, step)` says, token by token."""

    def __init__(self, chat, script):
        self.chat, self.script, self.played = chat, script, []

    def play(self, episodes, **_):
        self.played.append(len(episodes))
        for e in episodes:
            e.begin(self.chat)
            goes_on = True
            while goes_on:
                step = env.step_of(e.messages)
                ids = [*self.chat.ids(self.script(e, step)), self.chat.end]
                logps = [-(1 + e.copy + i / 100) for i in range(len(ids))]
                goes_on = e.token_turn(self.chat, ids, logps) is not None


def three_steps(e, step):
    """A plan, two programs, an answer."""
    programs = {1: f"a = {e.copy}\nprint(a)", 2: "later = 7\nprint(a)", 3: "final_answer_print(a)"}
    return PLAN if step == 0 else say(programs[step])


@pytest.fixture
def chat(tokenizer):
    return env.Chat(tokenizer)


def played_groups(chat, questions, *more, script=three_steps, monkeypatch, entropies=None):
    monkeypatch.setattr(arpo.ranks, "most_over_ranks", lambda number: number)
    monkeypatch.setattr(entropy, "most_over_ranks", lambda number: number)
    given = entropies or (lambda episode, turn: 0.0)

    def turn_entropies(trainer, episodes, k, args):
        return [[[given(e, turn)] for turn in range(len(entropy.first_tokens(e.loss_mask, 1)))] for e in episodes]
    monkeypatch.setattr(arpo, "turn_entropies", turn_entropies)
    engine = Typist(chat, script)
    starts = [{"id": q, "question": q, "answer": "0"} for q in questions]
    args = flags("--group", "6", *more)
    return arpo.play(starts, args.group, engine, None, None, lambda e: None, args, 3), engine.played


def copied(branch):
    """The number of its inherited tokens, and the copy whose program `a = …` it has."""
    return branch.inherited, branch.messages[3]["content"].split("a = ")[1][0]


def test_a_branch_has_the_tokens_and_the_interpreter_of_its_place(chat):
    parent = env.Episode({"id": "x", "question": "q", "answer": "0"}, env.Interpreter(), copy=1)
    Typist(chat, three_steps).play([parent])
    assert parent.stop == "answer" and parent.prediction == "1"
    branch = arpo.Branch(parent, 2, copy=4)
    at = entropy.first_tokens(parent.loss_mask, 1)[2][0]
    assert (branch.ids, branch.loss_mask, branch.logps) == (parent.ids[:at], parent.loss_mask[:at], parent.logps[:at])
    assert branch.messages == parent.messages[:5] and branch.stop is None and branch.sampling_seed(0) != parent.sampling_seed(0)
    assert branch.tokens_left == branch.max_tokens - (at - parent.prompt_length)
    assert (branch.prompt_length, branch.inherited) == (parent.prompt_length, at - parent.prompt_length)
    branch.begin(chat)                                                           # as an engine does
    peek = "print('later' in globals(), a)\na = 50"
    ids = [*chat.ids(say(peek)), chat.end]
    assert branch.token_turn(chat, ids, [-3.0] * len(ids)) is not None
    assert branch.messages[-1]["content"] == "Observation: False 1"              # set before: there; after: not
    assert branch.ids[:at] == parent.ids[:at] and branch.ids[at:at + len(ids)] == ids and branch.calls == 3
    assert parent.interpreter.run("print(a)").text == "1"                        # and the parent is its own
    ids = [*chat.ids(say("a = 60")), chat.end]
    branch.token_turn(chat, ids, [-3.0] * len(ids))
    again = arpo.Branch(branch, 3, copy=5)                                       # a branch of a branch
    assert again.interpreter.run("print(a)").text == "50" and again.ids == branch.ids[:len(again.ids)]
    left = [again.first_step, again.last_step, again.max_steps]
    assert left == [parent.first_step, parent.last_step, parent.max_steps]


def test_decisions_by_hand(chat, monkeypatch):
    """P = 0.5 + 0.2 dH with --branch-threshold 0.5: where the entropy rises. V is the tokenizer's."""
    def rises(e, turn):                                 # of rollout 1 before step 2, of rollout 2 before step 3
        return 9.0 if (e.copy, turn) in {(1, 2), (2, 3)} else 1.0 if turn else 2.0
    (group,), waves = played_groups(chat, ["q"], "--branch-threshold", "0.5", "--initial-rollouts", "3",
                                    monkeypatch=monkeypatch, entropies=rises)
    assert waves == [3, 2, 1]          # two branches; they see no rise after their place, so the last one is a new rollout
    assert [e.copy for e in group] == [0, 1, 2, 3, 4, 5] and [e.inherited > 0 for e in group] == [False] * 3 + [True] * 2 + [False]
    places = [len(entropy.first_tokens(e.loss_mask[:e.prompt_length + e.inherited], 1)) for e in group]
    assert places == [0, 0, 0, 2, 3, 0] and [copied(e)[1] for e in group[3:5]] == ["1", "2"]
    assert [e.prediction for e in group] == ["0", "1", "2", "1", "2", "5"]
    # earlier steps first, a plan is no tool, one branch a place, no more than there is room for
    (group,), waves = played_groups(chat, ["q"], "--branch-threshold", "0.5", "--initial-rollouts", "3",
                                    monkeypatch=monkeypatch, entropies=lambda e, turn: float(turn > 0))
    assert waves == [3, 3] and [copied(e)[1] for e in group[3:]] == ["0", "1", "2"]
    assert [len(entropy.first_tokens(e.loss_mask[:e.prompt_length + e.inherited], 1)) for e in group[3:]] == [2, 2, 2]
    (group,), waves = played_groups(chat, ["q"], "--branch-threshold", "0.5", "--initial-rollouts", "1", "--beam-size", "4",
                                    monkeypatch=monkeypatch, entropies=lambda e, turn: float(turn > 0))
    places = [len(entropy.first_tokens(e.loss_mask[:e.prompt_length + e.inherited], 1)) for e in group]
    assert waves == [1, 5] and places == [0, 2, 2, 2, 3, 3]                   # three tries a place


@pytest.mark.parametrize("more", [(), ("--initial-rollouts", "6"), ("--initial-rollouts", "99"), ("--beam-size", "1"),
                                  ("--initial-rollouts", "1"), ("--branch-probability", "1")], ids=str)
def test_groups_are_full_and_shared_tokens_are_paid_once(more, chat, monkeypatch):
    groups, waves = played_groups(chat, ["q", "r"], *more, monkeypatch=monkeypatch)
    assert [len(g) for g in groups] == [6, 6] and sum(waves) == 12
    assert all(e.stop == "answer" and [e.copy for e in g] == [*range(6)] for g in groups for e in g)
    branched = sum(e.inherited > 0 for g in groups for e in g)
    assert branched == 0 if more in [("--initial-rollouts", "6"), ("--initial-rollouts", "99"), ("--beam-size", "1")] else branched > 0
    rollouts = [packing.Rollout(e.ids, e.loss_mask, e.logps, 1.0, e.prompt_length) for e in groups[0]]
    packing.pack_groups([rollouts], "cpu")                                       # one prompt for all of a group
    assert len({tuple(e.ids[:e.prompt_length]) for e in groups[0]}) == 1
    monkeypatch.setattr(rl_log, "sum_counts", lambda counts: counts)
    monkeypatch.setattr(rl_log, "most_over_ranks", lambda number: number)
    trajectories = [[e.trajectory() | {"reward": 1.0} for e in g] for g in groups]
    row = rl_log.rollout_row(groups, trajectories, [rollouts, []], 0)
    shared = sum(sum(e.loss_mask[:e.prompt_length + e.inherited]) for g in groups for e in g)
    assert row["step_tokens"] == sum(sum(e.loss_mask) for g in groups for e in g) - shared
    assert (shared > 0) == (branched > 0) and row["turns"] == 4


def test_the_seed_decides_whatever_else_a_rank_plays(chat, monkeypatch):
    tree = lambda g: [(e.messages, e.ids, e.inherited) for e in g]
    play = lambda *questions, more=(): played_groups(chat, questions, *more, monkeypatch=monkeypatch)[0]
    together = play("q", "r", "s")
    assert [tree(g) for g in together] == [tree(play(q)[0]) for q in "qrs"]
    assert len({str([e.inherited for e in g]) for g in together}) > 1
    others = [play("q", more=("--sampling-seed", str(seed)))[0] for seed in range(1, 5)]
    assert any(tree(g) != tree(together[0]) for g in others)


# ---- the command ----

def test_flags_and_data(tmp_path):
    args = flags()
    assert (args.start_at, args.group, args.beam_size, args.branch_probability, args.entropy_weight, args.entropy_tokens,
            args.branch_threshold, args.initial_rollouts) == ("question", 16, 2, 0.5, 0.2, 20, None, None)
    data = write(tmp_path / "tasks.jsonl", [{"id": "a", "question": "Why?", "answer": "b"}])
    assert Starts(str(data), "question").start(0)["messages"] == [{"role": "user", "content": "Why?"}]
    with pytest.raises(InputError, match="messages"):
        Starts(str(data), "fixed")


KEYS = ("reward", "reward_std", "reward_correct", "reward_format", "reward_both_tools", "zero_variance", "response_tokens",
        "step_tokens", "generated_tokens", "turns", "entropy", "loss", "grad_norm")


@pytest.mark.slow
def test_a_run_that_is_killed_is_that_of_two_ranks(tmp_path, trained_student, teacher_url):
    data = write(tmp_path / "tasks.jsonl", tasks(8))
    command = lambda out: ["--model", trained_student, "--data", str(data), "--out", str(out), "--search",
                           f"http:{teacher_url}/search", "--no-preload", "--dtype", "fp32", "--prompts", "4", "--mini-batch", "2",
                           "--group", "6", "--initial-rollouts", "2", "--steps", "2", "--lr", "1e-3", "--max-steps", "4",
                           "--max-tokens", "120", "--max-failed", "1", "--save-every", "1"]
    one = tmp_path / "one"
    kill_when([sys.executable, os.path.join(ROOT, "baselines", "arpo.py"), *command(one)],
              lambda n: (one / "state" / "latest").exists(), 1)
    script("baselines/arpo.py", *command(tmp_path / "two"), ranks=2)
    rows, others = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in rows] == [r["step"] for r in others] == [1, 2] and rows[0]["updates"] > 0
    assert all(r["logp_gap_max"] < 1e-4 and r["outside_first"] == 0 for r in rows)       # branches' log-probs as well
    assert any(r["step_tokens"] < 24 * r["response_tokens"] - 1 for r in rows)           # some tokens are shared
    assert [others[0][k] for k in KEYS] == pytest.approx([rows[0][k] for k in KEYS], abs=1e-4)
    assert (one / "model.safetensors").exists()
