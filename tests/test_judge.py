"""judge.py: answers, replies, leaks, the client under injected faults, files, commands."""

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
from plumbing.records import append_jsonl, read_tasks, resume_jsonl  # noqa: E402
from plumbing.replies import Verdict, leaked, parse_correction, parse_step, parse_verdict, same_step_cheap  # noqa: E402

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
                 "<thought>**Thought:** Add.</thought> <code>x = 1\nprint(x)\n</code>", wanted + wanted):
        assert parse_step(text) == wanted
    for text in ("", "<thought>a</thought>", "<thought>a</thought><code></code>", "<thought></thought><code>1</code>"):
        with pytest.raises(ValueError):
            parse_step(text)


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
    assert row[1:] == ["4", "33.3", "100.0", "50.0", "2"] and "61.2" in done.stdout
    assert "# Trajectory\n## Step 0\none\n## Step 1\ntwo" in fake.bodies[0]["messages"][1]["content"]


@pytest.mark.parametrize("line", [{"problem": "p", "steps": "one", "label": 0}, {"problem": "p", "steps": ["one"], "label": "0"}])
def test_audit_names_a_malformed_task(fake, tmp_path, line):
    done = run("audit", "--teacher-url", fake.url, "--data", write(tmp_path / "p.jsonl", line))
    assert done.returncode == 2 and "p.jsonl, task" in done.stderr and "Traceback" not in done.stderr


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
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--teacher-model", "m", "--data", "x"], "no teacher answers at http://127.0.0.1:9"),
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--data", "x", "--concurrency", "0"], "--concurrency 0"),
    (["audit", "--teacher-url", "http://127.0.0.1:9", "--data", "x", "--teacher-cache", __file__], "--teacher-cache"),
    (["decontaminate", "--tasks", os.devnull, "--against", os.devnull, "--out", "/proc/x/y"], "No such file or directory: '/proc/x/y'")])
def test_what_the_user_can_mend_is_one_sentence(command, message):
    done = run(*command)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
