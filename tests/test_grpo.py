"""GRPO: packed groups against the plain path, the loss against other trainers, a toy that learns."""
import functools
import json
import math
import random
import time
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch

import env
import grpo_short
from plumbing.chat_api import BadReply, TeacherDown
from plumbing.cli import InputError
from plumbing.engines import TorchEngine, sample
from plumbing.models import LogProbs, load_model
from plumbing.packing import Rollout, pack_groups, pad_rollouts, share_prefixes
from plumbing.rewards import Rewards
from plumbing.rl_log import Updated, fault_of, rollout_row, show_rollouts, update_row
from plumbing.search import SearchFailed
from plumbing.starts import Starts
from test_sft import FAMILIES, tiny

ARGS = "--model m --data d --out o --teacher-url u".split()


def group(prompt, lengths, seed=0, vocabulary=61):
    """Rollouts with observations inside (loss_mask 0), some cut in mid-turn, all with an advantage."""
    rng, found = random.Random(seed), []
    prefix = [rng.randrange(vocabulary) for _ in range(prompt)]
    for n in lengths:
        mask = [1] + [int((i // 7) % 3 != 1) for i in range(1, n)]    # turns of 14, observations of 7 tokens
        ids = [rng.randrange(vocabulary) for _ in range(n)]
        old = [rng.uniform(-5, -3) * m for m in mask]
        found.append(Rollout(prefix + ids, [0] * prompt + mask, [0.0] * prompt + old, rng.uniform(-2, 2),
                             prompt))
    return found


GROUPS = [group(40, [33, 61, 8, 1, 60], 1), group(9, [5], 2), group(41, [90, 17, 90], 3),
          group(9, [30, 31], 4)]


class OneRank:
    """`update` without DeepSpeed: the policy is the engine, gradients are summed and kept."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(grpo_short.ranks, "sum_over_ranks", lambda *numbers, after=None: list(numbers))
        monkeypatch.setattr(grpo_short.ranks, "most_over_ranks", lambda number: number)
        monkeypatch.setattr(grpo_short, "optimizer_step", self.step)

    def step(self, engine, micro, loss_of, lr):
        self.passes = len(micro)
        for batch in micro:
            loss_of(*batch).backward()
        return 0.0

    def run(self, policy, groups, *flags, reference=None, whose="engine"):
        policy.zero_grad()
        args = grpo_short.parse_args(ARGS + list(flags))
        micro, tokens = grpo_short.mini_batch(groups, args, "cpu")
        old = grpo_short.anchor(policy, micro, whose, args.temperature)
        self.done = grpo_short.update(policy, micro, tokens, old, reference, args)
        return self.done.sums, {n: p.grad.clone() for n, p in policy.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", [("--row-tokens", "9999"), ("--row-tokens", "150"), ("--row-tokens", "1"),
                                   ("--kl", "0.3", "--dual-clip", "0", "--temperature", "0.7")])
def test_packed_groups_give_the_loss_and_gradients_of_the_plain_path(family, flags, monkeypatch):
    policy, trainer = LogProbs(tiny(family)), OneRank(monkeypatch)
    reference = LogProbs(tiny(family, initializer_range=0.28)) if "--kl" in flags else None
    plain = trainer.run(policy, GROUPS, "--no-pack", "--micro-batch", "3", *flags, reference=reference)
    assert trainer.passes == 4
    packed = trainer.run(policy, GROUPS, *flags, reference=reference)
    assert trainer.passes == {"9999": 1, "150": 5, "1": 11, "0.3": 1}[flags[1]]
    assert packed[0] == pytest.approx(plain[0], rel=1e-6, abs=1e-5) and abs(plain[0]["loss"]) > 0.01
    assert 0.05 < plain[0]["clip_fraction"] / plain[0]["tokens"] < 0.95 and (reference is None) == (plain[0]["kl"] == 0)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(packed[1][name], gradient, atol=1e-5, rtol=1e-5,
                                   msg=lambda m: f"{name}: {m}")
    assert min(g.abs().max() for g in plain[1].values()) > 1e-4


def test_an_observation_is_context_but_not_loss():
    """Another observation changes the log-probs after it, and has none itself."""
    policy, (r,) = LogProbs(tiny("qwen2")), group(10, [40])
    at = r.loss_mask.index(0, r.prompt_length)                                # the first token of an observation
    changed = r._replace(input_ids=r.input_ids[:at] + [(r.input_ids[at] + 1) % 61] + r.input_ids[at + 1:])
    logps = [policy(*pack_groups([[x]], "cpu")[:3]) for x in (r, changed)]
    before = sum(r.loss_mask[:at])
    assert len(logps[0]) == sum(r.loss_mask) and torch.equal(logps[0][:before], logps[1][:before])
    assert (logps[0][before:] - logps[1][before:]).abs().min() > 0


def test_rows_keep_to_their_budget():
    size = lambda part: part[0].prompt_length + sum(len(r.input_ids) - r.prompt_length for r in part)
    for budget in (1, 60, 100, 150, 10 ** 6):
        rows = share_prefixes(GROUPS, budget)
        sizes = [sum(map(size, row)) for row in rows]
        assert all(n <= budget or len(row) == len(row[0]) == 1 for n, row in zip(sizes, rows))
        assert all(r.prompt_length == part[0].prompt_length for row in rows for part in row for r in part)
        assert sorted(r for row in rows for part in row for r in part) == sorted(r for g in GROUPS for r in g)
    one, = share_prefixes(GROUPS, 10 ** 6)
    assert pack_groups(one, "cpu")[0]["input_ids"].shape == (1, sum(map(size, GROUPS)))     # P + G R, not G (P + R)


def test_a_pass_without_rollouts_has_no_gradient():
    """A rank with fewer rows than the others takes part in their passes."""
    for batch in pack_groups([], "cpu"), pad_rollouts([], "cpu"):
        policy = LogProbs(tiny("qwen3"))
        logps = policy(*batch[:3])
        (grpo_short.policy_loss(logps, batch[3], batch[4])[0].sum() / 7).backward()
        assert len(logps) == 0 and all(p.grad is None or not p.grad.any() for p in policy.parameters())


# ---- other trainers ----

def batch(G=4, B=3, T=19):
    torch.manual_seed(0)
    logps, old = torch.randn(B * G, T) * 0.3 - 2, torch.randn(B * G, T) * 0.3 - 2
    mask = (torch.arange(T) < torch.randint(3, T, (B * G, 1))).float() * (torch.rand(B * G, T) < 0.8)
    mask[:, 0] = 1
    return logps.requires_grad_(), old, mask, torch.rand(B, G).round(decimals=1)


def ours(logps, old, mask, rewards, dual_clip=0.0):
    advantages = grpo_short.group_advantages(rewards).flatten()                            # (B * G,)
    sampled = mask.bool()
    of_tokens = advantages[:, None].expand_as(logps)[sampled]
    losses, _ = grpo_short.policy_loss(logps[sampled], old[sampled], of_tokens, 0.2, dual_clip)
    loss = losses.mean()
    return advantages, loss, *torch.autograd.grad(loss, logps)


def same(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)


def test_against_the_formulas_of_trl_and_verl():
    """TRL: GRPOTrainer, loss_type "bnpo", beta 0; verl: compute_grpo_outcome_advantage, "token-mean"."""
    logps, old, mask, rewards = batch()
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = (centred / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
    ratio, a = torch.exp(logps - old), advantages[:, None]
    trl = (-torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a) * mask).sum() / mask.sum()
    gradient, = torch.autograd.grad(trl, logps, retain_graph=True)
    same(ours(logps, old, mask, rewards), (advantages, trl, gradient))
    losses = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
    losses = torch.where(a < 0, torch.min(-a * 3.0, losses), losses)                      # dual clip
    verl = (losses * mask).sum() / mask.sum()
    same(ours(logps, old, mask, rewards, 3.0), (advantages, verl, *torch.autograd.grad(verl, logps)))


def test_against_trl_itself():
    trl = pytest.importorskip("trl", reason="trl is not installed")
    logps, old, mask, rewards = batch()
    advantages, loss, gradient = ours(logps, old, mask, rewards)
    trainer = mock.MagicMock(loss_type="bnpo", beta=0.0, epsilon_low=0.2, epsilon_high=0.2, use_vllm=False,
                             importance_sampling_level="token", top_entropy_quantile=1.0,
                             aux_loss_enabled=False, off_policy_mask_threshold=None,
                             current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False)
    trainer.args.delta = None
    trainer.accelerator.gather = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer._get_per_token_logps_and_entropies.return_value = logps, torch.zeros_like(logps), None
    tokens = torch.zeros_like(mask, dtype=torch.long)
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, dict(
        prompt_ids=tokens[:, :2], prompt_mask=tokens[:, :2] + 1, completion_ids=tokens,
        completion_mask=torch.ones_like(tokens), tool_mask=mask, old_per_token_logps=old,
        advantages=advantages))
    same((loss, gradient), (theirs, *torch.autograd.grad(theirs, logps)))


def test_against_verl_itself():
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    logps, old, mask, rewards = batch()
    advantages, loss, gradient = ours(logps, old, mask, rewards, 3.0)
    B, G = rewards.shape
    last = torch.zeros_like(mask)
    last[:, -1] = rewards.flatten()                                        # a reward on the last token
    theirs, _ = core.compute_grpo_outcome_advantage(last, mask, np.repeat(np.arange(B), G))
    same([advantages[:, None] * mask], [theirs])
    theirs = core.compute_policy_loss(old, logps, theirs, mask, 0.2, 0.2, 0.2, 3.0, "token-mean")[0]
    same((loss, gradient), (theirs, *torch.autograd.grad(theirs, logps)))


# ---- it learns ----

def test_a_bandit_learns():
    """Two arms, tokens below and above 30, and one pays: learned in 40 updates by the script's functions."""
    torch.manual_seed(0)
    policy = LogProbs(tiny("qwen3", initializer_range=0.05))
    optimizer, question, means = torch.optim.AdamW(policy.parameters(), lr=3e-3), [5, 6, 7], []
    for _ in range(40):
        with torch.no_grad():
            logits = policy.model(torch.tensor([question])).logits[0, -1].expand(32, 61)
        tokens, old = sample(logits, torch.rand(32), 1.0, 1.0, 0)
        rewards = (tokens < 30).float()
        group = [Rollout(question + [token], [0, 0, 0, 1], [0.0] * 3 + [p], a, 3) for token, p, a in
                 zip(tokens.tolist(), old.tolist(), grpo_short.group_advantages(rewards).tolist())]
        *what, old, advantages = pack_groups([group], "cpu")
        logps = policy(*what)
        optimizer.zero_grad()
        grpo_short.policy_loss(logps, old, advantages)[0].mean().backward()
        optimizer.step()
        means.append(rewards.mean().item())
    assert 0.3 < means[0] < 0.7 and sum(means[-5:]) / 5 > 0.9


# ---- rollouts ----

def test_what_is_sampled_does_not_depend_on_ranks_or_batches(checkpoint):
    """Every other start on its own, in smaller batches, gives the rollouts that it gave among all of them."""
    model, chat = load_model(checkpoint, torch.float32), env.load_chat(checkpoint)
    starts = [dict(id=str(i), question="Cy has 6 pears." + " ?" * i, answer="6") for i in range(4)]

    def play(starts, batch):
        episodes = env.make_episodes(starts, 3, 2, 20)
        TorchEngine(model, chat, batch).play(episodes, seed=5)
        return [e.ids for e in episodes]
    together = play(starts, 128)
    assert len({str(ids) for ids in together}) == 12                       # every copy differs
    halves = [play(starts[rank::2], 2) for rank in range(2)]
    assert halves[0] == together[0:3] + together[6:9] and halves[1] == together[3:6] + together[9:12]


class Judge:
    """Finds an answer right, wrong, or cannot say."""

    def count(self, *_):
        pass

    def same_answer(self, question, prediction, answers, **how):
        how["usage"].update(calls=1, prompt_tokens=9, completion_tokens=4)
        if prediction == "unclear":
            raise BadReply("no verdict")
        return prediction == "yes"


def finished(stop, prediction=None, lost=False, n=5):
    e = env.Episode(dict(id="a", question="q", answer="right", key=None), mock.Mock(lost=lost))
    e.stop, e.prediction, e.prompt_length = stop, prediction, 2
    e.ids, e.loss_mask, e.logps = [1] * (2 + n), [0, 0] + [1] * n, [0.0] * 2 + [-1.0] * n
    return e


@pytest.fixture
def alone(monkeypatch):
    """What is summed over ranks, for one rank without torchrun."""
    monkeypatch.setattr("plumbing.rl_log.sum_counts", lambda counts: counts)
    monkeypatch.setattr("plumbing.rl_log.most_over_ranks", lambda number: number)
    monkeypatch.setattr("plumbing.rl_log.gather_over_ranks", lambda numbers: numbers)


def reward_of(args, judge):
    return functools.partial(grpo_short.reward, judge=judge, args=args)


def test_what_failed_is_dropped_and_counted(alone):
    """A failed search, a dead interpreter, an unusable verdict: no reward of 0, not the end of a run."""
    groups = [[finished("answer", "yes"), finished("failed"), finished("max_steps"),
               finished("answer", "yes", lost=True), finished("answer", "unclear")],
              [finished("failed"), finished("failed")],
              [finished("max_tokens"), finished("answer", "no", n=9)]]
    groups[0][0].programs, groups[0][0].failed_programs, groups[2][0].programs = 3, 1, 2
    trajectories = Rewards(reward_of(grpo_short.parse_args(ARGS), Judge()), 4).collect(groups)
    trained = [grpo_short.to_train(*both) for both in zip(groups, trajectories)]
    assert [[round(r.advantage, 3) for r in group] for group in trained] == [[0.707, -0.707], [], [0, 0]]
    row = rollout_row(groups, trajectories, trained, 1)
    assert row == pytest.approx(dict(
        reward=0.25, reward_std=math.sqrt(3) / 4, reward_correct=0.25, reward_chosen=0, reward_rejected=0,
        zero_variance=2 / 3, judge_calls=3, judge_tokens=12, dropped=5 / 9, start_step=0, skipped=0.25, turns=0, tool_use=2 / 9, tool_failures=0.2,
        stop_answer=4 / 9, stop_max_steps=1 / 9, stop_max_tokens=1 / 9, stop_format=0, stop_failed=3 / 9,
        response_tokens=49 / 9, longest_response=9, step_tokens=49, entropy=1.0))
    assert [t.get("reward") for t in trajectories[0]] == [1.0, None, 0.0, None, None]
    assert fault_of(row, 0.5) == ("56% of the rollouts were dropped, since search, interpreter or judge failed; "
                                  "--max-failed 0.5 allows no more")
    assert fault_of(row, 0.56) is None
    assert "25% of the starts were left out" in fault_of(row, 0.24)
    assert "20% of the programs ended in an error" in fault_of(row | {"dropped": 0, "skipped": 0}, 0.19)


def test_a_reward_is_asked_for_when_its_episode_ends():
    """One that plays on does not keep the judge from the others; one whose end nobody reported is asked last."""
    seen = []
    rewards = Rewards(lambda t: seen.append(t["id"]) or (1.0, {}), 1)
    start = dict(id="first", question="q", answer="a")
    done, playing, quiet = [env.Episode({**start, "id": name}, mock.Mock(lost=False), on_end=rewards.ask)
                            for name in ("done", "playing", "quiet")]
    chat = mock.Mock(end=0, stray=())
    chat.tokenizer.decode.return_value = "no code, at step 0"
    done.token_turn(chat, [5, 0], [-1.0, -1.0])
    rewards.asked[done].result()
    assert seen == ["done"] and done.stop == "format"
    playing.token_turn(chat, [5], [-1.0])                 # cut off
    quiet.stop = "max_steps"
    assert [t["reward"] for t in rewards.collect([[quiet, playing, done]])[0]] == [1.0] * 3
    assert seen == ["done", "playing", "quiet"] and not rewards.asked


def test_a_judge_that_is_down_is_not_asked_for_all_the_others():
    asked = []

    def reward(trajectory):
        asked.append(trajectory["id"])
        time.sleep(0.05)
        raise TeacherDown("no reply")
    rewards = Rewards(reward, 1)
    episodes = [env.Episode(dict(id=str(i), question="q", answer="a"), mock.Mock(lost=False)) for i in range(50)]
    with pytest.raises(TeacherDown):
        rewards.collect([episodes])
    rewards.pool.shutdown()
    assert len(asked) < 5 and episodes[0].interpreter.close.called


def test_an_engine_reports_every_end_once(checkpoint):
    """Before the others have ended: an episode cut off after 3 tokens is reported while others have 40."""
    ended = []
    starts = [dict(id=str(i), question="Cy has 6 pears." + " ?" * i, answer="6") for i in range(6)]
    episodes = []
    for i, start in enumerate(starts):
        episodes += env.make_episodes([start], 1, 2, 3 if i == 0 else 40,
                                      on_end=lambda e: ended.append((e.task["id"], [x.stop for x in episodes])))
    TorchEngine(load_model(checkpoint, torch.float32), env.load_chat(checkpoint)).play(episodes, seed=5)
    assert sorted(name for name, _ in ended) == list("012345") and all(e.stop for e in episodes)
    first, stops = ended[0]
    assert stops.count(None) >= 1 and episodes[int(first)].stop == stops[int(first)]


def test_a_prefix_whose_search_fails_is_skipped_with_its_reason():
    def broken(query):
        raise SearchFailed("quota")
    messages = [{"role": "user", "content": "q"},
                {"role": "assistant", "content": "<code>print(web_search('a'))</code>"},
                {"role": "user", "content": "Observation: b"}]
    skipped = []
    episodes = env.make_episodes([dict(id="a", question="q", answer="b", messages=messages),
                                  dict(id="b", question="q", answer="b")], 2, search=broken, skipped=skipped)
    assert [e.task["id"] for e in episodes] == ["b", "b"] and [str(why) for _, why in skipped] == ["quota"]
    with pytest.raises(SearchFailed):
        env.make_episodes([dict(id="a", question="q", answer="b", messages=messages)], search=broken)


@pytest.mark.parametrize("live, expected", [([0], 0.5), ([1], 0.25), ([2], 0.125), ([1, 2], 0.25), ([], 0.0)])
def test_the_gap_is_that_of_the_first_update_with_a_live_group(live, expected, alone):
    idle = Updated(Counter(), [], None)
    updates = [idle] * 3
    for i in live:
        gap = 0.5 / 2 ** i
        updates[i] = Updated(Counter(tokens=4, outside=i, clip_fraction=1, ratio=4.4), [0, 0, gap, 3 * gap], 1.0)
    row = update_row(updates)
    assert row["logp_gap"] == expected and row["logp_gap_max"] == 3 * expected
    assert 2.9 * expected <= row["logp_gap_p99"] <= 3 * expected
    assert row["outside_first"] == (live[0] / 4 if live else 0) and row["updates"] == len(live)
    assert row["clip_fraction"] == (0.25 if live else 0) and row["ratio"] == pytest.approx(1.1 if live else 0)


# ---- whose log-probs pi_old is ----

def test_the_trainer_as_anchor_has_no_token_outside_the_clip_range(monkeypatch):
    """The engine's log-probs in GROUPS are far off: clipped with them, weighed (and capped) with the trainer's."""
    policy, trainer = LogProbs(tiny("qwen3")), OneRank(monkeypatch)
    by_engine, _ = trainer.run(policy, GROUPS, "--row-tokens", "150")
    by_trainer, gradients = trainer.run(policy, GROUPS, "--row-tokens", "150", whose="trainer")
    assert by_engine["outside"] > 0.3 * by_engine["tokens"] and by_trainer["outside"] == 0
    assert by_trainer["ratio"] == pytest.approx(by_trainer["tokens"], abs=1e-3)
    assert max(trainer.done.gaps) > 0.2                      # still measured against the engine
    plain, by_padding = trainer.run(policy, GROUPS, "--no-pack", whose="trainer")
    assert plain["loss"] == pytest.approx(by_trainer["loss"], abs=1e-5)
    for name, gradient in by_padding.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cap", [5.0, 2.0, 1.0])
def test_truncated_importance_weights_by_hand(cap):
    """Trainer at the policy itself, engine at 4, 1.5 and 0.25 times less: w = min(4, cap), min(1.5, cap), 0.25."""
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    engine = logps.detach() - torch.log(torch.tensor([4.0, 1.5, 0.25]))
    args = grpo_short.parse_args(ARGS + ["--tis-cap", str(cap)])
    loss, _ = grpo_short.grpo_loss(logps, logps.detach(), engine, torch.tensor([1.0, -1.0, 2.0]), None, 3, args)
    weights = [min(w, cap) for w in (4, 1.5, 0.25)]
    assert loss.item() == pytest.approx(-(weights[0] - weights[1] + 2 * weights[2]) / 3)
    loss.backward()
    assert logps.grad.tolist() == pytest.approx([-weights[0] / 3, weights[1] / 3, -2 * weights[2] / 3])


# ---- starts ----

def starts_file(tmp_path, *steps):
    """Records whose error is at these steps."""
    lines = []
    for i, k in enumerate(steps):
        messages = [{"role": "user", "content": f"q{i}"}]
        for step in range(k):
            messages += [{"role": "assistant", "content": f"step {step}"}, {"role": "user", "content": "Observation: None"}]
        chosen = {"content": "c", "observation": "1"} if k else None
        lines.append(dict(id=str(i), question=f"q{i}", answer="b", messages=messages, chosen=chosen))
    (tmp_path / "rl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "rl.jsonl")


def test_starts_that_are_alike_are_played_differently(tmp_path):
    """Two records of one task, both at the question, and one record twice: no rollout is paid for twice."""
    path = starts_file(tmp_path, 2, 3)
    text = (tmp_path / "rl.jsonl").read_text().replace('"id": "1", "question": "q1"', '"id": "0", "question": "q0"')
    (tmp_path / "rl.jsonl").write_text(text.replace('"content": "q1"', '"content": "q0"'))
    starts = Starts(path, "question")
    episodes = [env.Episode(start, mock.Mock()) for start in starts.batch(range(4), 0)]
    assert len({str(e.messages) for e in episodes}) == 1 and len({e.sampling_seed(0) for e in episodes}) == 4
    again = [env.Episode(start, mock.Mock()).sampling_seed(0) for start in starts.batch(range(0, 4, 2), 0)]
    assert again == [e.sampling_seed(0) for e in episodes][::2]           # whichever rank plays it


def test_a_resumed_run_is_told_that_its_file_of_starts_has_changed(tmp_path):
    path = starts_file(tmp_path, 3, 2)
    starts = Starts(path, "fixed")
    again = Starts(path, "fixed")
    again.resume(starts.saved())
    again.resume(None)
    starts_file(tmp_path, 3, 2, 1)
    with pytest.raises(InputError, match="rl.jsonl holds other records than when this run began"):
        Starts(path, "fixed").resume(starts.saved())


def test_published_tasks_are_starts_at_the_question(tmp_path):
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}) + "\n")
    start = Starts(str(tmp_path / "tasks.jsonl"), "question").start(0)
    assert start["id"] and start["answer"] == "4" and start["messages"] == [{"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize("how, lengths, keys", [("fixed", [7, 1], [3, None]), ("question", [1, 1], [None, None])])
def test_rollouts_begin_before_the_error_or_at_the_question(how, lengths, keys, tmp_path):
    starts = Starts(starts_file(tmp_path, 3, 0), how)
    assert [len(starts.start(i)["messages"]) for i in range(2)] == lengths
    assert [starts.start(i)["key"] for i in range(2)] == keys


def test_rollouts_are_shown_as_text(tmp_path):
    e = finished("answer", "yes")
    e.messages.append({"role": "assistant", "content": "<thought>a</thought><code>1</code>"})
    r = {**e.trajectory(), "reward": 1.0, "reward_correct": True, "reward_chosen": False}
    with open(tmp_path / "rollouts.jsonl", "w") as f:
        show_rollouts(f, str(tmp_path / "rollouts"), 7, [r, r])
    text = (tmp_path / "rollouts" / "step-7.txt").read_text()
    assert text.count("reward 1.0 (correct), stop answer, prediction yes, answer right") == 2
    assert text.count("<thought>a</thought>") == 2
    assert (tmp_path / "rollouts.jsonl").read_text().count("\n") == 2


def test_rewards_of_another_run_are_no_rewards_of_this_one(tmp_path):
    record = dict(id="a", question="q", answer="b", messages=[{"role": "user", "content": "q"}], kind="hard",
                  reward=1.0, reward_model={"style": "rule"})
    (tmp_path / "rl.jsonl").write_text(json.dumps(record) + "\n")
    start = Starts(str(tmp_path / "rl.jsonl"), "fixed").start(0)
    assert set(start) == {"id", "question", "answer", "messages", "kind", "key"}
