"""Mentored problem-solving: faults, kills, the first error, and what may not reach the training data."""
import copy
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import types

import pytest

import judge
import mps
import plumbing.chat_api
import sft
import teacher as demo_teacher
from conftest import ROOT, script, send_json
from plumbing.chat_api import TeacherDown
from plumbing.decontaminate import word_ngrams
from plumbing.replies import leaked, tokens
from plumbing.search import search_from_args
from test_stages import BAD, CHAIN, Scripted, lines, tasks, write

DATA = os.path.join(ROOT, "..", "shared", "data", "score_release")


def options(url, *more):
    return mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", url,
                           "--search", f"http:{url}/search", *map(str, more)])


def play(given, engine, args):
    """-> the records, by id; each task must be settled once."""
    found = []
    mps.play(given, engine, judge.Teacher.from_args(args), search_from_args(args), args, found.append)
    records = {m.task["id"]: m.record() for m in found}
    assert len(found) == len(records) == len(given)
    return records


SLIP = "<thought>I guess.</thought><code>final_answer_print(0)</code>"


class Erring(Scripted):
    """A student that errs in a third of its steps, depending on the task and the messages alone."""

    def __init__(self):
        super().__init__(self.errs, stubborn=True)

    @staticmethod
    def errs(task, step, messages):
        if random.Random(f"{task['id']} {step} {len(str(messages)) % 5}").random() < 0.35:
            return SLIP if step else "<first_thought>No.</first_thought>"


def outcomes(records):
    return {name: r["outcome"] for name, r in records.items()}


@pytest.mark.slow
def test_a_faulty_teacher_changes_nothing(teacher_url, monkeypatch):
    """10 % each: HTTP 500, 429 with Retry-After, silence, cut replies, half texts, steps that do not exist."""
    impatient = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: time.sleep(min(seconds, 0.1))})
    monkeypatch.setattr(plumbing.chat_api, "time", impatient)
    flags = ["--port", "0", "--faults", "0.1", "--hang", "1"]
    server, url = demo_teacher.serve(demo_teacher.parse_args(flags))
    given = tasks(60)
    undisturbed = outcomes(play(given, Erring(), options(teacher_url, "--corrections", 1)))
    spoilt = play(given, Erring(), options(url, "--corrections", 1, "--timeout", 0.5, "--reasks", 8))
    server.shutdown()
    assert outcomes(spoilt) == undisturbed and {"solved", "corrected", "hard"} == set(undisturbed.values())


def test_what_stays_unusable_is_kept_as_failed_with_the_reply(teacher_url, monkeypatch):
    monkeypatch.setattr(demo_teacher, "verdict", lambda *_: "I cannot say.")
    records = play([CHAIN], Scripted(lambda *_: BAD), options(teacher_url)).values()
    assert [r["outcome"] for r in records] == ["failed"] and "I cannot say." in [*records][0]["reason"]


def test_a_correction_that_stays_unusable_keeps_the_whole_failed_run(teacher_url, monkeypatch):
    honest = demo_teacher.reply

    def reply(system, *rest):
        return "I cannot." if system.startswith(judge.PROMPT["CORRECT"].split("\n")[0]) else honest(system, *rest)
    monkeypatch.setattr(demo_teacher, "reply", reply)
    record, = play([CHAIN], Scripted(lambda task, step, messages: BAD if step == 1 else None),
                   options(teacher_url)).values()
    assert record["outcome"] == "failed" and "I cannot." in record["reason"] and record["corrections"] == []
    assert record["stop"] == "answer" and record["prediction"] == "0" and len(record["messages"]) == 6


def test_what_a_judge_of_its_own_costs_is_recorded_apart(teacher_url):
    vague = "<thought>I guess.</thought><code>final_answer_print('a handful, or so')</code>"
    one, two = (play([CHAIN], Scripted(lambda task, step, messages: vague if step == 1 else None), options(teacher_url, *flags))
                for flags in ([], ["--judge-url", teacher_url]))
    together, apart = one[CHAIN["id"]], two[CHAIN["id"]]
    assert together | {"usage": {}} == apart | {"usage": {}} and together["outcome"] == "corrected"
    assert not any(name.startswith("judge") for name in together["usage"]) and apart["usage"]["judge_calls"] >= 1
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        both = apart["usage"][f"teacher_{name}"] + apart["usage"][f"judge_{name}"]
        assert together["usage"][f"teacher_{name}"] == both and apart["usage"][f"judge_{name}"] > 0


def test_a_dead_teacher_ends_the_run(teacher_url):
    args = options(teacher_url, "--retries", 1)
    teacher = judge.Teacher("http://127.0.0.1:9", "m", retries=1, backoff=0.01)
    with pytest.raises(TeacherDown, match="127.0.0.1:9"):
        mps.play(tasks(20), Scripted(lambda *_: BAD), teacher, search_from_args(args), args, print)


class StudentServer(http.server.BaseHTTPRequestHandler):
    """A student behind an OpenAI-compatible endpoint that errs in its first step of a task of mathematics."""

    def do_POST(self):
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        guide = demo_teacher.Task(messages[0]["content"])
        for k, m in enumerate(messages[1::2]):
            guide.take(m["content"], first=k == 0)
        plan = f"<first_thought>{demo_teacher.PLANS[guide.kind]}</first_thought>"
        text = plan if len(messages) == 1 else guide.next(False)
        text = SLIP if len(messages) == 3 and guide.kind == "math" else text
        send_json(self, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    def log_message(self, *_):
        pass


@pytest.fixture
def mentor(tmp_path, teacher_url):
    """mentor(*flags, **ranks): mps.py on 12 tasks with a student behind a server -> {id: record}."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StudentServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write(tmp_path / "tasks.jsonl", tasks(12))

    def run(*flags, **ranks):
        script("mps.py", "--tasks", tmp_path / "tasks.jsonl", "--student", "it", "--engine", "url",
               "--student-url", f"http://127.0.0.1:{server.server_address[1]}", "--out", tmp_path / "mps",
               "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search", *flags, **ranks)
        return {r["id"]: r for r in lines(tmp_path / "mps" / "mps.jsonl")}
    yield run
    server.shutdown()


def test_a_student_behind_a_server(mentor):
    records = mentor("--verify-first-error", 2, "--concurrency", 4, ranks=2).values()
    assert {(r["kind"], r["outcome"]) for r in records} == {("search", "solved"), ("math", "corrected")}
    assert len(records) == 12


def test_failed_tasks_are_tried_again(mentor, monkeypatch, tmp_path):
    with monkeypatch.context() as teacher:
        teacher.setattr(demo_teacher, "verdict", lambda *_: "I cannot say.")
        first = mentor()
    failed = {name for name, r in first.items() if r["outcome"] == "failed"}
    assert failed == {name for name, r in first.items() if r["kind"] == "math"}
    (tmp_path / "mps" / "mps.jsonl").rename(tmp_path / "mps" / "mps.rank0.jsonl")   # as after a kill
    again = mentor(ranks=2)
    assert list(again) == list(first) and {again[name]["outcome"] for name in failed} == {"corrected"}
    assert all(again[name] == first[name] for name in set(first) - failed)
    assert {r["id"] for r in lines(tmp_path / "mps" / "rl.jsonl")} & failed
    assert not list((tmp_path / "mps").glob("mps.rank*"))


# ---- the test of the first error ----

def test_belief():
    assert mps.belief(4, []) == pytest.approx([0.25] * 4)
    assert mps.belief(4, [], 1, 0.7) == pytest.approx([0.1, 0.7, 0.1, 0.1])
    lost, won = mps.belief(4, [(2, 0, 8)]), mps.belief(4, [(2, 6, 8)])       # from the prefix before step 2
    assert lost[0] == lost[1] > 2 * lost[2] == pytest.approx(2 * lost[3]) and won[2] == won[3] > 100 * won[0]
    assert mps.even_cut([0.1, 0.7, 0.1, 0.1]) in (1, 2) and mps.even_cut([0.25] * 4) == 2
    assert mps.even_cut([0.25] * 4, {2}) in (1, 3)


@pytest.mark.parametrize("named", [0, 1, 2, 3])
def test_a_misled_teacher_is_overruled_by_the_student(teacher_url, monkeypatch, named):
    """The student errs once, at step 2; resumed before it, it succeeds, after it, it fails."""
    question = dict(id="a", answer="10",
                    question="Cy has 6 pears, plus 3, minus 4, times 2. How many pears does Cy have?")
    wrong = "<thought>Cy is 7.</thought><code>Cy=7\nprint(Cy)</code>"
    verdict = json.dumps(dict(correct=False, first_wrong_step=named, analysis="I think so.", suggestion=""))
    monkeypatch.setattr(demo_teacher, "verdict", lambda *_: verdict)
    engine = Scripted(lambda task, step, messages: wrong if step == 2 and not engine.taken else None)
    (r,) = play([question], engine, options(teacher_url, "--verify-first-error", 4)).values()
    found = r["corrections"][0]["first_error"]
    assert r["outcome"] == "corrected" and r["interventions"] == 1 and r["corrections"][0]["step"] == 2
    assert found["step"] == 2 and found["teacher"] == named and found["agree"] == (found["search"] == named)
    assert len(found["probes"]) <= 3 and all(tries == 4 for _, *_, tries in found["probes"])
    assert r["corrections"][0]["analysis"] == ("I think so." if named == 2 else None)


# ---- kills ----

@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, trained_student, teacher_url):
    """What is sampled depends on the task alone: not on batches, ranks or restarts."""
    write(tmp_path / "tasks.jsonl", tasks(40, seed=5))
    command = lambda out, *more: [
        "--tasks", tmp_path / "tasks.jsonl", "--student", trained_student, "--out", tmp_path / out, "--teacher-url",
        teacher_url, "--search", f"http:{teacher_url}/search", "--no-preload", "--corrections", 1,
        "--max-tokens", 150, *more]
    script("mps.py", *command("whole"))
    for kill in range(4):
        flags = map(str, command("killed", "--batch", 3))
        process = subprocess.Popen([sys.executable, os.path.join(ROOT, "mps.py"), *flags],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shard = tmp_path / "killed" / "mps.rank0.jsonl"
        size = shard.stat().st_size if shard.exists() else 0
        while process.poll() is None and (not shard.exists() or shard.stat().st_size <= size):
            time.sleep(0.02)
        process.kill()
        process.wait()
    script("mps.py", *command("killed", "--batch", 7), ranks=2)
    whole, killed = ({r["id"]: (r["outcome"], r["messages"]) for r in lines(tmp_path / out / "mps.jsonl")}
                     for out in ("whole", "killed"))
    assert whole == killed and len(whole) == 40 and len({o for o, _ in whole.values()}) > 1


# ---- what the student learns from ----

PROMPTS = set().union(*(word_ngrams(text, 7)[1] for text in judge.PROMPT.values()))


def faults_of(record):
    """What a trained trajectory may not hold: the reference answer before something showed it, text that only
    the teacher saw (its prompts, analyses and suggestions), labels."""
    found, told = [], [c["analysis"] or "" for c in record["corrections"]]
    told += ["Take the next link of the chain."]
    secret = PROMPTS.union(*(word_ngrams(text, 5)[1] for text in told))
    for i, m in enumerate(record["messages"]):
        before, said = record["messages"][:i], m["content"]
        grams = word_ngrams(said, 7)[1] | word_ngrams(said, 5)[1]
        if m["role"] != "assistant":
            continue
        if grams & secret:
            found.append(f"step {i // 2} says what only the teacher was told: {grams & secret}")
        if re.search(r"(?i)<\w*thought>\s*\W*(first thought|thought|step \d+)\W*:", said):
            found.append(f"step {i // 2} has a label")
        shown = tokens(" ".join(m["content"] for m in before if m["role"] == "user"))
        words = tokens(record["answer"]) if record["kind"] == "search" else set()
        if words and words <= tokens(said) and not words <= shown:
            found.append(f"step {i // 2} knows the answer that nothing has shown")
        if any(c["step"] == i // 2 for c in record["corrections"]) and leaked(
                said, record["question"], record["answer"], before) is not None:
            found.append(f"the correction of step {i // 2} states the answer")
    return found


def check(records):
    assert records and not [(r["id"], faults) for r in records if (faults := faults_of(r))]


@pytest.fixture(scope="module")
def corrected(teacher_url):
    """SFT records of a run against a teacher that talks, labels and leaks in a third of its corrections."""
    honest, dice = demo_teacher.reply, random.Random(0)

    def reply(system, user, args, rng):
        text, parts = honest(system, user, args, rng), demo_teacher.read_prompt(user)
        if system != judge.CORRECT_SYSTEM or dice.random() < 0.5:
            return text
        return dice.choice([
            f"<thought>The answer is {parts['Reference answer']}.</thought>"
            f"<code>final_answer_print({parts['Reference answer']!r})</code>",
            text.replace("thought>", f"thought>{parts.get('Analysis')} As suggested: ", 1),
            text.replace("thought>", "thought>Thought: ", 1)])
    demo_teacher.reply = reply
    try:
        records = play(tasks(80), Erring(), options(teacher_url, "--reasks", 3))
    finally:
        demo_teacher.reply = honest
    args = options(teacher_url, "--sft-share", 1, "--sft-easy", 1)
    kept = mps.split(records.values(), args)[0]
    assert sum(len(r["corrections"]) for r in kept) > 30
    return kept


def test_nothing_of_the_teacher_reaches_the_training_data(corrected):
    check(corrected)


def test_that_test_can_fail(corrected):
    r = next(r for r in corrected if r["kind"] == "search" and any(c["step"] for c in r["corrections"]))
    for text in (f"<thought>It is {r['answer']}.</thought><code>print(1)</code>",
                 f"<thought>{r['corrections'][-1]['analysis']}</thought><code>print(1)</code>",
                 "<thought>Thought: go on.</thought><code>print(1)</code>",
                 "<thought>The rejected step never ran, its variables do not exist.</thought><code>1</code>"):
        spoilt = copy.deepcopy(r)
        spoilt["messages"][3]["content"] = text
        assert faults_of(spoilt), text


def test_nor_that_of_a_real_run(tmp_path, trained_student, teacher_url):
    """bc.py, sft.py and mps.py as a user runs them; and the demo's own data, if it has been made."""
    write(tmp_path / "tasks.jsonl", tasks(40, seed=7))
    script("mps.py", "--tasks", tmp_path / "tasks.jsonl", "--student", trained_student, "--out", tmp_path / "mps",
           "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search", "--no-preload",
           "--max-tokens", 150, "--sft-share", 1, "--sft-easy", 1)
    check(lines(tmp_path / "mps" / "sft.jsonl"))
    demo = os.path.join(os.environ.get("SCORE_DEMO", os.path.join(ROOT, "runs", "demo")), "mps", "sft.jsonl")
    if os.path.exists(demo):
        check(lines(demo))


# ---- the authors' released trajectories ----

def released(record):
    """The inverse of plumbing/release.py."""
    given, m = dict(record["release"]), record["messages"]
    seen = [x["content"].removeprefix("Observation: ") for x in m[2::2]]
    seen += [record["prediction"]] * (record["stop"] == "answer")
    grammar = r"(?s)<(first_)?thought>(.*)</(?:first_)?thought>(?:<code>(.*)</code>)?"
    parts = [re.fullmatch(grammar, x["content"]).groups() for x in m[1::2]]
    steps = [dict(thought=thought, code=code or "") for first, thought, code in parts]
    for k, (step, text) in enumerate(zip(steps, seen)):
        step |= dict(observation=text, is_finished=record["stop"] == "answer" and k == len(steps) - 1)
    assert len(steps) == len(seen) and m[0]["content"] == given["original_task_info"]["question"]
    if "repair_steps" not in given:               # files of behaviour cloning keep the first thought apart
        given["first_thought"] = steps.pop(0)["thought"]
    return {**given, "steps": steps}


@pytest.mark.parametrize("name", ["math_bc_init", "math_mps", "search_bc_init", "search_mps"])
def test_released_trajectories_are_read_without_loss(name, tokenizer):
    path = os.path.join(DATA, f"{name}_trajectories.jsonl")
    if not os.path.exists(path):
        pytest.skip("the authors' trajectories are not here (../shared/data/score_release)")
    records = [json.loads(line) for line in script("plumbing.release", path).stdout.splitlines()]
    assert [released(r) for r in records] == lines(path)
    for r in records:
        ids, mask = sft.encode(tokenizer, r["messages"], 1 << 20)
        assert len(ids) == len(mask) and 0 < sum(mask) < len(ids)
        assert r["answer"] and r["correct"] in (True, False)
        for c in r["corrections"]:
            taken = r["messages"][1 + 2 * c["step"]]["content"]
            assert taken == c["chosen"]["content"] != c["rejected"]["content"]
    assert sum(len(r["corrections"]) for r in records) == {"math_mps": 8, "search_mps": 7}.get(name, 0)


def test_sft_trains_on_released_trajectories(tmp_path, checkpoint):
    path = os.path.join(DATA, "math_bc_init_trajectories.jsonl")
    if not os.path.exists(path):
        pytest.skip("the authors' trajectories are not here (../shared/data/score_release)")
    (tmp_path / "release.jsonl").write_text(script("plumbing.release", path).stdout)
    script("sft.py", "--model", checkpoint, "--data", tmp_path / "release.jsonl", "--out", tmp_path / "out",
           "--dtype", "fp32", "--batch", 8, "--micro-batch", 2, "--steps", 6, "--lr", "1e-2")
    losses = [r["loss"] for r in lines(tmp_path / "out" / "metrics.jsonl")]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.5


def test_what_is_no_released_trajectory_is_named(tmp_path):
    done = script("plumbing.release", write(tmp_path / "t.jsonl", tasks(1)), check=False)
    assert done.returncode == 2 and "t.jsonl, line 1: not a record of the release" in done.stderr
