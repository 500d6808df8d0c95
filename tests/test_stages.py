"""The stages as a user runs them: corrections and rewinding, kills and resumes, ranks, bad input."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import env
import grpo_short
import judge
import mps
import teacher as demo_teacher
import world
from conftest import ROOT, script
from plumbing import rl_log
from plumbing.search import make_search
from plumbing.trajectory import step_of


def tasks(n, seed=0, split="t"):
    import random
    return world.make_tasks(random.Random(seed), split, n, set(), math=(2, 3), hops=(2, 3))


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def lines(path):
    return [json.loads(line) for line in open(path)]


class Scripted:
    """A student that takes the teacher's steps, or `wrong(task, step, messages)` where that gives one.

    After a wrong step it gives a wrong answer, unless it is `stubborn` and goes on.
    """
    batched = True

    def __init__(self, wrong, stubborn=False):
        self.wrong, self.stubborn, self.taken = wrong, stubborn, set()

    def play(self, episodes, progress=None, **_):
        for e in episodes:
            while e.stop is None:
                guide = demo_teacher.Task(e.messages[0]["content"])
                for k, m in enumerate(e.messages[1::2]):
                    guide.take(m["content"], first=k == 0)
                k = step_of(e.messages)
                right = (f"<first_thought>{demo_teacher.PLANS[guide.kind]}</first_thought>"
                         if k == 0 else guide.next(False))
                wrong = self.wrong(e.task, k, e.messages)
                if not self.stubborn and any(m["content"] in self.taken for m in e.messages):
                    wrong = "<thought>Enough.</thought><code>final_answer_print(0)</code>"
                elif wrong and "harmless" not in wrong:
                    self.taken.add(wrong)
                e.turn(wrong or right)


def mentor(teacher_url, task, wrong, corrections=5, stubborn=False):
    found = []
    args = mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", teacher_url,
                           "--corrections", str(corrections)])
    search = make_search(f"http:{teacher_url}/search")
    mps.play([task], Scripted(wrong, stubborn), judge.Teacher.from_args(args), search, args, found.append)
    return found[0].record()


CHAIN = dict(id="a", question="Cy has 6 pears, plus 3, times 2. How many pears does Cy have?", answer="18")
BAD = "<thought>Cy has 7.</thought><code>Cy=7\nleft_behind=1\nprint(Cy)</code>"


def test_the_first_wrong_step_is_corrected_once_and_the_interpreter_rewound(teacher_url):
    peek = "<thought>harmless</thought><code>Cy=Cy+3\nprint('left_behind' in globals(), Cy)</code>"
    seen = []

    def wrong(task, step, messages):
        if step == 1:
            seen.append(messages)
            return BAD
        return peek if step == 2 else None
    r = mentor(teacher_url, CHAIN, wrong)
    assert r["outcome"] == "corrected" and r["prediction"] == "18" and len(seen) == 1
    (c,) = r["corrections"]
    assert (c["step"] == 1 and c["rejected"] == {"content": BAD, "observation": "7"}
            and c["chosen"]["observation"] == "6")
    assert (r["messages"][3]["content"] == c["chosen"]["content"]
            and r["messages"][6]["content"] == "Observation: False 9")
    assert r["usage"]["teacher_calls"] == 2 and r["usage"]["student_calls"] > 3


def test_a_wrong_plan_is_corrected_and_keeps_its_pair(teacher_url):
    r = mentor(teacher_url, CHAIN,
               lambda task, step, messages: "<first_thought>I guess.</first_thought>" if step == 0 else None)
    assert r["outcome"] == "corrected" and r["corrections"][0]["step"] == 0
    assert r["corrections"][0]["rejected"]["content"] == "<first_thought>I guess.</first_thought>"


def test_a_turn_without_a_word_is_corrected(teacher_url):
    """A student that is hardly trained may end its turn at once."""
    r = mentor(teacher_url, CHAIN, lambda task, step, messages: " " if step == 0 else None)
    assert r["outcome"] == "corrected" and r["corrections"][0]["rejected"]["content"].strip() == ""
    r = mentor(teacher_url, CHAIN, lambda task, step, messages: " " if step == 2 else None)
    assert r["outcome"] == "corrected" and r["corrections"][0]["step"] == 2


def test_each_correction_is_anchored_on_its_own_prefix(teacher_url):
    """Two errors at different steps: two pairs, both prefixes in the solved run; their RL records replay."""
    def wrong(task, step, messages):
        return {1: BAD, 3: "<thought>Cy is 5.</thought><code>Cy=5\nprint(Cy)</code>"}.get(step)
    r = mentor(teacher_url, CHAIN, wrong)
    assert [c["step"] for c in r["corrections"]] == [1, 3] and r["interventions"] == 2
    starts = mps.key_steps(r, {k: r[k] for k in ("id", "question", "answer")}, "all")
    assert [s["messages"] for s in starts] == [r["messages"][:3], r["messages"][:7]]
    assert ([s["chosen"]["observation"] for s in starts] == ["6", "18"]
            and starts[1]["rejected"]["observation"] == "5")
    assert mps.key_steps(r, {}, "last")[0]["messages"] == r["messages"][:7]
    for s in starts:
        env.replay(s["messages"], env.Interpreter())
    broken = [*starts[1]["messages"][:4], {"role": "user", "content": "Observation: 7"}]
    with pytest.raises(env.ReplayMismatch, match="step 1"):
        env.replay(broken, env.Interpreter())


def test_a_student_that_always_errs_makes_a_hard_task(teacher_url):
    for corrections in (0, 2):  # errs on every turn that is left to it
        r = mentor(teacher_url, CHAIN, lambda *_: BAD, corrections)
        assert r["outcome"] == "hard" and not r["correct"] and r["interventions"] == corrections


def test_a_run_without_an_answer_is_corrected_like_any_error(teacher_url):
    idle = "<thought>Cy has 6.</thought><code>Cy=6\nprint(Cy)</code>"
    lazy = lambda task, step, messages: idle if step >= 2 and "Cy+3" not in str(messages) else None
    r = mentor(teacher_url, CHAIN, lazy, stubborn=True)
    assert r["outcome"] == "corrected" and r["corrections"][0]["step"] == 2  # the first step without progress
    r = mentor(teacher_url, CHAIN, lambda task, step, messages:
               "no tags" if step == 2 and "no tags" not in str(messages) else None)
    assert r["outcome"] == "corrected" and r["corrections"][0]["rejected"]["content"] == "no tags"


def test_the_teacher_accepts_other_orders_and_harmless_detours():
    question = "Cy has 6 pears, plus 3, minus 4, times 2. How many pears does Cy have?"
    step = lambda code: (f"<thought>x</thought><code>{code}</code>", "")
    plan = (f"<first_thought>{demo_teacher.PLANS['math']}</first_thought>", "None")
    first_wrong = lambda *codes: json.loads(
        demo_teacher.verdict(question, [plan, *map(step, codes)], "0", 0, None))["first_wrong_step"]
    assert first_wrong("Cy=6", "Cy=Cy+3", "Cy=Cy*2") == 3
    assert first_wrong("Cy=6", "Cy=Cy-4", "Cy=Cy+3", "Cy=Cy*3") == 4           # minus before plus is as good
    assert first_wrong("Cy=6", "Cy=Cy*2") == 2                                 # times before plus is not
    assert first_wrong("Cy=6", "b=5", "b=b*2", "final_answer_print(Cy)") == 4  # two at once, another variable
    assert first_wrong("Cy=6", "Cy=Cy", "Cy=Cy+3") == 2  # none wrong: the first idle step


# ---- processes ----

def mps_command(folder, checkpoint, teacher_url):
    return [sys.executable, os.path.join(ROOT, "mps.py"), "--tasks", str(folder / "tasks.jsonl"),
            "--student", checkpoint, "--out", str(folder / "mps"), "--teacher-url", teacher_url,
            "--search", f"http:{teacher_url}/search", "--batch", "4", "--max-tokens", "60",
            "--corrections", "2"]


def kill_when(command, condition, times):
    """kill -9 a command as often as `condition(n)` comes true, then let it run to its end."""
    for n in range(times):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)
        while process.poll() is None and not condition(n):
            time.sleep(0.05)
        assert process.poll() is None, f"ended with {process.poll()} before the kill"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_mps_survives_kills(tmp_path, checkpoint, teacher_url):
    write(tmp_path / "tasks.jsonl", tasks(24))
    shard = tmp_path / "mps" / "mps.rank0.jsonl"
    count = lambda: shard.read_bytes().count(b"\n") if shard.exists() else 0

    def condition(n):
        if count() < 4 * (n + 1):
            return False
        if n == 1:
            with open(shard, "a") as f:  # and one kill in the middle of a line
                f.write('{"id": "torn", "question"')
        return True
    kill_when(mps_command(tmp_path, checkpoint, teacher_url), condition, 2)
    assert (sorted(r["id"] for r in lines(tmp_path / "mps" / "mps.jsonl"))
            == sorted(t["id"] for t in tasks(24)))
    again = subprocess.run(mps_command(tmp_path, checkpoint, teacher_url), capture_output=True, text=True)
    assert again.returncode == 0 and len(lines(tmp_path / "mps" / "mps.jsonl")) == 24


def test_ranks_share_the_tasks(tmp_path, checkpoint, teacher_url):
    write(tmp_path / "tasks.jsonl", tasks(9))
    script("mps.py", *mps_command(tmp_path, checkpoint, teacher_url)[2:], ranks=2)
    assert [r["id"] for r in lines(tmp_path / "mps" / "mps.jsonl")] == [t["id"] for t in tasks(9)]


def test_bc_keeps_right_answers_and_resumes(demonstrations, teacher_url):
    records = lines(demonstrations)
    assert sorted(r["id"] for r in records) == [t["id"] for t in tasks(24)]
    assert all(r["prediction"] == r["answer"] and r["stop"] == "answer" for r in records)
    demonstrations.write_text("".join(json.dumps(r) + "\n" for r in records[:10]) + '{"id": "torn')
    script("bc.py", "--tasks", demonstrations.parent / "tasks.jsonl", "--out", demonstrations,
           "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search")
    assert sorted(r["id"] for r in lines(demonstrations)) == [t["id"] for t in tasks(24)]


def sft_flags(checkpoint, data, out, *more):
    return ["--model", checkpoint, "--data", data, "--out", out, "--dtype", "fp32", "--batch", 8,
            "--micro-batch", 2, "--steps", 6, "--lr", "1e-3", *more]


def losses(out):
    return [r["loss"] for r in lines(os.path.join(out, "metrics.jsonl"))]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, checkpoint, demonstrations):
    out = tmp_path_factory.mktemp("sft1")
    script("sft.py", *sft_flags(checkpoint, demonstrations, out))
    return losses(out)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_ranks_and_one_give_the_same_curve(zero, tmp_path, checkpoint, demonstrations, one_rank):
    script("sft.py", *sft_flags(checkpoint, demonstrations, tmp_path / "out", "--zero", zero), ranks=2)
    assert losses(tmp_path / "out") == pytest.approx(one_rank, abs=1e-4) and one_rank[-1] < one_rank[0] - 0.1
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters())]
    assert all(changed) and len(changed) > 10


def test_sft_resumes_to_the_bit(tmp_path, checkpoint, demonstrations, one_rank):
    out = tmp_path / "out"
    command = [sys.executable, os.path.join(ROOT, "sft.py"),
               *map(str, sft_flags(checkpoint, demonstrations, out, "--save-every", 2))]
    kill_when(command, lambda n: (out / "state" / "latest").exists(), 1)
    assert losses(out) == one_rank and not (out / "state").exists()


def grpo_records(n=6):
    """Starts with a verified prefix, from the scripted student, without a search."""
    found = []
    for t in (t for t in tasks(4 * n) if t["kind"] == "math"):
        guide = demo_teacher.Task(t["question"])
        plan = f"<first_thought>{demo_teacher.PLANS['math']}</first_thought>"
        messages = [{"role": "user", "content": t["question"]}, {"role": "assistant", "content": plan},
                    {"role": "user", "content": "Observation: None"}]
        found.append({**t, "kind": "key_step", "messages": messages,
                      "chosen": {"content": guide.next(False), "observation": "6"},
                      "rejected": {"content": "<thought>a</thought><code>1/0</code>",
                                   "observation": "Error"}})
    return found[:n]


def grpo_flags(checkpoint, data, out, teacher_url, *more):
    return ["--model", checkpoint, "--data", data, "--out", out, "--teacher-url", teacher_url,
            "--dtype", "fp32", "--prompts", 4, "--mini-batch", 2, "--group", 6, "--steps", 3, "--lr", "1e-3",
            "--max-tokens", 60, "--micro-batch", 4, *more]


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory, trained_student, teacher_url):
    folder = tmp_path_factory.mktemp("grpo")
    student = trained_student
    write(folder / "rl.jsonl", grpo_records())
    held_out = write(folder / "held_out.jsonl", [t for t in tasks(20, 1, "h") if t["kind"] == "math"])
    script("grpo_short.py", *grpo_flags(student, folder / "rl.jsonl", folder / "one", teacher_url,
                                        "--eval-tasks", held_out, "--eval-every", 2))
    return folder, student, lines(folder / "one" / "metrics.jsonl")


KEYS = ("reward", "reward_std", "reward_correct", "reward_chosen", "zero_variance", "start_step", "response_tokens",
        "longest_response", "generated_tokens", "turns", "tool_failures", "entropy", "loss", "grad_norm")


def test_grpo_logs_what_it_did(grpo_run):
    folder, student, rows = grpo_run
    assert [r["step"] for r in rows] == [1, 2, 3] and any(r["updates"] for r in rows)
    assert all(r["logp_gap_max"] < 1e-4 and r["outside_first"] == 0 for r in rows)      # engine and trainer agree
    assert all(0 < r["entropy"] < 6 for r in rows)  # nats a token; a uniform policy has more
    assert ["eval_accuracy" in r for r in rows] == [False, True, True]
    assert (folder / "one" / "best" / "config.json").exists() and (folder / "one" / "config.json").exists()
    assert (folder / "one" / "rollouts" / "step-1.txt").read_text().count("==== rollout") == 6
    shown = lines(folder / "one" / "rollouts.jsonl")
    assert (shown[0]["messages"][:3] == grpo_records()[0]["messages"][:3]
            or shown[0]["id"] in {r["id"] for r in grpo_records()})
    assert {"reward", "reward_correct", "reward_chosen", "reward_rejected"} <= set(shown[0])


def test_the_glossary_names_what_is_logged(grpo_run):
    """Each name of a row of metrics is explained once, and no other; so is each flag that the text names."""
    _, _, rows = grpo_run
    text = rl_log.__doc__.split("\n\n")[1]
    names = re.findall(r"(?m)^  ((?:\w+, )*\w+)(?:$|  )", text)
    explained = [name for line in names for name in line.split(", ")]
    assert len(set(explained)) == len(explained) > 40
    assert set(explained) - {"gpu_memory", "reward_undecided"} == {name for row in rows for name in row} - {"step"}
    said = script("grpo_short.py", "--help").stdout
    flags = set(re.findall(r"(?m)^  (--[a-z-]+)", said))
    assert rl_log.__doc__.strip() in said and set(re.findall(r"--[a-z-]+[a-z]", rl_log.__doc__)) <= flags
    assert set(re.findall(r"--[a-z-]+[a-z](?![a-z_-])", grpo_short.__doc__)) - {"--help"} <= flags
    assert sum(row["step_tokens"] for row in rows) == rows[-1]["generated_tokens"]
    assert all(row["start_step"] == 1 for row in rows)


@pytest.mark.slow
def test_failing_programs_stop_the_run_before_it_learns_from_them(grpo_run, tmp_path, teacher_url):
    folder, student, rows = grpo_run
    assert rows[0]["tool_failures"] > 0
    flags = grpo_flags(student, folder / "rl.jsonl", tmp_path / "out", teacher_url)
    message = complaint("grpo_short.py", *flags, "--max-failed", 0)
    assert "step 1: " in message and "of the programs ended in an error; --max-failed 0.0 allows no more" in message
    assert (tmp_path / "out" / "state" / "latest").exists() and not lines(tmp_path / "out" / "metrics.jsonl")
    script("grpo_short.py", *flags, "--max-failed", 1)
    for a, b in zip(rows, lines(tmp_path / "out" / "metrics.jsonl"), strict=True):
        assert [b[k] for k in KEYS] == pytest.approx([a[k] for k in KEYS], abs=1e-5)


@pytest.mark.slow
def test_grpo_resumes_to_the_exact_step(grpo_run, tmp_path, teacher_url):
    folder, student, rows = grpo_run
    out = tmp_path / "out"
    command = [sys.executable, os.path.join(ROOT, "grpo_short.py"),
               *map(str, grpo_flags(student, folder / "rl.jsonl", out, teacher_url, "--save-every", 1))]
    kill_when(command, lambda n: (out / "state" / "latest").exists(), 1)
    resumed = lines(out / "metrics.jsonl")
    assert [r["step"] for r in resumed] == [1, 2, 3]
    for a, b in zip(rows, resumed):
        assert [b[k] for k in KEYS] == pytest.approx([a[k] for k in KEYS], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--zero", 0), ("--zero", 2, "--max-generated-tokens", 1),
                                   ("--zero", 3, "--no-pack")], ids=str)
def test_grpo_on_two_ranks_makes_the_updates_of_one(flags, grpo_run, tmp_path, teacher_url):
    folder, student, rows = grpo_run
    script("grpo_short.py", *grpo_flags(student, folder / "rl.jsonl", tmp_path / "out", teacher_url, *flags),
           ranks=2)
    found = lines(tmp_path / "out" / "metrics.jsonl")
    assert [found[0][k] for k in KEYS] == pytest.approx([rows[0][k] for k in KEYS], abs=1e-4)
    assert found[0]["updates"] == 2 and found[0]["grad_norm"] > 1e-2
    assert len(found) == (1 if "--max-generated-tokens" in flags else 3)
    assert all(r["logp_gap"] < 1e-4 and r["outside_first"] == 0 for r in found)         # after each sync as well
    assert (tmp_path / "out" / "model.safetensors").exists()


# ---- bad input: one sentence, exit code 2 ----

def complaint(name, *args):
    done = script(name, *args, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_bad_input_is_named(tmp_path, checkpoint, teacher_url):
    good = write(tmp_path / "good.jsonl", tasks(2))
    (tmp_path / "torn.jsonl").write_text(
        json.dumps(tasks(1)[0]) + '\n{"id": 1, \n' + json.dumps(tasks(1)[0]) + "\n")
    write(tmp_path / "noanswer.jsonl", [{"id": "a", "question": "Why?"}])
    write(tmp_path / "nomessages.jsonl", [{"id": "a", "question": "Why?", "answer": "b"}])
    bc = lambda tasks, url=teacher_url: [
        "bc.py", "--tasks", tasks, "--out", tmp_path / "out.jsonl", "--teacher-url", url]
    assert "missing.jsonl" in complaint(*bc(tmp_path / "missing.jsonl"))
    assert "torn.jsonl, line 2" in complaint(*bc(tmp_path / "torn.jsonl"))
    message = complaint(*bc(tmp_path / "noanswer.jsonl"))
    assert "noanswer.jsonl, line 1" in message and "answer" in message
    assert "http://127.0.0.1:9" in complaint(*bc(good, "http://127.0.0.1:9"))
    message = complaint("sft.py", "--model", checkpoint, "--data", tmp_path / "nomessages.jsonl",
                        "--out", tmp_path / "x")
    assert "nomessages.jsonl, line 1" in message and "messages" in message
    assert "/nowhere" in complaint("sft.py", "--model", "/nowhere", "--data", good, "--out", tmp_path / "x")
    assert "/nowhere" in complaint("mps.py", "--tasks", good, "--student", "/nowhere",
                                   "--out", tmp_path / "x", "--teacher-url", teacher_url)
    message = complaint("grpo_short.py", *grpo_flags(checkpoint, good, tmp_path / "x", teacher_url))
    assert "good.jsonl, line 1" in message and "messages" in message


def test_a_model_without_chat_template_is_named(tmp_path, tokenizer, demonstrations):
    import copy

    import student
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    student.make_model(tokenizer, width=32).save_pretrained(tmp_path / "bare")
    bare.save_pretrained(tmp_path / "bare")
    message = complaint("sft.py", "--model", tmp_path / "bare", "--data", demonstrations,
                        "--out", tmp_path / "x")
    assert "chat template" in message and "bare" in message


@pytest.mark.parametrize("name", ["bc.py", "mps.py", "sft.py", "grpo_short.py", "eval.py", "judge.py",
                                  "demo/world.py", "demo/teacher.py"])
def test_help(name):
    assert "usage:" in script(name, "--help").stdout
