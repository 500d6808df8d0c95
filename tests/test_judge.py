"""judge.py: answers, replies, leaks, the client under injected faults, files, commands."""

import importlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
import judge  # noqa: E402
from plumbing.answers import check_by_rule  # noqa: E402
from plumbing.chat_api import BadReply, TeacherDown  # noqa: E402
from plumbing.cli import InputError  # noqa: E402
from plumbing.records import append_jsonl, resume_jsonl  # noqa: E402
from plumbing.replies import (  # noqa: E402
    Verdict,
    leaked,
    parse_correction,
    parse_plan,
    parse_step,
    parse_verdict,
    same_step_cheap,
)
from plumbing.tasks import read_tasks  # noqa: E402

DATA = os.path.join(ROOT, "..", "shared", "data")


# ---------------------------------------------------------------- answers

SAME = [
    ("42", "42"), ("42.0", "42"), ("1,000", "1000"), ("12650", "12,\\!650"), ("$12.50", "12.5"), ("-7", "−7"),
    ("1e3", "1000"), ("0.5", "\\frac{1}{2}"), ("14/3", "\\frac{14}{3}"), ("\\frac45", "0.8"), ("\\dfrac{1}{2}", "\\tfrac12"),
    ("-3/4", "-\\frac{3}{4}"), ("\\frac{-1}{2}", "-0.5"), ("\\boxed{120}", "120"), ("\x08oxed{4}", "\\boxed{4}"),
    ("\\boxed{\\frac{3}{8}}", "3/8"), ("$\\boxed{12}$", "12"), ("The answer is 11.", "11"), ("Final answer: 11", "11"),
    ("The speed of the current is \\boxed{4} km/h.", "4"), ("45.00000000001", "45"), ("10%", "10\\%"), ("10", "10\\%"),
    ("0.1", "10\\%"), ("50 cm", "50"), ("50", "50\\text{ cm}"), ("1.95 m", "1.95 m"), ("90", "90^\\circ"),
    ("90 degrees", "90^{\\circ}"), ("5 apples", "5"), ("3 cm^2", "3\\text{ cm}^2"), ("x = 5", "5"), ("5", "x=5"),
    ("(A)", "A"), ("A", "\\text{(A)}"), ("B. Paris", "B"), ("D. frog belly, veins", "\\boxed{D}"), ("C)", "C"),
    ("sqrt(2)", "\\sqrt{2}"), ("2*sqrt(3)", "2\\sqrt{3}"), ("6\\sqrt{3}", "6 \\sqrt{3}"), ("3*pi", "3\\pi"),
    ("2**10", "1024"), ("2^10", "2^{10}"), ("(x+1)**2", "x^2+2x+1"), ("p - q", "p-q"), ("q*p", "p*q"),
    ("(3, pi/2)", "\\left( 3, \\frac{\\pi}{2} \\right)"), ("[1, 2)", "[1,2)"), ("(-oo, 3]", "(-\\infty,3]"),
    ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty, 1) \\cup (2, \\infty)"), ("\\{1,2\\}", "\\{2,1\\}"), ("1, 3", "1,3"),
    ("3,2,-1", "-1,2,3"), ("\\pm 3", "3, -3"), ("3/2", "3:2"), ("1.5", "1\\frac12"), ("y = 2x + 1", "y=2x+1"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"), ("yes", "Yes"),
    ("Evelyn", "\\text{Evelyn}"), ("the Beatles", "Beatles"), ("September 11, 1161", "11 September 1161"),
    ("3 \\times 10^5", "300000"), ("e^{2}", "e^2"), ("\\log_2 8", "3"), ("5!", "120"), ("i\\sqrt{2}", "\\sqrt{2}i"),
]
DIFFERENT = [
    ("42", "43"), ("1.5", "15"), ("-5", "5"), ("2/3", "23"), ("3.14", "3.1"), ("1/3", "0.3"), ("100000001", "100000002"),
    ("50 cm", "50 m"), ("5 million", "5"), ("20 June 1837", "1837"), ("10%", "11%"), ("(A)", "B"), ("A. Paris", "B"),
    ("sqrt(2)", "\\sqrt{3}"), ("5i", "5"), ("2x", "2"), ("3\\pi", "3"), ("(0,5)", "(5,0)"), ("[0,5]", "(0,5)"),
    ("(x+1)^2", "x^2+1"), ("1,2", "1,2,3"), ("yes", "no"), ("true", "false"), ("Ivor Novello Award", "Rock Hall of Fame"),
    ("", "5"), ("x", "5"), ("$", "5"), ("9**9**9**9", "10"), ("A. Lincoln", "A. Johnson"), ("1000000000000000001", "1e18"),
]


@pytest.mark.parametrize("prediction, answer", SAME)
def test_equal_answers(prediction, answer):
    assert check_by_rule(prediction, answer) is True
    assert check_by_rule(prediction, ["no such thing", answer]) is True


@pytest.mark.parametrize("prediction, answer", DIFFERENT)
def test_different_answers(prediction, answer):
    assert check_by_rule(prediction, answer) is not True


def test_rules_decide_or_leave_it():
    decided = {("42", "43"): False, ("", "5"): False, (None, "5"): False, ("(A)", "B"): False, ("yes", "no"): False,
               ("Deep Purple", "The band Deep Purple"): None, ("4.67", "14/3"): None, ("50 cm", "0.5 m"): None,
               ("Paris", "B"): None}
    for (prediction, answer), expected in decided.items():
        assert judge.check_by_rule(prediction, answer) is expected, (prediction, answer)
    assert judge.check_by_rule("Lutetia", ["Rome", "lutetia"]) is True


def test_a_hanging_comparison_ends_also_in_threads():
    from concurrent.futures import ThreadPoolExecutor
    check_by_rule("x+1", "1+x")                                             # the library is loaded
    started = time.time()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(check_by_rule, ["x+1", "(9^{9})^{9^{9^{9}}}+x"], ["1+x", "x^2+1"])) == [True, None]
    assert time.time() - started < 15


def test_f1_and_exact_match_are_squads():
    assert judge.f1("the Frank Lowy", ["Frank Lowy"]) == 1.0 and judge.exact_match("Frank Lowy!", ["frank lowy"]) == 1.0
    assert judge.f1("Sir Frank Lowy", "Frank Lowy") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert judge.f1("Lowy Lowy", ["Lowy", "x"]) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert judge.f1("yes it is", "yes") == 0.0 and judge.f1("yes", ["Yes"]) == 1.0 and judge.f1("no", "yes") == 0.0
    assert judge.f1(None, ["a b"]) == 0.0 and judge.f1("", "b") == 0.0 and judge.exact_match(None, "b") == 0.0
    assert judge.f1("\\boxed{\\text{Trochophore}}", "trochophore") == 1.0
    assert judge.exact_match("James Madison", ["j. madison", "James Madison"]) == 1.0


# ---------------------------------------------------------------- steps and replies

def step(code, seen=None, thought="I go on."):
    return {"content": f"<thought>{thought}</thought><code>{code}</code>", "observation": seen}


def test_same_step_cheap():
    same = same_step_cheap
    assert same(step("x=1 # one"), step("x = 1", "", "Other words."))
    assert same(step("print(2+3)", "Observation: 5"), step("y=5\nprint(y)", "5"))
    assert same(step("print(a)", "NameError: a"), step("print(b)", "NameError: a")) is None
    assert same(step("x=1", "None"), step("x=2", "None")) is None
    assert same(step("print(5)", "5"), step("final_answer_print(5)", "5")) is None
    assert same(step("x = = 1"), step("x = = 1")) and same(step("x = = 1"), step("x = 1")) is None
    plan = {"content": "<first_thought>Add them.</first_thought>", "observation": "None"}
    assert same(plan, dict(plan)) and same(plan, {**plan, "content": "<first_thought>No.</first_thought>"}) is None


def test_parse_verdict_forgives_form_but_not_content():
    good = [
        '{"correct": false, "first_wrong_step": 2, "analysis": "a", "suggestion": "s"}',
        'Sure:\n```json\n{"analysis": "a", "suggestion": "s", "correct": false, "first_wrong_step": "Step 2"}\n```\nDone.',
        '{\\"correct\\": false, \\"first_wrong_step\\": 2, \\"analysis\\": \\"a\\", \\"suggestion\\": \\"s\\"}',
        '{"steps": {"0": {"ok": true}}, "correct": "False", "first_wrong_step": 2.0, "analysis": "a", "suggestion": "s"} {x}',
        "{'correct': False, 'first_wrong_step': 2, 'analysis': 'a', 'suggestion': 's'}",
    ]
    for text in good:
        assert parse_verdict(text, 3) == Verdict(False, 2, "a", "s"), text
    latex = parse_verdict('{"correct": false, "first_wrong_step": 0, "analysis": "\\(x\\) \\frac\n1", "suggestion": null}', 1)
    assert latex == Verdict(False, 0, "\\(x\\) \\frac\n1", "")
    assert parse_verdict('{"correct": true, "first_wrong_step": null}', 3) == Verdict(True, None, "", "")
    for text in ('{"correct": false, "first_wrong_step": 3}', '{"correct": false, "first_wrong_step": null}', "no",
                 '{"correct": false, "first_wrong_step": -1}', '{"correct": false, "first_wrong_step": true}',
                 '{"correct": "perhaps", "first_wrong_step": 1}', '{"correct": false, "first_wrong', "{" * 5000):
        with pytest.raises(ValueError):
            parse_verdict(text, 3)


def test_parse_step():
    wanted = "<thought>Add.</thought><code>x = 1\nprint(x)</code>"
    for text in (wanted, "Well.\n<thought>\nThought: Add.\n</thought>\n<code>\n```python\nx = 1\nprint(x)\n```\n</code>\nObservation: 1",
                 "<thought>**Thought:** Add.</thought> <code>x = 1\nprint(x)\n</code>", wanted + wanted,
                 "<thought>Add.</thought>\n```python\nx = 1\nprint(x)\n```\n```output\n1\n```\n<thought>b</thought><code>b()</code>",
                 "<thought>Add.</thought>\n```python\n<code>x = 1\nprint(x)</code>\n```", wanted + "\n```python\nb()\n```"):
        assert parse_step(text) == wanted
    for text in ("", "<thought>a</thought>", "<thought>a</thought><code></code>", "<thought></thought><code>x()</code>",
                 "```python\nprint(1)\n```", "<thought>a</thought>\n```output\nx()\n```"):
        with pytest.raises(ValueError, match="must be one"):
            parse_step(text)
    for code in "None", "pass", "...", "# to be done", "'words'\npass":
        with pytest.raises(ValueError, match="does nothing"):
            parse_step(f"<thought>None</thought><code>{code}</code>")


QUESTION = "Cy has 6 pears. Cy plus 3 is Lea. Lea times 2 is Bo. How many has Bo?"
PLAN = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "<first_thought>p</first_thought>"},
        {"role": "user", "content": "Observation: None"}]
LATER = PLAN + [{"role": "assistant", "content": step("lea = 6 + 3\nprint(lea)")["content"]},
                {"role": "user", "content": "Observation: 9"}]


@pytest.mark.parametrize("before, content, answers, leak", [
    (LATER, step("final_answer_print(18)"), "18", True),
    (LATER, step("bo = 18\nfinal_answer_print(bo)"), "18", True),
    (LATER, step("bo = lea * 2\nbo = 18\nprint(bo)"), "18", True),
    (LATER, step("final_answer_print(r'\\boxed{18}')"), "18", True),
    (LATER, step("final_answer_print('18 pears')"), ["eighteen", "18"], True),
    (LATER, step("n = 18\nfinal_answer_print(f'{n}')"), "18", True),
    (LATER, step("print(str(18.0))"), "18", True),
    (LATER, step("bo = lea * 2\nprint(bo)", thought="So the answer is 18."), "18", True),
    (LATER, step("bo = lea * 2\nfinal_answer_print(bo)"), "18", False),
    (LATER, step("bo = 18\nbo = lea * 2\nfinal_answer_print(bo)"), "18", False),
    (LATER, step("final_answer_print(17)"), "18", False),
    (LATER, step("final_answer_print(9)"), "9", False),                  # an observation shows it
    (LATER, step("final_answer_print(6)"), "6", False),                  # the question says it
    (LATER, step("final_answer_print('yes')"), "Yes", False),            # yes and no are always concluded
    (LATER, step("final_answer_print('B')"), "B", False),
    (LATER, step("web_search('Rock Hall of Fame')"), "Rock Hall of Fame", False),
    (LATER, step("final_answer_print('Rock Hall of Fame')"), "Rock Hall of Fame", True),
    (LATER + [{"role": "assistant", "content": "x"}, {"role": "user", "content": "Observation: In 1837, on June 20, he died."}],
     step("final_answer_print('20 June 1837')"), "20 June 1837", False),
    (LATER + [{"role": "assistant", "content": "x"}, {"role": "user", "content": "Observation: 4.666666666667"}],
     step("final_answer_print('14/3')"), "\\frac{14}{3}", False),
    (PLAN[:1], {"content": "<first_thought>Work towards 18.</first_thought>"}, "18", True),
    (PLAN[:1], {"content": "<first_thought>Work it out.</first_thought>"}, "18", False),
])
def test_leaks(before, content, answers, leak):
    assert (leaked(content["content"], QUESTION, answers, before) is not None) == leak
    if leak:
        with pytest.raises(ValueError):
            parse_correction(content["content"], QUESTION, answers, before, True)
    else:
        assert parse_correction(content["content"], QUESTION, answers, before, True)


def test_corrections_must_not_talk_or_label():
    good = step("bo = lea * 2\nprint(bo)", thought="In the previous step I found Lea's pears.")["content"]
    assert parse_correction(good, QUESTION, "18", LATER) == good
    for thought in ("The mistake was to add.", "As suggested, I double.", "The reference answer is larger.",
                    "The previous step was wrong, so I double.", "Thought: I double.", "Step 2: I double."):
        text = step("bo = lea * 2\nprint(bo)", thought=thought)["content"]
        with pytest.raises(ValueError):
            parse_correction(text, QUESTION, "18", LATER)
    label = step("print(lea * 2)", thought="Thought: I double.")["content"]
    assert parse_correction(label, QUESTION, "18", LATER, last=True) == step("print(lea * 2)", thought="I double.")["content"]
    word = step("print(lea * 2)", thought="I undo his mistake.")["content"]
    assert parse_correction(word, "By mistake he adds 3.", "18", LATER) == word          # the question's own word
    for text in ("<thought>a</thought><code>x = = 1</code>", "<first_thought>a</first_thought>", "I would double."):
        with pytest.raises(ValueError):
            parse_correction(text, QUESTION, "18", LATER)
    with pytest.raises(ValueError):
        parse_correction(good, QUESTION, "18", PLAN[:1])


# ---------------------------------------------------------------- the client

class Fake:
    """An OpenAI-compatible server; `script` is a list of replies for the requests to come, then `default`."""

    def __init__(self):
        self.script, self.default, self.bodies, self.lock = [], "ok", [], threading.Lock()
        self.headers, self.busy, self.peak = [], 0, 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def send(self, code, data, headers=(), length=None):
                self.send_response(code)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.send(200, b'{"data": [{"id": "m"}]}')

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.bodies.append(body)
                    fake.headers.append(dict(self.headers))
                    fake.busy += 1
                    fake.peak = max(fake.peak, fake.busy)
                    action = fake.script.pop(0) if fake.script else fake.default
                if callable(action):
                    action = action(body)
                if action == "slow":
                    time.sleep(0.6)
                    action = "late"
                with fake.lock:
                    fake.busy -= 1
                if isinstance(action, tuple):
                    return self.send(*action)
                data = json.dumps({"choices": [{"message": {"content": action}}],
                                   "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()
                if action == "cut":
                    self.close_connection = True
                    return self.send(200, data[:40], length=len(data))
                self.send(200, data)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass
        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def fake():
    server = Fake()
    yield server
    server.server.shutdown()
    server.server.server_close()


def teacher_of(fake, **options):
    return judge.Teacher(fake.url, "m", **{"timeout": 0.3, "backoff": 0.01, "retries": 8, **options})


def test_retries_every_passing_fault(fake):
    fake.script = [(500, b"oops"), (503, b""), "slow", "cut", (200, b'{"choices": []}'), (200, b"not json"),
                   (200, b'{"choices": [{"message": {"content": null}}]}'), (429, b"", [("Retry-After", "0.7")])]
    teacher, started = teacher_of(fake), time.time()
    assert teacher.plan("q") == "ok"
    assert time.time() - started >= 0.7 + 0.3 and len(fake.bodies) == 9
    assert teacher.counts["retries"] == 8 and teacher.counts["calls"] == 1 and teacher.counts["prompt_tokens"] == 7


def test_a_dead_teacher_is_an_error_that_names_it(fake):
    fake.default = (500, b"oops")
    with pytest.raises(TeacherDown, match=f"(?s){fake.url}.*500"):
        teacher_of(fake, retries=2).plan("q")
    assert len(fake.bodies) == 3
    dead = judge.Teacher("http://127.0.0.1:9", "m", retries=1, backoff=0.01)
    for ask in (dead.check, lambda: dead.plan("q")):
        with pytest.raises(TeacherDown, match="127.0.0.1:9"):
            ask()
    with pytest.raises(TeacherDown, match="does not list the model other"):
        judge.Teacher(fake.url, "other").check()
    teacher_of(fake).check()
    fake.default = (401, b"who are you")
    with pytest.raises(TeacherDown, match="401"):
        teacher_of(fake).plan("q")
    fake.default = (400, b"maximum context length")
    with pytest.raises(BadReply, match="context length"):
        teacher_of(fake).plan("q")


def test_key_and_structured_output(fake, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("TEACHER_API_KEY", "secret")
    fake.default = lambda body: ((400, b"response_format is not supported") if "response_format" in body
                                 else '{"equivalent": true}')
    teacher = teacher_of(fake)
    assert teacher.same_answer("q", "p", ["a", "b"]) is True and teacher.same_answer("q", "p2", "a") is True
    assert len(fake.bodies) == 3 and fake.headers[0]["Authorization"] == "Bearer secret"
    assert fake.bodies[0]["response_format"] == {"type": "json_object"} and fake.bodies[0]["temperature"] == 0.3
    system, user = (message["content"] for message in fake.bodies[0]["messages"])
    assert system == judge.SAME_ANSWER_SYSTEM and user == "# Question\nq\n\n# Reference answer\na\nb\n\n# Prediction\np"


def test_cache_pays_once_and_resamples(fake, tmp_path):
    path, usage = str(tmp_path / "cache.sqlite"), {}
    replies = iter("abcdef")
    fake.default = lambda body: next(replies)
    teacher = teacher_of(fake, cache=path)
    assert [teacher.plan("q", usage=usage), teacher.plan("q", usage=usage), teacher.plan("q", sample=1)] == ["a", "a", "b"]
    again = teacher_of(fake, cache=path)                                  # a restarted run
    assert [again.plan("q"), again.plan("q", sample=1), again.plan("other")] == ["a", "b", "c"]
    assert teacher_of(fake, cache=path, plan_temperature=1.0).plan("q") == "d"
    assert (teacher.counts["calls"], teacher.counts["cached"], again.counts["calls"], again.counts["cached"]) == (2, 1, 1, 2)
    assert usage == {"calls": 2, "prompt_tokens": 14, "completion_tokens": 6}
    assert fake.bodies[0]["seed"] != fake.bodies[1]["seed"]


def test_the_same_request_at_once_is_paid_once(fake):
    from concurrent.futures import ThreadPoolExecutor

    def answer(body):
        time.sleep(0.2)
        return body["messages"][1]["content"]
    fake.default = answer
    teacher = teacher_of(fake, timeout=5)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda i: teacher.plan("same"), range(16))) == {"# Question\nsame"}
        assert len(fake.bodies) == 1 and (teacher.counts["calls"], teacher.counts["cached"]) == (1, 15)
        assert len(set(pool.map(lambda i: teacher.plan("same", sample=i + 1), range(8)))) == 1 and len(fake.bodies) == 9
    assert fake.peak > 1 and not teacher.cache.asking


def test_verdict_is_asked_again_once_and_then_fails_aloud(fake):
    bad, good = '{"correct": false, "first_wrong_step": 7}', '{"correct": false, "first_wrong_step": 1, "analysis": "a"}'
    fake.script = [bad, good]
    verdict = teacher_of(fake).verdict(QUESTION, "18", LATER, None, "max_steps")
    assert verdict == Verdict(False, 1, "a", "")
    first, second = (body["messages"] for body in fake.bodies)
    assert second[:2] == first and second[2]["content"] == bad and "0 to 1" in second[3]["content"]
    user = first[1]["content"]
    assert user.startswith(f"# Question\n{QUESTION}\n\n# Reference answer\n18\n\n# Trajectory\n## Step 0\n<first_thought>p")
    assert "Observation: None\n## Step 1\n<thought>" in user and user.endswith("without an answer, max_steps)")
    fake.script = [bad, "never mind"]
    with pytest.raises(BadReply) as failure:
        teacher_of(fake).verdict(QUESTION, "18", LATER, "17", "answer")
    assert failure.value.raw == "never mind"
    fake.script = [bad] * 3 + [good]
    assert teacher_of(fake, reasks=3).verdict(QUESTION, "18", LATER, "17").first_wrong_step == 1


def test_correction_is_asked_again_once(fake):
    leak, good = step("final_answer_print(18)")["content"], step("print(lea * 2)")["content"]
    fake.script = [leak, "<think>hm</think>" + good]
    teacher = teacher_of(fake)
    assert teacher.correct(QUESTION, "18", LATER, "<thought>r</thought><code>1</code>", "1", "an", "su") == good
    assert teacher.counts["reasks"] == 1 and fake.bodies[0]["temperature"] == 0.9
    assert fake.bodies[0]["messages"][1]["content"].endswith(
        "# Rejected step\n## Step 2\n<thought>r</thought><code>1</code>\nObservation: 1\n\n# Analysis\nan\n\n# Suggestion\nsu")
    fake.script = [leak, leak]
    with pytest.raises(BadReply):
        teacher.correct(QUESTION, "18", LATER, "r", "1", "a", "s")
    fake.script = ["<first_thought>Plan: add, then double.</first_thought>"] * 2
    assert teacher.correct(QUESTION, "18", PLAN[:1], "r", None, "a", "s") == "<first_thought>add, then double.</first_thought>"


def test_step_and_equivalence(fake):
    fake.script = ["no tags", step("print(1)")["content"], '{"analysis": "true in words", "equivalent": false}']
    teacher = teacher_of(fake)
    assert teacher.step(QUESTION, LATER) == step("print(1)")["content"]
    assert teacher.same_step(QUESTION, LATER, step("a", "1"), step("b", "2")) is False       # the field, not the words
    assert "# Step A\n" in fake.bodies[-1]["messages"][1]["content"] and "# Step B\n" in fake.bodies[-1]["messages"][1]["content"]
    assert [body["temperature"] for body in fake.bodies] == [0.7, 0.7, 0.3]


def test_correct_answer_asks_only_where_rules_cannot_decide(fake):
    fake.default = '{"equivalent": true}'
    teacher = teacher_of(fake)
    assert judge.correct_answer(teacher, "q", "42", "42.0") and not judge.correct_answer(teacher, "q", "41", "42")
    assert not judge.correct_answer(teacher, "q", None, "42") and not fake.bodies
    assert judge.correct_answer(teacher, "q", "Frank Lowy, businessman", ["Frank Lowy"]) and len(fake.bodies) == 1
    assert (teacher.counts["answers_by_rule"], teacher.counts["answers_by_model"]) == (3, 1)
    assert judge.correct_answer(None, "q", "Frank Lowy, businessman", ["Frank Lowy"]) is False


def test_same_step_asks_only_where_rules_cannot_decide(fake):
    fake.default = '{"equivalent": true}'
    teacher = teacher_of(fake)
    assert judge.same_step(teacher, QUESTION, LATER, step("x=1 # one"), step("x = 1")) is True and not fake.bodies
    assert judge.same_step(teacher, QUESTION, LATER, step("print(2)", "2"), step("print(1 + 1)", "2")) is True
    assert not fake.bodies
    assert judge.same_step(teacher, QUESTION, LATER, step("x = 1"), step("x = 2")) is True and len(fake.bodies) == 1
    fake.default = '{"equivalent": false}'
    assert judge.same_step(teacher, QUESTION, LATER, step("x = 1"), step("x = 3")) is False


# ---------------------------------------------------------------- a judge of its own, and none

@pytest.fixture
def other():
    """A second endpoint, for the judge."""
    server = Fake()
    server.default = '{"equivalent": true}'
    yield server
    server.server.shutdown()
    server.server.server_close()


def given(script, *flags):
    """The arguments of a script with these flags."""
    needed = {"bc": "--tasks t --out o", "grpo_short": "--model m --data d --out o", "eval": "run --model m --tasks t --out o"}
    return importlib.import_module(script).parse_args([*needed[script].split(), *flags])


def test_a_judge_of_its_own_gets_what_is_equivalent_and_the_teacher_all_else(fake, other):
    args = given("bc", "--teacher-url", fake.url, "--judge-url", other.url, "--teacher-max-tokens", "99")
    teacher = judge.Teacher.from_args(args, judge_temperature=0.9)          # of the teacher's verdicts
    verdict = '{"correct": false, "first_wrong_step": 1, "analysis": "a"}'
    correction = step("print(lea * 2)")["content"]
    fake.script = ["Add, then double.", step("print(1)")["content"], verdict, correction]
    assert teacher.plan("q") and teacher.step(QUESTION, LATER)
    assert teacher.verdict(QUESTION, "18", LATER, "17").first_wrong_step == 1
    assert teacher.correct(QUESTION, "18", LATER, "r", "1", "a", "s") == correction
    assert [body["temperature"] for body in fake.bodies] == [0.5, 0.7, 0.9, 0.9] and not other.bodies
    used_by_answer, used_by_step = {}, {}
    assert judge.check_answer(teacher, "q", "Frank Lowy, businessman", ["Frank Lowy"], usage=used_by_answer) is True
    other.script = ["I cannot say.", '{"equivalent": false}']
    assert judge.same_step(teacher, QUESTION, LATER, step("x = 1"), step("x = 2"), usage=used_by_step) is False
    assert judge.check_answer(teacher, "q", "41", "42") is False            # a rule says so
    assert judge.same_step(teacher, QUESTION, LATER, step("x=1"), step("x = 1")) is True
    assert len(fake.bodies) == 4 and [body["temperature"] for body in other.bodies] == [0.1] * 3
    systems = [body["messages"][0]["content"] for body in other.bodies]
    assert systems == [judge.SAME_ANSWER_SYSTEM, judge.SAME_STEP_SYSTEM, judge.SAME_STEP_SYSTEM]
    assert {body["max_tokens"] for body in other.bodies} == {99}
    assert used_by_answer == {"calls": 1, "prompt_tokens": 7, "completion_tokens": 3}
    assert used_by_step == {"calls": 2, "prompt_tokens": 14, "completion_tokens": 6}      # asked once more
    assert (args.teacher_model, args.judge_model) == ("m", "m")             # the ones that are served
    first, second = teacher.summary().splitlines()
    assert first.startswith("teacher: 4 calls") and second.startswith("judge: 3 calls") and "1 reasks" in second


def test_a_teacher_is_its_own_judge(fake):
    fake.default = '{"equivalent": true}'
    usage = {}
    teacher = judge.Teacher.from_args(given("bc", "--teacher-url", fake.url))
    asked = judge.Teacher.judge_from_args(given("grpo_short", "--teacher-url", fake.url))
    for model in (teacher, asked):
        assert judge.same_step(model, QUESTION, LATER, step("x = 1"), step("x = 2"), usage=usage) is True
    assert [body["temperature"] for body in fake.bodies] == [0.3, 0.3] and usage["calls"] == 2
    assert teacher.summary().startswith("teacher: 1 calls") and "\n" not in teacher.summary()


def test_who_is_asked_what_is_equivalent(fake, other):
    """eval.py and grpo_short.py ask for nothing else: with a judge the teacher need not even be there."""
    args = given("eval", "--judge-url", other.url)
    assert judge.Teacher.judge_from_args(args).url == other.url and (args.teacher_model, args.judge_model) == (None, "m")
    both = given("grpo_short", "--judge-url", other.url, "--teacher-url", "http://127.0.0.1:9")
    assert judge.Teacher.judge_from_args(both).same_answer("q", "a", "b") is True and other.bodies[0]["temperature"] == 0.1
    assert judge.Teacher.judge_from_args(given("eval", "--teacher-url", fake.url)).url == fake.url
    assert judge.Teacher.judge_from_args(given("eval")) is None


def test_without_anybody_to_ask_what_rules_leave_open_stays_undecided():
    usage = {}
    left_open = ("q", "Frank Lowy, businessman", ["Frank Lowy"])
    assert judge.check_answer(None, *left_open, usage=usage) is None and judge.correct_answer(None, *left_open) is False
    assert judge.check_answer(None, "q", "42.0", "42") is True and judge.check_answer(None, "q", "41", "42") is False
    assert judge.check_answer(None, "q", None, "42") is False               # no answer is no open question
    assert judge.same_step(None, QUESTION, LATER, step("x = 1"), step("x = 2"), usage=usage) is None
    assert judge.same_step(None, QUESTION, LATER, step("x=1 # one"), step("x = 1")) is True
    assert judge.same_step(None, QUESTION, LATER, step("print(2)", "2"), step("print(1 + 1)", "2")) is True
    assert usage == {}


def test_a_judge_that_is_not_there_or_serves_other_models(fake):
    for script, make in (("bc", judge.Teacher.from_args), ("eval", judge.Teacher.judge_from_args)):
        with pytest.raises(TeacherDown, match="no model answers at http://127.0.0.1:9/v1/models"):
            make(given(script, "--teacher-url", fake.url, "--judge-url", "http://127.0.0.1:9"))
        with pytest.raises(TeacherDown, match="does not list the model other, but m"):
            make(given(script, "--teacher-url", fake.url, "--judge-url", fake.url, "--judge-model", "other"))


def test_what_a_judge_says_wrong_is_called_the_judges(other, monkeypatch):
    from plumbing import chat_api
    args = given("eval", "--judge-url", other.url)
    asked = judge.Teacher.judge_from_args(args)
    other.default = "I cannot say."
    with pytest.raises(BadReply, match="^the judge's reply stayed unusable"):
        judge.same_step(asked, QUESTION, LATER, step("x = 1"), step("x = 2"))
    monkeypatch.setattr(chat_api, "served_models", lambda url, headers: None)
    with pytest.raises(TeacherDown, match="lists no model: name one with --judge-model"):
        judge.Teacher.judge_from_args(given("eval", "--judge-url", other.url))


@pytest.mark.parametrize("keys, teachers, judges", [
    ({"TEACHER_API_KEY": "t"}, "Bearer t", "Bearer t"), ({"OPENAI_API_KEY": "o"}, "Bearer o", "Bearer o"),
    ({"TEACHER_API_KEY": "t", "OPENAI_API_KEY": "o", "JUDGE_API_KEY": "j"}, "Bearer t", "Bearer j"),
    ({"JUDGE_API_KEY": "j"}, None, "Bearer j"), ({}, None, None)])
def test_keys_of_teacher_and_judge(keys, teachers, judges, fake, other, monkeypatch):
    for name in ("TEACHER_API_KEY", "OPENAI_API_KEY", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    teacher = judge.Teacher.from_args(given("bc", "--teacher-url", fake.url, "--judge-url", other.url))
    assert teacher.plan("q") == "ok" and teacher.same_answer("q", "a", "b") is True
    assert [s.headers[0].get("Authorization") for s in (fake, other)] == [teachers, judges]


def test_the_cache_keeps_the_replies_of_the_judge_too(fake, other, tmp_path):
    flags = ["--teacher-url", fake.url, "--judge-url", other.url, "--teacher-cache", str(tmp_path / "cache.sqlite")]
    for _ in range(2):                                     # the second is a restarted run
        teacher = judge.Teacher.from_args(given("bc", *flags))
        usage = {}
        assert teacher.plan("q") == "ok" and teacher.same_answer("q", "a", "b", usage=usage) is True
        assert len(fake.bodies) == len(other.bodies) == usage["calls"] == 1
    assert teacher.judge.counts["cached"] == teacher.counts["cached"] == 1
    itself = judge.Teacher.from_args(given("bc", "--teacher-url", other.url, *flags[4:]))       # at another temperature
    assert itself.same_answer("q", "a", "b") is True and [body["temperature"] for body in other.bodies] == [0.1, 0.3]


def test_audit_has_no_judge(capsys):
    with pytest.raises(SystemExit):
        judge.parse_args("audit --data d --teacher-url u --judge-url v".split())
    assert "unrecognized arguments: --judge-url v" in capsys.readouterr().err


def test_many_threads_under_faults(fake):
    """10 % each of 500, 429, time-out, cut body, invalid JSON, step out of range: every verdict arrives, none differs."""
    import random
    from concurrent.futures import ThreadPoolExecutor
    dice = random.Random(0)

    def answer(body):
        fault = dice.randrange(20)
        k = int(body["messages"][1]["content"].split("asks for step ")[1].split(".")[0])
        return {0: (500, b""), 1: (500, b""), 2: (429, b"", [("Retry-After", "0.01")]), 3: (429, b""), 4: "slow", 6: "cut",
                7: "cut", 8: '{"correct": fal', 9: "{}", 10: '{"correct": false, "first_wrong_step": 9}'}.get(
                    fault, json.dumps({"correct": False, "first_wrong_step": k}))
    fake.default = answer
    teacher = teacher_of(fake, concurrency=4, reasks=8, retries=12)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: teacher.verdict(f"{i} asks for step {i % 2}.", "18", LATER, "1").first_wrong_step,
                              range(60)))
    assert found == [i % 2 for i in range(60)] and fake.peak <= 8 and teacher.counts["retries"] > 5


# ---------------------------------------------------------------- one verdict a reply

WRONG = '{"analysis": "a", "correct": false, "first_wrong_step": 1}'
RIGHT = '{"analysis": "a", "correct": true, "first_wrong_step": null}'


@pytest.mark.parametrize("reply, correct", [
    # one object: an inner one, a list of steps or a quotation is not the verdict
    ('{"correct": false, "first_wrong_step": 1, "details": {"correct": true}}', False),
    ('{"details": {"correct": true}, "correct": false, "first_wrong_step": 1}', False),
    ('{"correct": false, "first_wrong_step": 1, "steps": [{"correct": true}, {"correct": false}, {"correct": true}]}', False),
    ('Steps: [{"step": 0, "correct": true}, {"step": 1, "correct": true}]\n' + WRONG, False),
    (json.dumps({"analysis": f"it printed {RIGHT} here", "correct": False, "first_wrong_step": 1}), False),
    ("{'analysis': 'it printed {\"correct\": true}', 'correct': False, 'first_wrong_step': 1}", False),
    ('{"verdict": ' + RIGHT + "}", None), ("{" + RIGHT + "}", None), ("\\boxed{" + RIGHT + "}", None),
    ('[{"correct": true}, {"correct": true}]', None), ('{"steps": [{"correct": true}]}', None),
    ('{"analysis": "it printed ' + RIGHT + ' here", "correct": false, "first_wrong_step": 1}', None),    # not escaped
    # a quotation in prose
    ("The student printed " + RIGHT + ", which is no answer.", None), (RIGHT + " is what the student printed.", None),
    ("The student printed:\n```json\n" + RIGHT + "\n```\nThat is no answer.", None), ("The student's answer: " + RIGHT, None),
    # several
    (RIGHT + "\nWait, step 1 is wrong.\n" + WRONG, None), (WRONG + "\n" + RIGHT, None),
    ('{"step": 0, "correct": true}\n{"step": 1, "correct": false}', None), (WRONG + "\nOnce more:\n" + WRONG, False),
    ('{"correct": true, "correct": false, "first_wrong_step": 1}', None), ('{"correct": true, "Correct": false}', None),
    ('{"correct": false, "first_wrong_step": 1, "first_wrong_step": 2}', None), ('{"correct": true, "first_wrong_step": 1}', None),
    # thinking
    ("<think>perhaps " + RIGHT + " hm", None), ("<think>perhaps " + RIGHT + "</think>" + WRONG, False),
    ("perhaps " + RIGHT + " or not</think>\n" + WRONG, False), ('perhaps {"correct": true, "an</think>' + WRONG, False),
    ("<think>" + RIGHT + "</think><think>" + RIGHT + "</think>" + WRONG, False), (RIGHT + "<think>hm", None),
    ("<thinking>" + RIGHT + "</thinking>" + WRONG, False), ("<think>" + RIGHT + "</think>", None),
    ('{"analysis": "a stray </think> tag", "correct": false, "first_wrong_step": 1}', False),
    ('<think>x</think>{"analysis": "</think> and <think>", "correct": false, "first_wrong_step": 1}', False),
    ('Here: {"analysis": "it wrote </think>{\\"correct\\": true}", "correct": false, "first_wrong_step": 1}', False),
    # cut off
    ('{"correct": true, "analysis": "the', None), ('{"correct": true', None), (RIGHT + '\nNo: {"correct": false, "first', None),
    ('{"nested": {"correct": true}, "correct": fal', None),
    # forgiven
    ("```json\n" + WRONG + "\n```", False), ("``` json\n" + WRONG + "\n```", False), ("```json " + RIGHT + " ```", True),
    ("~~~\n" + RIGHT + "\n~~~\nDone.", True), ("**Verdict:** " + RIGHT, True), ("<answer>" + RIGHT + "</answer>", True),
    ("Here is my verdict on the agent's run:\n\n" + WRONG + "\n\nStep 1 adds where it should multiply.", False),
    ('"{\\"correct\\": false, \\"first_wrong_step\\": 1}"', False), ("The set {1, 2} and \\frac{1}{2}. " + RIGHT, True),
    ('{"correct": False, "first_wrong_step": 1, "analysis": None}', False), ('{"correct": true, "first_wrong_step": null,}', True),
    ('{"Correct": "False", " first_wrong_step": "Step 1"}', False), ('{"correct": true, "first_wrong_step": -1}', True),
    # what introduces the verdict, and remarks after it
    ("The verdict is " + WRONG, False), ("So my final verdict is " + WRONG + ".", False), ("json " + RIGHT, True), ("The final JSON is " + RIGHT, True),
    ("Based on the observations, my verdict is:\n" + WRONG, False), ("Here is my evaluation of the agent's answer:\n" + WRONG, False),
    ("Here’s the JSON:\n" + RIGHT, True), ("- Step 1: prints 9\n- Step 2: prints 18\n\n" + RIGHT, True), ("评估结果：\n" + WRONG + "\n步骤1错误。", False),
    (WRONG + "<|im_end|>", False), ("[" + WRONG + "]", False), ("```json\n[" + RIGHT + "]\n```", True), ("\ufeff" + RIGHT, True),
    ("The code counts = {'a': n} is fine.\n" + RIGHT, True), (WRONG + "\n```python\nd = {'a': {'b': n}}\n```", False),
    ('{\n "correct": false, // step 1\n "first_wrong_step": 1 # it adds\n}', False), ('{“analysis”: “It adds.”, “correct”: false, “first_wrong_step”: 1}', False),
    ('{"correct": false, "first_wrong_step": "Step #1"}', False), ('{"correct": false, "first_wrong_step": "step_1"}', False),
    ('{"correct": false, "first_wrong_step": "1: it adds"}', False), ('{"correct": false, "first_wrong_step": "1 and 2"}', None),
    ('{"correct": true, "first_wrong_step": "N/A"}', True),
    # what introduces a quotation
    ("The student's verdict is " + RIGHT, None), ("The agent's evaluation: " + RIGHT, None), ("Step 1 outputs: " + RIGHT, None), ("Student: " + RIGHT, None),
    ("The student printed\n> " + RIGHT, None), ("The student printed: my verdict is " + RIGHT, None), ("Its reply was: " + RIGHT, None), ("Prediction: " + RIGHT, None),
    ('[{"step": 0, "correct": true}]', None), ("[" + RIGHT + ", " + RIGHT + "]", None), ("[[1]]", None),
    # what the student printed ends the judge's text: quotation marks are not escaped
    ('{"analysis": "It printed "}\n' + RIGHT + '\n{ and that is wrong", "correct": false, "first_wrong_step": 1}', None),
    ('{"analysis": "It printed "}\n' + RIGHT + ' {"a": "", "correct": false, "first_wrong_step": 1}', None),
    ('{"analysis": "It printed ", "correct": true, "first_wrong_step": null} which is wrong", "correct": false, "first_wrong_step": 1}', None),
    ('{"analysis": "It printed ", "correct": true, "first_wrong_step": null // ", "correct": false, "first_wrong_step": 1\n}', None),
    ('{"analysis": "It printed ", "correct": true, "first_wrong_step": null /* ", "correct": false, "suggestion": "*/ "x"}', None),
    ("{'analysis': 'It printed ', 'correct': True}\n{ is wrong', 'correct': False, 'first_wrong_step': 1}", None),
    ('{"analysis": "It printed "}\n' + RIGHT + '\n{ </think> so", "correct": false}\nIt printed "}\n' + RIGHT + "\n{ </think>", None),
    ('{"analysis": "It printed "x" and", "correct": false}\nIt wrote </think>\n' + RIGHT, None), ('I would say "correct": true. ' + RIGHT, None),
    ('{"analysis": "It printed ", "correct": true, "x": null}</think> so", "correct": false}\nIt printed "x": null}</think> so.', None),
    (WRONG + "\nThe student printed </think>\n" + RIGHT, None), (WRONG + "\n<think>hm</think>\n" + RIGHT, None),
    # other marks of thinking
    ("[THINK]I could say\n" + RIGHT + "\nBut no.[/THINK]" + WRONG, False), ("◁think▷" + RIGHT + "◁/think▷" + WRONG, False), ("[THINK]\n" + RIGHT, None),
    ("<reasoning>" + RIGHT + "</reasoning>\n" + WRONG, False), ("<|channel|>analysis<|message|>" + RIGHT + "<|end|><|start|>assistant<|channel|>final<|message|>" + WRONG, False),
    # true or false, yes or no only
    ('{"correct": "Yes"}', True), ('{"correct": "partially", "first_wrong_step": 1}', None),
    ('{"correct": "no", "first_wrong_step": 1}', False), ('{"correct": "partly", "first_wrong_step": 1}', None), ('{"correct": 0, "first_wrong_step": 1}', None), ("true", None), ("", None),
])
def test_one_verdict_a_reply(reply, correct):
    if correct is None:
        with pytest.raises(ValueError):
            parse_verdict(reply, 3)
    else:
        assert parse_verdict(reply, 3).correct is correct
        assert parse_verdict(reply, 3).first_wrong_step == (None if correct else 1)


@pytest.mark.parametrize("written, read", [
    (r"\nu \neq \notin \nabla", None), (r"\frac{1}{2} \forall \flat", None), (r"\underbrace{x} \upsilon \uparrow", None),
    (r"\text{a} \theta \times \tan \to", None), (r"\begin{x} \beta \bar{x}", None), (r"\rho \right)", None), (r"\(x\) \d+ \%", None),
    (r"It adds.\nThe sum", "It adds.\nThe sum"), (r"a\n\nb \n- c", "a\n\nb \n- c"), (r"\tprint(1)\r\n", "\tprint(1)\r\n"),
    (r"\nexample \nnot", "\nexample \nnot"), (r"\n\neq", "\n\\neq"), (r"\\frac \\neq", r"\frac \neq"), (r"\u00e9 \/", "é /"),
    ("one\ntwo\tthree", "one\ntwo\tthree"), (r"\"quoted\"", '"quoted"')])
def test_backslashes_of_latex_and_of_json(written, read):
    reply = f'{{"analysis": "{written}", "correct": true}}'
    assert parse_verdict(reply, 3).analysis == (written if read is None else read)


# ---------------------------------------------------------------- the code of a step, the teacher's and the student's

TWO_LINES = "x = 1\nprint(x)"


@pytest.mark.parametrize("inside, code", [
    (f"\n```python\n{TWO_LINES}\n```\n", TWO_LINES), (f"``` python\n{TWO_LINES}\n```", TWO_LINES), (f"```python3.11\n{TWO_LINES}\n```", TWO_LINES),
    (f"```Python\n{TWO_LINES}\n```", TWO_LINES), (f"```{{.python .numberLines}}\n{TWO_LINES}\n```", TWO_LINES), (f"````py\n{TWO_LINES}\n````", TWO_LINES),
    ("\r\n```python\r\nx = 1\r\nprint(x)\r\n```\r\n", TWO_LINES), ("x = 1\r\nprint(x)", TWO_LINES), (f"~~~python\n{TWO_LINES}\n~~~", TWO_LINES),
    (f"```python\n{TWO_LINES}```", TWO_LINES), ("```python print(1)```", "print(1)"), ("```print(1)```", "print(1)"),
    ("```python x=1\nprint(x)\n```", "x=1\nprint(x)"), (f"```python\n{TWO_LINES}", TWO_LINES), (f"{TWO_LINES}\n```", TWO_LINES),
    ("```python\nx = 1\n```\n```python\nprint(x)\n```", TWO_LINES), ("\n  ```python\n  x = 1\n  print(x)\n  ```\n", TWO_LINES),
    ("\n    x = 1\n    print(x)\n", TWO_LINES), ("\n\tx = 1\n\tprint(x)\n", TWO_LINES), ("x = 1\n      print(x)", TWO_LINES),
    ("\n    for i in [1]:\n        print(i)\n    print(2)\n", "for i in [1]:\n    print(i)\nprint(2)"), (" x = 1\nprint(x)", TWO_LINES),
    (f"Here is the code:\n```python\n{TWO_LINES}\n```\nIt prints 1.", TWO_LINES), (f"```python:main.py\n{TWO_LINES}\n```", TWO_LINES), (f"python\n{TWO_LINES}", TWO_LINES),
    (f"```\npython\n{TWO_LINES}\n```", TWO_LINES), ("```python\nx = 1\n```\nThen:\n```python\nprint(x)\n```", TWO_LINES), ("`print(1)`", "print(1)"),
    ("print('</code>')", "print('</code>')"), ("h = '<code>a</code>'\nprint(h)", "h = '<code>a</code>'\nprint(h)"),
    ("s = '''\n</code>\n'''", "s = '''\n</code>\n'''"), ("```python\nprint('</code>')\n```", "print('</code>')"),
    # left as they are
    ("def f():\n    return 1", "def f():\n    return 1"), ("print(\n  1,\n  2)", "print(\n  1,\n  2)"), ("s = '''\n  a\n  b'''", "s = '''\n  a\n  b'''"),
    ("s = '''\n```python\nx\n```\n'''", "s = '''\n```python\nx\n```\n'''"), ("```\ns = '''\n```py\nx\n```\n'''\n```", "s = '''\n```py\nx\n```\n'''"),
    ("x = = 1", "x = = 1"), (">>> print(1)", ">>> print(1)"), ("s = '<thought>x</thought><code>2</code>'", "s = '<thought>x</thought><code>2</code>'")])
@pytest.mark.parametrize("form", ["<thought>Go on.</thought><code>{}</code>", "<Thought>Go on.</Thought>\n<Code>{}</CODE>"])
def test_the_code_is_what_was_meant(inside, code, form):
    import env
    turn = form.format(inside)
    assert parse_step(turn) == f"<thought>Go on.</thought><code>{code}</code>"
    assert parse_step("<think>hm <thought>no</thought><code>1</code></think>\n" + turn) == parse_step(turn)

    class Interpreter:
        def run(self, program):
            return env.Observation(program, None, False)

        def fork(self):
            return self
    episode = env.Episode({"question": "q"}, Interpreter())
    assert episode.turn(turn) == f"Observation: {code}"
    assert episode.messages[1]["content"] == turn                             # recorded as it was sampled


@pytest.mark.parametrize("reply", [
    "Here is the step.\n{}", "I [think] first.\n{}", "```xml\n{}\n```", "<think>I could <code>x</code></think>\n{}", "<think>\n\n</think>\n\n{}", "I could <code>x</code> or not.\n</think>{}",
    "[THINK]<thought>no</thought><code>0</code>[/THINK]{}", "{}\nObservation: 1\n<thought>b</thought><code>2</code>"])
@pytest.mark.parametrize("thought, between, code", [
    ("Go on.", "\n", "print(1)"), ("It goes into <code> tags.", "", "print(1)"), ("It goes between <code> and </code>.", "", "print(1)"), ("Go on.", "\n\n**Code:**\n", "print(1)"),
    ("Go on.", "\nHere is the code:\n```python\n", "print(1)"), ("Go on.", "", "re.sub('</think>', '', s)"), ("Go on.", "", "s.split('<think>')"),
    ("Go on.", "", "h = '<div><code>x</code></div>'")])
def test_a_step_is_found_in_its_reply(reply, thought, between, code):
    from plumbing.trajectory import code_of
    reply = reply.format(f"<thought>{thought}</thought>{between}<code>{code}</code>")
    assert parse_step(reply) == f"<thought>{thought}</thought><code>{code}</code>"
    assert code_of(reply) == code                                             # and the student's is run


def test_the_students_plan_may_be_written_in_capitals():
    import env
    assert env.act("<First_Thought>Add.</First_Thought>", 0, None) == env.Observation("None", None, False)
    assert env.act("<think>never closed <code>print(1)</code>", 1, None) is None


def test_what_is_no_step():
    assert parse_step("<thought>I use <b>.</thought><code>re.sub('</think>', '', s)</code>").endswith("<code>re.sub('</think>', '', s)</code>")
    for text in ("<think><thought>a</thought><code>1</code>", "<thought>a</thought><code>1", "<thought>a</thought>\n```python\n1",
                 "<thought>a</thought><code>```python\n```</code>", "<thought> </thought><code>1</code>"):
        with pytest.raises(ValueError):
            parse_step(text)


def test_an_answer_is_no_unfinished_step():
    from plumbing.trajectory import step_at
    run = LATER + [{"role": "assistant", "content": step("f = final_answer_print\nf(42)")["content"]}]
    ended = step_at(run, 2, "42")
    assert ended["final"] and ended["observation"] == "42" and "final" not in step_at(run, 1, "42")
    assert same_step_cheap(ended, step("print(6*7)", "42")) is None
    hidden = step_at([*run[:-1], {"role": "assistant", "content": step("done(42)")["content"]}], 2, "42")     # done: of an earlier step
    assert same_step_cheap(hidden, step("print(6*7)", "42")) is None and same_step_cheap(hidden, ended) is True
    assert same_step_cheap(step("final_answer_print(x)", "42"), step("final_answer_print(42)", "42")) is True     # older records
    assert same_step_cheap(step("print(40 + 2)", "42"), step("print(6*7)", "42")) is True


# ---------------------------------------------------------------- plans

@pytest.mark.parametrize("plan, answers", [
    ("I will add 3 to Cy's 6 pears, then double the sum.", "18"), ("Compute (n-2) * 180 / n, where n is the number of sides.", "120"),
    ("Set up \\(\\frac{12 + 21 + x}{3} = 18\\) and solve it for x.", "25"), ("1. Find the factors.\n2. Count them.\n3. Divide.", "\\frac{1}{3}"),
    ("Use web_search(query) to find the mother, then her death; end with final_answer_print(answer).", "1161"),
    ("The answer is the number of pairs, so I count them with a loop.", "16"), ("Import numpy and print the median.", "5.5"),
    ("Step 1: find 6 + 3. Step 2: double it.", "18"), ("Cy has 6 pears, so I begin with 6 + 3.", "6"), ("为了回答这个问题，我需要查找地址。", "曹光彪高科技大楼"),
    ("Compute 2^5, as each ball has 2 choices.", "32"), ("<first_thought>Search for the band, then its singer.</first_thought>", "Ian Gillan"),
    ("Decide whether it holds: yes or no.", "yes"), ("To find the answer: 1. search the band, 2. read its page.", "x"),
    ("This is how I find the answer:\n1. Search.\n2. Read.", "x"),
    ("Compute both, then print(result) and check it.", "18"), ('Call web_search("director of Inception"), then search for the year.', "1970"), ("Use Python to compute 12 * 5.", "60"),
    ("1. Search\n2. Read\n3. Sort\n10. Count", "10"), ("Step 10: count them.", "10"), ("用 Python 计算 12 - 5，然后打印结果。", "7"),
    ("Use pow(7, 100, 13), or Fermat: 7^12 ≡ 1 (mod 13).", "9"), ("Zuerst addiere ich 3, dann verdopple ich die Summe.", "18"), ("Report it as \\boxed{n}.", "18"),
    ("Since \\(x^2 + 3x + 2 = 0\\), factor it; \\frac{y^2}{27} - \\frac{x^2}{11} = 1 has two vertices.", "15")])
def test_ordinary_plans_are_taken(plan, answers):
    assert parse_plan(plan, QUESTION, answers)


@pytest.mark.parametrize("plan, answers", [
    ("```python\nlea = 6 + 3\nprint(lea * 2)\n```", None), ("First add.\n~~~\nlea = 6 + 3\n~~~", None), ("Add.\n<code>print(9)</code>", None),
    ("Search: web_search('Baldwin III mother')", None), ("Add them, then print(lea * 2).", None), ("import sympy\nx = sympy.symbols('x')", None),
    ("Thought: search.\nCode: search for it\nObservation: found", None), ("Run final_answer_print(18).", None), ("def solve(n):\n  return n", None),
    ("6 + 3 = 9, then doubled.", None), ("Lea has 6+3=9 pears.", None), ("7 times 6 is 42.", None), ("\\(6 \\times 3 = 18\\)", None),
    ("5! = 120", None), ("3 squared is 9.", None), ("x = web_search('a')", None), ("$5 - $2 = $3 are left.", None), ("Double it. The answer is 18.", None), ("So the final answer: **18**", None), ("\\boxed{18}", None),
    ("Answer = 17", None), ("30% of 20 is 6.", None), ("\\(2^5 = 32\\) ways", None), ("\\(\\sqrt{36} = 6\\)", None), ("6 x 3 = 18", None),
    ("\\frac{12}{4} = 3", None), ("1,000 * 2 ≈ 2,000", None), ("It must come to 18 in the end.", "18"), ("Bo has eighteen or 18.0 pears.", ["no", "18"]),
    ("She died on September 11, 1161, which I check.", "11 September 1161"), ("The band is Deep Purple; look it up.", "Deep Purple"),
    ("它位于曹光彪高科技大楼，我来核实。", "曹光彪高科技大楼"), ("<think>hm, the sum", None), ("", None)])
def test_plans_that_carry_out_steps_or_hold_the_answer(plan, answers):
    with pytest.raises(ValueError) as fault:
        parse_plan(plan, QUESTION, answers)
    assert not any(answer in str(fault.value) for answer in ([answers] if isinstance(answers, str) else answers or []))


def test_a_plan_with_the_answer_is_asked_again_without_naming_it(fake):
    fake.script = ["It will be 18 pears.", "Add, then double."]
    assert teacher_of(fake).plan(QUESTION, answers="18") == "Add, then double."
    first, second = (body["messages"] for body in fake.bodies)
    assert "18" not in json.dumps(first) and "18" not in second[-1]["content"] and "result" in second[-1]["content"]
    fake.script = ["First 6 +\n3 = 9 pears, then double them.", "Add, then double."]
    assert teacher_of(fake).plan(QUESTION, answers="18") == "Add, then double."
    assert 'it states a result, "6 + 3 = 9": a plan' in fake.bodies[-1]["messages"][-1]["content"]
    fake.script = ["It will be 18 pears."]
    assert teacher_of(fake).plan(QUESTION) == "It will be 18 pears."          # no reference answer, no check


# ---------------------------------------------------------------- replies without text, and servers with other fields

def completion(content, finish="stop", **message):
    choices = [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]
    return 200, json.dumps({"choices": choices, "usage": {}}).encode()


@pytest.mark.parametrize("reply, fault", [
    (completion(None, "length", reasoning_content="hm"), "raise --teacher-max-tokens"), (completion("", "length"), "2048 tokens"),
    (completion("First I will", "length"), "2048 tokens"), (completion(None, reasoning="hm"), "only thinking"), (completion(None), "no text"),
    (completion(None, refusal="I cannot help."), "a refusal: I cannot help."), (completion(None, "tool_calls", tool_calls=[{}]), "calls a tool"),
    (completion("Add", "content_filter"), "filter"), (completion({"plan": "Add."}), "no text"), (completion([]), "no text"),
    (completion([{"type": "image_url", "image_url": {}}]), "no text"), (completion(" \n"), "no text"), (completion(7), "no text")])
def test_a_reply_without_text_is_asked_for_again_once(fake, reply, fault):
    fake.script = [reply]
    assert teacher_of(fake).plan("q") == "ok" and len(fake.bodies) == 2
    assert fault in fake.bodies[1]["messages"][-1]["content"] and fake.bodies[1]["messages"][-2]["content"]
    fake.default = reply
    with pytest.raises(BadReply, match="stayed unusable"):
        teacher_of(fake).plan("q")
    assert len(fake.bodies) == 4


def test_an_empty_reply_without_a_reason_passes_or_is_unusable(fake):
    fake.default = (200, b'{"choices": []}')
    with pytest.raises(BadReply):
        teacher_of(fake, reasks=0).plan("q")
    assert len(fake.bodies) == 3


def test_content_in_parts(fake):
    fake.script = [completion([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "Add, "}, {"type": "text", "text": "then double."}]),
                   completion(["Add", " up."])]
    teacher = teacher_of(fake)
    assert teacher.plan("q") == "Add, then double." and teacher.plan("r") == "Add up."


def test_of_a_cut_reply_only_a_complete_step_is_used(fake):
    good = step("print(1)")["content"]
    fake.script = [completion(good + "\nObservation: 1\nand so on", "length"), completion('{"equivalent": true}', "length"), '{"equivalent": false}']
    teacher = teacher_of(fake, max_tokens=77)
    assert teacher.step(QUESTION, LATER) == good and len(fake.bodies) == 1
    assert teacher.same_answer("q", "a", "b") is False and "77 tokens" in fake.bodies[2]["messages"][-1]["content"]
    assert {body["max_tokens"] for body in fake.bodies} == {77}


def failed(code, message, status=200, **headers):
    return status, json.dumps({"error": {"code": code, "message": message}}).encode(), list(headers.items())


@pytest.mark.parametrize("replies, outcome, requests", [
    # what passes
    ([failed(429, "Rate limited"), "ok"], "ok", 2), ([failed("overloaded", "Overloaded"), "ok"], "ok", 2), ([failed(503, "Loading model", 503)] * 2 + ["ok"], "ok", 3),
    ([(529, b"Overloaded"), "ok"], "ok", 2), ([(200, b""), (204, b""), "ok"], "ok", 3), ([(200, b"x", [("Content-Encoding", "gzip")]), "ok"], "ok", 2),
    ([(307, b"", [("Location", "/v1/x")]), "ok"], "ok", 2), ([(200, b'{"choices": [{"message": {"content": "ok"}}], "usage": [1]}')], "ok", 1),
    ([(422, b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}'), "ok"], "ok", 2),
    # what is wrong with this request or reply only
    ([failed(400, "context length")], "BadReply: the server refused this request .*context length", 1),
    ([failed("content_filter", "policy", 400)], "BadReply: the server refused this request .HTTP 400: .*content_filter", 1),
    ([failed(403, "your input was flagged", 403)], "BadReply: .*flagged", 1), ([(413, b"too large")], "BadReply: .*too large", 1),
    ([completion("Add", "error")] * 2, "BadReply: .*the server broke it off .error", 2), ([completion("Add", "max_tokens")] * 2, "BadReply: .*teacher-max-tokens", 2),
    # what no request will change
    ([failed(401, "No auth credentials")], "TeacherDown: .*does not serve 'm' .*No auth credentials.*check the address", 1),
    ([failed(402, "Insufficient credits", 402)], "TeacherDown: .*HTTP 402.*the account", 1), ([(405, b"")], "TeacherDown: .*HTTP 405", 1),
    ([failed("insufficient_quota", "quota", 429)], "TeacherDown: .*insufficient_quota", 1), ([failed(400, "API key not valid.", 400)], "TeacherDown: .*API key", 1),
    ([(200, b'data: {"choices": []}\n\ndata: [DONE]\n\n')], "TeacherDown: .*streams", 1), ([(301, b"", [("Location", "/there")])], "TeacherDown: .*redirects to .*/there", 1),
    ([(200, b"<html>Sign  in</html>")] * 3, "TeacherDown: .*in 3 tries: a reply that is no completion: <html>Sign in</html>", 3),
    ([failed(502, "Provider returned error")] * 3, "TeacherDown: .*Provider returned error", 3), ([(200, b"[1]")] * 3, "TeacherDown: .*no completion", 3)])
def test_what_becomes_of_a_reply(fake, replies, outcome, requests):
    import re
    fake.script, fake.default = list(replies), (500, b"one more than expected")
    retries = 8 if outcome == "ok" else 2
    try:
        found = teacher_of(fake, retries=retries, timeout=5).plan("q")
    except (BadReply, TeacherDown) as error:
        found = f"{type(error).__name__}: {error}"
    assert re.match(outcome, found) and len(fake.bodies) == requests, found


@pytest.mark.parametrize("header, text, wait", [
    ("7", "", 7), ("0.5", "", 0.5), ("20ms", "", 0.02), ("1m30s", "", 90), ("1h", "", 300), ("soon", "", 0), ("-3", "", 0), ("", "", 0),
    (None, "Rate limit reached. Please try again in 1m2.5s. See", 62.5), (None, "Please try again in 20ms.", 0.02), (None, "try again in an hour", 0),
    ("Thu, 01 Jan 1970 00:00:09 GMT", "", 0)])
def test_how_long_a_server_asks_to_wait(header, text, wait):
    import requests

    from plumbing.chat_api import retry_after
    reply = requests.Response()
    reply._content = text.encode()
    if header is not None:
        reply.headers["Retry-After"] = header
    assert retry_after(reply) == pytest.approx(wait)


def test_a_server_may_name_the_time_to_wait_for():
    from email.utils import formatdate

    import requests

    from plumbing.chat_api import retry_after
    reply = requests.Response()
    reply._content = b""
    reply.headers["Retry-After"] = formatdate(time.time() + 200, usegmt=True)
    assert 100 < retry_after(reply) <= 200


@pytest.mark.parametrize("given, where", [
    ("localhost:8000", "http://localhost:8000/v1"), ("https://a.b/v1/", "https://a.b/v1"), ("https://a.b/v1/chat/completions", "https://a.b/v1"),
    ("https://a.b/v1beta/openai", "https://a.b/v1beta/openai"), ("https://a.b/api/paas/v4", "https://a.b/api/paas/v4"), ("https://a.b/api", "https://a.b/api/v1")])
def test_addresses_of_endpoints(given, where):
    from plumbing.chat_api import endpoint
    assert endpoint(given) == where


def test_an_endpoint_without_a_list_of_models(fake, monkeypatch):
    from plumbing import chat_api
    monkeypatch.setattr(chat_api, "served_models", lambda url, headers: None)
    teacher_of(fake).check()                                                  # the name is believed
    with pytest.raises(TeacherDown, match="lists no model: name one with --teacher-model"):
        judge.Teacher(fake.url).check()


def test_newer_names_of_fields_are_learned_once(fake):
    def answer(body):
        if "max_tokens" in body:
            return 400, b"Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, b"Unsupported value: 'temperature' does not support 0.5 with this model."
        return "ok"
    fake.default = answer
    teacher = teacher_of(fake)
    assert teacher.plan("q") == "ok" and teacher.plan("r") == "ok" and len(fake.bodies) == 4
    assert "asked without temperature, which the server does not take" in teacher.summary()
    assert fake.bodies[3]["max_completion_tokens"] == 2048 and {"temperature", "max_tokens"}.isdisjoint(fake.bodies[3])


def test_a_student_is_never_asked_at_another_temperature(fake):
    from plumbing.chat_api import chat_completion
    fake.default = lambda body: (400, b"'temperature' does not support 0.6") if "temperature" in body else "ok"
    with pytest.raises(BadReply, match="temperature"):
        chat_completion(fake.url, {"model": "m", "messages": [], "temperature": 0.6}, backoff=0.01)


def test_an_error_that_merely_names_a_field_changes_nothing(fake):
    fake.script = [(400, b"the prompt about temperature and seed is too long; max_completion_tokens leaves no room")] * 2
    teacher = teacher_of(fake)
    with pytest.raises(BadReply):
        teacher.plan("What is the temperature?")
    assert teacher.plan("q") == "ok" and {"temperature", "seed", "max_tokens"} < set(fake.bodies[-1])


def test_requests_keep_their_keys_in_the_cache(fake):
    """The body by which replies are found: a paid cache stays good."""
    asked = []
    teacher = teacher_of(fake)
    teacher.cache.reply = lambda body, send: (asked.append(body), ({"message": {"content": "ok"}, "usage": {}}, True))[1]
    teacher.plan("q")
    assert {name: value for name, value in asked[0].items() if name != "messages"} == {
        "model": "m", "temperature": 0.5, "max_tokens": 2048, "seed": 0}


def test_a_student_behind_an_endpoint_may_be_silent(fake):
    from plumbing.engines import URLEngine

    class Talk:
        messages, max_tokens, calls = [{"role": "user", "content": "q"}], 9, 0

        def sampling_seed(self, seed):
            return seed

        def turn(self, content, complete):
            self.ended = content, complete
    fake.script = [(400, b"maximum context length")]
    with pytest.raises(InputError, match="--student-url .*maximum context length"):        # not even the first request
        URLEngine(fake.url, "m").play([talk := Talk()])
    fake.script, talk.calls = [(400, b"maximum context length")], 1
    URLEngine(fake.url, "m").play([talk])
    assert talk.ended == ("", False)
    fake.script, talk = [(400, b"maximum context length")], Talk()
    talk.messages = talk.messages + [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    URLEngine(fake.url, "m").play([talk])                  # a corrected step was too much, or a verdict
    assert talk.ended == ("", False)
    for reply, ended in ((completion(None, "length"), ("", False)), (completion([{"type": "text", "text": "a"}]), ("a", True))):
        fake.script, talk = [reply], Talk()
        URLEngine(fake.url, "m").play([talk])
        assert talk.ended == ended


# ---------------------------------------------------------------- files and commands

def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_read_tasks_field_names(tmp_path):
    path = write(tmp_path / "t.jsonl", {"question": "a", "answer": 7}, "", {"id": 3, "problem": "b", "true_answer": "x #### 1,2"},
                 {"Question": "c", "answer": ["u", 2], "level": 5}, {"question": "a", "answer": 7})
    tasks = read_tasks(path)
    assert [t["answer"] for t in tasks] == ["7", "1,2", ["u", "2"], "7"] and tasks[1]["id"] == "3"
    assert "messages" not in read_tasks(write(tmp_path / "m.jsonl", {"question": "a", "answer": 7, "messages": []}))[0]
    assert tasks[2]["level"] == 5 and tasks[2]["question"] == "c" and len({t["id"] for t in tasks}) == 4
    assert read_tasks(path)[0]["id"] == tasks[0]["id"]


@pytest.mark.parametrize("line, message", [
    ('{"question": "a"', "line 2: not valid JSON"), ("[1]", "line 2: not a JSON object"), ('{"answer": 1}', 'line 2: .*"question"'),
    ('{"question": "b"}', 'line 2: .*"answer"'), ('{"id": "7", "question": "c", "answer": 1}', 'line 2: the id "7"')])
def test_bad_lines_name_file_line_and_field(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", {"id": 7, "question": "a", "answer": 0}, line)
    with pytest.raises(InputError, match=f"bad.jsonl, {message}"):
        read_tasks(path)


@pytest.mark.parametrize("name, n", [("arpo_eval/hotpotqa/test.jsonl", 200), ("arpo_eval/math500/test.jsonl", 500),
                                     ("arpo_eval/bamboogle/test.jsonl", 125), ("arpo_eval/aime24/test.jsonl", 30),
                                     ("arpo_eval/aime25/test.jsonl", 30), ("score_release/math_seed.jsonl", None),
                                     ("score_release/search_seed.jsonl", None)])
def test_public_files_are_read_as_they_are(name, n):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        pytest.skip(f"{name} is not here")
    tasks = read_tasks(path)
    assert n in (None, len(tasks)) and all(t["question"] and t["answer"] for t in tasks)


def test_appended_lines_survive_a_torn_end(tmp_path):
    path = str(tmp_path / "out.jsonl")
    assert resume_jsonl(path) == []
    with open(path, "a", encoding="utf-8") as file:
        for i in range(3):
            append_jsonl(file, {"id": i, "text": "é\ud83d\n"})
    whole = open(path, "rb").read()
    for cut in range(len(whole)):
        with open(path, "wb") as file:
            file.write(whole[:cut])
        records = resume_jsonl(path)
        done = whole[:cut].count(b"\n") + (whole[cut:cut + 1] == b"\n" and cut > 0)
        assert [r["id"] for r in records] == list(range(done)) and resume_jsonl(path) == records
        assert open(path, "rb").read() == b"".join(whole.splitlines(True)[:done])


def run(*command):
    import subprocess
    return subprocess.run([sys.executable, os.path.join(ROOT, "judge.py"), *command], capture_output=True, text=True)


def test_audit(fake, tmp_path):
    path = write(tmp_path / "p.jsonl", *({"problem": f"p{label}", "steps": ["one", "two"], "label": label} for label in (-1, 0, 1, 1)))
    replies = {"p-1": '{"correct": true}', "p0": '{"correct": false, "first_wrong_step": 0}', "p1": "rubbish"}
    fake.default = lambda body: replies[body["messages"][1]["content"].split("\n")[1]]
    done = run("audit", "--teacher-url", fake.url, "--teacher-model", "m", "--data", path)
    assert done.returncode == 0, done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("p.jsonl"))
    assert row[1:] == ["4", "33.3", "0.0", "0.0", "0.0", "100.0", "50.0", "2"] and "61.2" in done.stdout
    assert "# Trajectory\n## Step 0\none\n## Step 1\ntwo" in fake.bodies[0]["messages"][1]["content"]


def trajectory(question, first_wrong_step, **more):
    """A finished run of three steps."""
    messages = [{"role": "user", "content": question}]
    for content, seen in (("<first_thought>Count.</first_thought>", "None"), ("<thought>a</thought><code>a=1</code>", "1")):
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": f"Observation: {seen}"}]
    messages.append({"role": "assistant", "content": "<thought>b</thought><code>final_answer_print(a)</code>"})
    return {"question": question, "answer": "2", "messages": messages, "prediction": "1", "stop": "answer",
            "first_wrong_step": first_wrong_step, **more}


def test_audit_of_trajectories_tells_exact_earlier_and_later(fake, tmp_path):
    said = {"exact": 1, "earlier": 0, "later": 2, "none": None, "right": None, "blamed": 2}
    path = write(tmp_path / "runs.jsonl", *(trajectory(name, -1 if name in ("right", "blamed") else 1) for name in said))

    def answer(body):
        step = said[body["messages"][1]["content"].split("\n")[1]]
        return json.dumps({"correct": step is None, "first_wrong_step": step})
    fake.default = answer
    done = run("audit", "--teacher-url", fake.url, "--teacher-model", "m", "--data", path)
    assert done.returncode == 0, done.stderr
    head, row = (line.split() for line in done.stdout.splitlines() if line.startswith(("file", "runs.jsonl")))
    assert dict(zip(head, row)) == {"file": "runs.jsonl", "n": "6", "exact": "25.0", "earlier": "25.0", "later": "25.0",
                                    "none": "25.0", "correct": "50.0", "F1": "33.3", "unusable": "0"}
    asked = fake.bodies[0]["messages"][1]["content"]                           # all that mps.py would show
    assert "# Reference answer\n2" in asked and asked.endswith("# Prediction\n1") and "Observation: 1" in asked


@pytest.mark.parametrize("line", [
    {"problem": "p", "steps": "one", "label": 0}, {"problem": "p", "steps": ["one"], "label": "0"},
    trajectory("p", 3), trajectory("p", None), trajectory("p", 0, messages="text"), trajectory("p", True)])
def test_audit_names_a_malformed_task(fake, tmp_path, line):
    done = run("audit", "--teacher-url", fake.url, "--data", write(tmp_path / "p.jsonl", line))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "p.jsonl, " in done.stderr
    assert any(f'the field "{name}"' in done.stderr for name in ("steps", "label", "messages", "first_wrong_step"))


def test_decontaminate(tmp_path):
    long = "Which man who presented the Australia 2022 FIFA World Cup bid was born on October 22, 1930?"
    bench = write(tmp_path / "bench.jsonl", {"Question": long, "answer": "a"}, {"problem": "What is 1+1?", "answer": 2})
    tasks = write(tmp_path / "tasks.jsonl", {"question": long.upper(), "true_answer": "x"}, {"question": "What is  1 + 1", "answer": 2},
                  {"question": "Tell me: " + long.replace("Which", "what"), "answer": 1}, {"question": "What is 1+2?", "answer": 3},
                  {"question": "Who presented the Italian bid?", "answer": 3, "k": [1]}, {"question": "what is 1+2", "answer": 3})
    out = str(tmp_path / "out.jsonl")
    done = run("decontaminate", "--tasks", tasks, "--against", bench, "--out", out)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["question"] for line in open(out)] == ["What is 1+2?", "Who presented the Italian bid?"]
    assert "2 tasks hold one word for word, 1 nearly" in done.stdout and "1 as repeated" in done.stdout


@pytest.mark.parametrize("command, message", [
    (["decontaminate", "--tasks", "nowhere.jsonl", "--against", "x", "--out", "y"], "cannot read nowhere.jsonl: No such file"),
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--teacher-model", "m", "--data", "x"], "no model answers at http://127.0.0.1:9"),
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--data", "x", "--concurrency", "0"], "--concurrency 0"),
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--data", "x", "--teacher-cache", __file__], "--teacher-cache"),
    (["decontaminate", "--tasks", os.devnull, "--against", os.devnull, "--out", "y"], f"{os.devnull} is empty")])
def test_what_the_user_can_mend_is_one_sentence(command, message):
    done = run(*command)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
