"""bench/teacher.py: runs whose first wrong step is known, and what a teacher's replies are good for."""
import ast
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import judge
import teacher as demo_teacher
from conftest import ROOT, script, send_json
from env import Interpreter, replay
from plumbing.trajectory import code_of, prefix
from test_stages import lines, write


def bench():
    """The module bench/teacher.py, beside the demo's teacher, whose name it has."""
    import importlib.util
    spec = importlib.util.spec_from_file_location("bench_teacher", os.path.join(ROOT, "bench", "teacher.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- runs whose first wrong step is known ----

def problem(question, solution):
    return {"question": question, "answer": solution}


CLIPS = problem("Ann sold clips to 48 friends in April, and half as many in May. How many in all?",
                "Ann sold 48/2 = <<48/2=24>>24 clips in May.\nAnn sold 48 + 24 = <<48+24=72>>72 clips altogether.\n#### 72")
PAY = problem("Bo earns $12 an hour, works 5 hours, and pays $10 for lunch. How much is left?",
              "Bo earns 12 x 5 = $<<12*5=60>>60.\nThen he has $60 - $10 = $<<60-10=50>>50 left.\n#### 50")
NO_CHAINS = [problem("How many are 5?", "There are 5.\n#### 5"),                               # no annotation
             problem("What are 2 and 3?", "It is 2+3 = <<2+3=6>>6.\nSo 6*1 = <<6*1=6>>6.\n#### 6"),       # false
             problem("What are 2 and 3?", "It is 2+3 = <<2+3=5>>5.\nSo 5*2 = <<5*2=10>>10.\n#### 9")]     # another answer


def test_a_chain_of_gsm8k_and_one_changed_operation():
    t = bench()
    clips = t.gsm8k.read_solution(CLIPS["question"], CLIPS["answer"])
    assert [content for content, _ in t.play_chain(clips, wrong=1, operation=0)] == [
        "<thought>Find clips in May: 48 * 2.</thought><code>r_1 = 48 * 2\nprint(r_1)</code>",
        "<thought>Find clips altogether: 48 + 96.</thought><code>r_2 = 48 + r_1\nprint(r_2)</code>",
        "<thought>That is the answer.</thought><code>final_answer_print(r_2)</code>"]
    assert [seen for _, seen in t.play_chain(clips)] == ["24.0", "72.0", "72.0"]
    assert [isinstance(t.gsm8k.read_solution(p["question"], p["answer"]), str) for p in NO_CHAINS] == [True] * 3
    tree = ast.parse("(2 + 3) * -4 ** 2", mode="eval").body                    # a power stays
    assert [ast.unparse(t.change(tree, i)) for i in range(len(t.operations(tree)))] == [
        "2 + 3 + -4 ** 2", "(2 - 3) * -4 ** 2"]
    half = t.gsm8k.read_solution("What is 8/(3-2), plus 1?", "It is 8/(3-2) = <<8/(3-2)=8>>8.\nIt is 8+1 = <<8+1=9>>9.\n#### 9")
    half.steps[0].tree = ast.parse("8 / (2 - 2)", mode="eval").body
    assert t.play_chain(half) is None


def steps_of(run):
    return [m["content"] for m in run["messages"] if m["role"] == "assistant"]


@pytest.mark.parametrize("source", ["gsm8k", "toy"])
def test_errors_replay_and_the_named_step_is_the_only_wrong_one(source, tmp_path, teacher_url):
    """Interpreters show what the runs show; until the wrong step they equal the right run; right ones end right."""
    from plumbing.search import make_search
    flags = ["--gsm8k", write(tmp_path / "train.jsonl", [CLIPS, PAY] * 4 + NO_CHAINS)] if source == "gsm8k" else []
    n = 6 if source == "gsm8k" else 24
    script("bench/teacher.py", "errors", *flags, "--out", tmp_path / "errors.jsonl", "-n", n)
    runs = lines(tmp_path / "errors.jsonl")
    assert len(runs) == n and {run["first_wrong_step"] == -1 for run in runs} == {True, False}
    for run in runs:
        interpreter = replay(prefix(run["messages"], len(steps_of(run)) - 1), Interpreter(make_search(f"http:{teacher_url}/search")))
        assert interpreter.run(code_of(run["messages"][-1]["content"])).answer == run["prediction"]
        interpreter.close()
        right = judge.check_by_rule(run["prediction"], run["answer"])
        assert (run["first_wrong_step"] == -1) == run["correct"] == (right is True)
        if source == "toy":                                # the demo's teacher names the same step, by reading the question
            guide = demo_teacher.Task(run["question"])
            did = [guide.take(content) for content in steps_of(run)[1:]]
            assert (did.index("wrong") + 1 if "wrong" in did else -1) == run["first_wrong_step"]
    wrong = [run for run in runs if not run["correct"]]
    for run in wrong:
        k = run["first_wrong_step"]
        assert steps_of(run)[k] != run["right_step"]["content"] and k >= 1
    if source == "toy":                                    # the audit reads them; this teacher errs in no step
        said = script("judge.py", "audit", "--data", tmp_path / "errors.jsonl", "--teacher-url", teacher_url).stdout
        head, row = (line.split() for line in said.splitlines() if line.startswith(("file", "errors.jsonl")))
        assert dict(zip(head, row)) | {"n": ""} == {"file": "errors.jsonl", "n": "", "exact": "100.0", "earlier": "0.0",
                                                    "later": "0.0", "none": "0.0", "correct": "100.0", "F1": "100.0",
                                                    "unusable": "0"}


def test_too_few_chains_are_one_sentence(tmp_path):
    done = script("bench/teacher.py", "errors", "--gsm8k", write(tmp_path / "t.jsonl", [CLIPS, *NO_CHAINS]), "--out",
                  tmp_path / "e.jsonl", check=False)
    assert done.returncode == 2 and "holds 1 problems" in done.stderr and done.stderr.count("\n") == 1


# ---- requests ----

class FaultyTeacher(BaseHTTPRequestHandler):
    """The demo's teacher, with a planted fault for each kind of request."""
    protocol_version = "HTTP/1.1"
    seen = []

    def do_GET(self):
        send_json(self, {"data": [{"id": "m"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        system, user = (m["content"] for m in body["messages"][:2])
        again = len(body["messages"]) > 2
        text = demo_teacher.reply(system, user, demo_teacher.parse_args(["--port", "0"]), None)
        ended = "stop"
        if system == judge.PLAN_SYSTEM and not again:
            text = "The answer is 42."                                         # then a good one
        elif system == judge.STEP_SYSTEM:
            text, ended = "<thought>I think", "length"                         # cut off, always
        elif system == judge.VERDICT_SYSTEM and not again:
            text = json.dumps({"correct": False, "first_wrong_step": 99})
        elif system == judge.SAME_STEP_SYSTEM:
            text = "They are the same." if again else "```json\n" + text + "\n```"
        self.seen.append((system, again))
        send_json(self, {"choices": [{"message": {"content": text}, "finish_reason": ended}], "usage": {"completion_tokens": 1}})

    def log_message(self, *_):
        pass


@pytest.fixture
def faulty():
    FaultyTeacher.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FaultyTeacher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_what_is_usable_when_and_which_faults(faulty, tmp_path):
    said = script("bench/teacher.py", "ask", "--teacher-url", faulty, "-n", 4, "--out", tmp_path / "replies.jsonl").stdout
    rows = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in said.splitlines()[1:6]}
    assert rows == {"plan": [4, 0, 4, 0], "step": [4, 0, 0, 4], "verdict": [4, 0, 4, 0], "correct": [4, 4, 0, 0],
                    "same_step": [4, 4, 0, 0]}
    assert "plan, 4 x: " in said and '"The answer is 42."' in said
    assert "step, 8 x: it was cut off after 2048 tokens" in said and '"<thought>I think"' in said
    assert 'verdict, 4 x: as "correct" is false' in said and "\ncorrect, " not in said
    replies = lines(tmp_path / "replies.jsonl")
    assert len(replies) == 20 and sum(len(one["tries"]) for one in replies) == len(FaultyTeacher.seen) == 32
    assert [one["used"] for one in replies if one["kind"] == "step"] == [False] * 4


def test_requests_are_those_of_the_stages(tmp_path):
    """mps.jsonl gives its own corrections, unfinished runs their verdicts, tasks only plans."""
    t = bench()
    run, = [run for run in t.toy_runs(2, 0) if not run["correct"]]
    k = run["first_wrong_step"]
    rejected = {"content": "<thought>r</thought><code>1</code>", "observation": "1"}
    chosen = {"content": "<thought>c</thought><code>2</code>", "observation": "2"}
    record = {name: value for name, value in run.items() if name not in ("right_step", "first_wrong_step")}
    record["corrections"] = [{"step": k, "rejected": rejected, "chosen": chosen, "analysis": "no"}]
    task = {"id": "x", "question": "How many?", "answer": "1"}
    write(tmp_path / "mps.jsonl", [record])
    write(tmp_path / "tasks.jsonl", [task])
    read = t.read_runs([tmp_path / "mps.jsonl", tmp_path / "tasks.jsonl"])
    chosen_requests = [(kind, name) for kind, name, _ in t.choose(read, 2, 0)]
    assert sorted(chosen_requests[:2]) == sorted([("plan", run["id"]), ("plan", "x")])
    assert chosen_requests[2:] == [(kind, run["id"]) for kind in t.KINDS[1:]]
    asked = {}

    class Recorder:
        def __getattr__(self, kind):
            return lambda *args, **more: asked.update({kind: (args, more)})
    import random
    for request in t.requests_of(record, random.Random(0)).values():
        request(Recorder())
    before = prefix(run["messages"], k)
    assert asked["plan"] == ((run["question"],), {"answers": run["answer"]})
    assert asked["verdict"][0] == (run["question"], run["answer"], run["messages"], run["prediction"], "answer")
    assert asked["correct"][0] == (run["question"], run["answer"], before, rejected["content"], "1", "no", None)
    assert asked["same_step"][0] == (run["question"], before, rejected, chosen)
    messages = asked["step"][0][1]
    assert messages == run["messages"][:len(messages)] and messages[-1]["role"] == "user" and len(messages) > 1
    assert set(t.requests_of(task, random.Random(0))) == {"plan"}


@pytest.mark.parametrize("change, named", [({"question": None}, '"question" is missing'), ({"id": 3}, '"id" is missing'),
                                           ({"corrections": [{"step": 1}]}, "`chosen` must be a step")])
def test_a_run_without_what_is_asked_about_is_refused(change, named, tmp_path):
    t = bench()
    run = t.toy_runs(2, 0)[1]
    write(tmp_path / "mps.jsonl", [run, {**run, **change}])
    with pytest.raises(t.InputError, match=f"mps.jsonl, line 2: .*{named}"):
        t.read_runs([tmp_path / "mps.jsonl"])


def test_a_wrong_address_is_one_sentence():
    done = script("bench/teacher.py", "ask", "--teacher-url", "http://127.0.0.1:9", check=False)
    assert done.returncode == 2 and "no model answers" in done.stderr and done.stderr.count("\n") == 1
