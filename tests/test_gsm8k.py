"""demo/gsm8k_teacher.py: solutions read, demonstrations that run, first errors, corrections; demo/gsm8k.sh."""
import ast
import collections
import copy
import json
import os
import random
import subprocess

import pytest

import bc
import gsm8k
import gsm8k_teacher
import judge
import mps
import teacher as demo_teacher
from conftest import ROOT, script
from env import Episode
from plumbing.chat_api import BadReply
from plumbing.cli import InputError
from plumbing.trajectory import code_of, step_of
from sandbox import Interpreter, set_sandbox

DATA = os.path.join(ROOT, "..", "shared", "data", "gsm8k")
needs_data = pytest.mark.skipif(not os.path.exists(os.path.join(DATA, "train.jsonl")),
                                reason="GSM8K is not in ../shared/data/gsm8k")

# ---- invented problems in GSM8K's form: question, annotated solution, expressions, names ----

PROBLEMS = [
    ("Wilma walks 47 km in May and half as far in June. In July she walks 19 km more than in June. How far in July?",
     "In June she walks 47/2 = <<47/2=23.5>>23.5 km.\nIn July she walks 23.5+19 = <<23.5+19=42.5>>42.5 km.\n#### 42.5",
     ["47 / 2", "_0 + 19"], ["km", "km_2"]),
    ("A ferry carries 83 cars at $17 each and 29 bicycles at $6 each. What does a trip bring in?",
     "The cars bring in 83*17 = $<<83*17=1411>>1,411.\nThe bicycles bring in 29*6 = $<<29*6=174>>174.\nTogether that is "
     "1,411 + 174 = $<<1411+174=1585>>1,585 a trip.\n#### 1,585",
     ["83 * 17", "29 * 6", "_0 + _1"], ["dollars", "dollars_2", "dollars_3"]),
    ("Otto has $340. He buys 7 lamps for $23 each and 3 chairs for $31 each. How much is left?",
     "The lamps cost 7*23 = $<<7*23=161>>161.\nThe chairs cost 3*31 = $<<3*31=93>>93.\nHe has $340 - $161 - $93 = "
     "$<<340-161-93=86>>86 left.\n#### 86",
     ["7 * 23", "3 * 31", "340 - _0 - _1"], ["dollars", "dollars_2", "dollars_3"]),
    ("Of 640 trees 35% are firs. A storm fells 58 firs and 4 times as many other trees. How many other trees stand?",
     "There are 35/100*640 = <<35/100*640=224>>224 firs.\nThere are 640-224 = <<640-224=416>>416 other trees.\nThe storm "
     "fells 58*4 = <<58*4=232>>232 other trees.\nSo 416-232 = <<416-232=184>>184 trees stand.\n#### 184",
     ["35 / 100 * 640", "640 - _0", "58 * 4", "_1 - _2"], ["firs", "trees", "trees_2", "stand"]),
    ("Ida reads 38 pages a day for 13 days of a book of 900 pages. How many pages a day must she read to finish it in "
     "another 7 days?",
     "She reads 38*13=<<38*13=494>>494 pages in 13 days.\nShe has <<900-494=406>>406 pages to go.\nThat is 406 pages / 7 "
     "days = <<406/7=58>>58 pages per day.\n#### 58",
     ["38 * 13", "900 - _0", "_1 / 7"], ["pages", "pages_2", "pages_per_day"]),
]
LEFT_OUT = [("Kim has 4 coins. How many?", "She has 4 coins.\n#### 4", "no annotation"),
            ("Kim has 4 coins and 5 more. How many?", "She has <<4+5=8>>8 coins.\n#### 8", "an annotation that does not"),
            ("Kim has 4 coins and 5 more. How many?", "She has <<4+5=9>>9 coins.\n#### 8", "the last annotation is not"),
            ("Kim has some coins. How many?", "She has <<27=27>>27 coins.\n#### 27", "a step without a computation"),
            ("Kim has 4 coins. How many?", "She has <<4 coins=4>>4 coins.\n#### 4", "an annotation that is no expression"),
            ("Kim has 4 coins. How many?", "She has <<4=4>>4 coins.\n#### many", "its result is no number")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder in GSM8K's form."""
    folder = tmp_path_factory.mktemp("gsm8k")
    rows = [{"question": question, "answer": answer} for question, answer, *_ in [*PROBLEMS, *LEFT_OUT]]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tests = [{"question": f"What is {n} and {n + 1}?", "answer": f"That is <<{n}+{n + 1}={2 * n + 1}>>.\n#### {2 * n + 1}"}
             for n in range(20, 24)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    return str(folder)


def serve(folder):
    server, url = demo_teacher.serve(gsm8k_teacher.parse_args(["--data", str(folder), "--port", "0"]), gsm8k_teacher.Handler)
    asked = judge.Teacher(url)
    asked.check()
    assert asked.model == "gsm8k-solutions"
    return server, asked


@pytest.fixture(scope="module")
def asked(data):
    """judge.Teacher in front of the invented problems: every request of these tests goes through HTTP."""
    set_sandbox("auto", False)
    server, asked = serve(data)
    yield asked
    server.shutdown()


def demonstrated(asked, question, answer):
    """The trajectory that bc.py gets, or None."""
    args = bc.parse_args(["--tasks", "-", "--out", "-", "--teacher-url", asked.url, "--max-steps", "10", "--attempts", "1"])
    trajectory, faults = bc.solve(asked, {"id": "a", "question": question, "answer": answer}, None, args, bc.demonstrate)
    assert trajectory is not None, (question, faults)
    return trajectory


def run(question, contents):
    """An episode of these turns."""
    episode = Episode({"id": "a", "question": question}, Interpreter(), max_steps=10)
    for content in contents:
        if episode.stop is None:
            episode.turn(content)
    episode.interpreter.close()
    return episode


def codes(question, answer, *programs):
    """An episode of these programs."""
    return run(question, ["<first_thought>I compute.</first_thought>",
                          *(f"<thought>I go on.</thought><code>{program}</code>" for program in programs)])


def judged(asked, answer, episode):
    return asked.verdict(episode.task["question"], answer, episode.messages, episode.prediction, episode.stop)


def broken_steps(code):
    """Every program with one number or one operator of this one changed."""
    def places(tree):
        return [node for node in ast.walk(tree) if isinstance(node, (ast.BinOp, ast.Constant))]
    for n, place in enumerate(places(ast.parse(code))):
        others = [ast.Add(), ast.Sub(), ast.Mult(), ast.Div()]
        for change in others if isinstance(place, ast.BinOp) else (1, 2, 10):
            tree = copy.deepcopy(ast.parse(code))
            node = places(tree)[n]
            if isinstance(node, ast.Constant):
                node.value += change
            elif isinstance(node.op, type(change)):
                continue
            else:
                node.op = change
            yield ast.unparse(tree)


# ---- solutions ----

@pytest.mark.parametrize("question, solution, expressions, names", PROBLEMS)
def test_a_solution_is_read(question, solution, expressions, names):
    problem = gsm8k.read_solution(question, solution)
    assert [ast.unparse(step.tree) for step in problem.steps] == expressions
    taken = []
    for step in problem.steps:
        taken.append(gsm8k.name_of(step, taken))
        assert gsm8k.fraction(str(float(step.value))) not in gsm8k.numbers(step.sentence)          # no result in advance
        assert "<<" not in step.sentence
    assert taken == names


@pytest.mark.parametrize("question, solution, reason", LEFT_OUT)
def test_what_is_no_chain_is_left_out(question, solution, reason):
    assert gsm8k.read_solution(question, solution).startswith(reason)


def test_sentences_without_results():
    def sentences(solution):
        return [step.sentence for step in gsm8k.read_solution("He has 16 or 12 of 2 things.", solution).steps]
    assert sentences("He eats 32 slices, as 2 x 16 = <<2*16=32>>32\n#### 32") == ["He eats 2 * 16 slices, as 2 x 16."]
    assert sentences("Now there are $<<16-12=4>>4 left.\n#### 4") == ["Now there are 16 - 12 left."]
    assert sentences("In 2 hours * 16 mph = <<2*16=32>>32 miles.\n#### 32") == ["In 2 hours * 16 mph = ? miles."]
    assert sentences("It takes 16 minutes * 2 = <<16*2=32>>32 minutes.\n#### 32") == ["It takes 16 minutes * 2 = ? minutes."]
    assert sentences("First the sum.\n2+16 = <<2+16=18>>18.\n18/2=<<18/2=9>>9\n#### 9") == ["First the sum. 2+16.", "18/2."]
    assert sentences("All are <<12=12>>12.\n12+2=<<12+2=14>>14\n#### 14") == ["12+2."]               # a number of the question


@pytest.mark.parametrize("question, solution, expressions", [
    ("Of 40 eggs 20 % broke, of 60 more 30. How many?",
     "There are 40+60 = <<40+60=100>>100.\nOf these 20/100*40 = <<20/100*40=8>>8 broke.\nAll are 100-8-30 = "
     "<<100-8-30=62>>62.\n#### 62", ["40 + 60", "20 / 100 * 40", "_0 - _1 - 30"]),
    ("He runs 20 minutes and again twice as long. How many hours?",
     "He runs 20*2 = <<20*2=40>>40 minutes.\nTogether 20+40 = <<20+40=60>>60.\nThat is 60/60 = <<60/60=1>>1 hour.\n#### 1",
     ["20 * 2", "20 + _0", "_1 / 60"])])
def test_a_unit_is_no_earlier_result(question, solution, expressions):
    assert [ast.unparse(step.tree) for step in gsm8k.read_solution(question, solution).steps] == expressions


def test_a_broken_file_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no train.jsonl: fetch"):
        gsm8k.read_problems(str(tmp_path))
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": 3}\n')
    with pytest.raises(InputError, match="train.jsonl, line 2: not an object"):
        gsm8k.read_problems(str(tmp_path))
    for line, fault in ('{"question": "a", "answer": 18}', "not an object"), ("[", "JSON"):
        (tmp_path / "train.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match=f"train.jsonl, line 1: .*{fault}"):
            gsm8k.read_problems(str(tmp_path))
    missing = script("demo/gsm8k_teacher.py", "--data", tmp_path / "none", check=False)
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and "fetch" in missing.stderr


# ---- demonstrations ----

@pytest.mark.parametrize("question, solution, expressions, names", PROBLEMS)
def test_demonstrations_run_and_end_in_the_answer(asked, question, solution, expressions, names):
    answer = solution.rpartition("#### ")[2]
    trajectory = demonstrated(asked, question, answer)
    steps = [message["content"] for message in trajectory["messages"][1::2]]
    assert len(steps) == len(expressions) + 2                              # the plan and the answer
    assert [code_of(step).split(" = ")[0] for step in steps[1:-1]] == names
    assert code_of(steps[-1]) == f"final_answer_print({names[-1]})"
    assert not any(ch.isdigit() for ch in steps[0])


def test_other_questions_are_refused(asked):
    with pytest.raises(BadReply, match="HTTP 400"):
        asked.plan("How many stars are there?")


# ---- verdicts ----

def check_planted_errors(asked, question, answer, choose):
    """Counts of {"found", "late", "early"}: one step of the demonstration is broken, the others stay."""
    counts = collections.Counter()
    trajectory = demonstrated(asked, question, answer)
    contents = [message["content"] for message in trajectory["messages"][1::2]]
    right = [float(message["content"].split()[-1]) for message in trajectory["messages"][4::2]]
    for k in range(1, len(contents) - 1):
        for code in choose(list(broken_steps(code_of(contents[k])))):
            episode = run(question, [*contents[:k], f"<thought>I go on.</thought><code>{code}</code>", *contents[k + 1:]])
            seen = episode.messages[2 + 2 * k]["content"].split()[-1]
            if "Error" in seen or gsm8k_teacher.close(float(seen), right[k - 1]):
                continue                                   # 2 * 2 for 2 + 2 is right
            if episode.prediction is not None and gsm8k_teacher.same_answer(episode.prediction, answer):
                continue                                   # two changes that cancel each other
            verdict = judged(asked, answer, episode)
            assert not verdict.correct
            named = verdict.first_wrong_step
            counts["found" if named == k else "late" if named > k else "early"] += 1
    return counts


@pytest.mark.parametrize("question, solution, expressions, names", PROBLEMS)
def test_a_planted_error_is_found_at_every_step(asked, question, solution, expressions, names):
    counts = check_planted_errors(asked, question, solution.rpartition("#### ")[2], lambda programs: programs)
    assert counts["found"] >= 4 * len(expressions)
    assert set(counts) == {"found"}, counts


OTTO, FERRY, TREES = PROBLEMS[2][0], PROBLEMS[1][0], PROBLEMS[3][0]


@pytest.mark.parametrize("question, answer, programs", [
    (OTTO, "86", ["a = 340 - 3*31\nprint(a)", "b = a - 23*7\nprint(b)"]),                        # another order
    (OTTO, "86", ["spent = 7*23 + 3*31\nprint(spent)", "left = 340 - spent\nprint(left)"]),
    (OTTO, "86", ["print(340 - (7*23 + 3*31))"]),                                                 # all at once
    (OTTO, "86", ["money = 340\nprint(money)", "money -= 7*23\nmoney -= 93\nprint(f'{money} left')"]),
    (FERRY, "1585", ["a = 29*6\nb = 83*17\nprint(a, b)", "print('sum', a + b)"]),
    (FERRY, "1585", ["total = 0\nfor n, p in ((83, 17), (29, 6)):\n    total += n*p\nprint(total)"]),
    (TREES, "184", ["firs = 0.35*640\nprint(firs)", "others = 640 - firs\nprint(others - 4*58)"]),
    (TREES, "184", ["share = 100 - 35\nprint(share)", "others = 640*share/100\nprint(others)", "print(others - 232)"]),
    (TREES, "184", ["share = 1 - 35/100\nprint(share)", "fallen = 4*58\nprint(fallen)", "print(share*640 - fallen)"]),
])
def test_right_steps_pass_however_they_are_taken(asked, question, answer, programs):
    """Only the last step, which gives a wrong answer, is named; and the right answer is."""
    episode = codes(question, answer, *programs, "final_answer_print(1)")
    assert judged(asked, answer, episode).first_wrong_step == len(programs) + 1
    assert judged(asked, answer, codes(question, answer, *programs, f"final_answer_print({answer})")).correct


def in_words(question, solution):
    return gsm8k_teacher.Solution(gsm8k.read_solution(question, solution))


def first_wrong(solution, prediction, *programs):
    """The step that the teacher names in a run of these programs with a wrong answer."""
    contents = ["<first_thought>I compute.</first_thought>",
                *(f"<thought>I go on.</thought><code>{program}</code>" for program in programs)]
    said = gsm8k_teacher.verdict(solution, [(content, "") for content in contents], prediction)
    return json.loads(said)["first_wrong_step"]


def test_a_result_found_by_accident_is_wrong():
    """12 + 6 is as much as 6 bags of 3, and the solution's text says 18."""
    coins = in_words("Kim has 6 bags of 3 coins each. She buys 12 more coins. How many coins has she?",
                     "She has 6*3 = <<6*3=18>>18 coins.\nWith the others 18+12 = <<18+12=30>>30.\n#### 30")
    assert first_wrong(coins, "18", "coins = 6 + 12\nprint(coins)", "final_answer_print(coins)") == 1
    assert first_wrong(coins, "18", "coins = 6 * 3\nprint(coins)", "final_answer_print(coins)") == 2
    # 25 is the annotator's own: what is computed from it may be found in any way
    bugs = in_words("Dax saw 40 bugs, and a quarter of a hundred more. Half of all flew off. How many?",
                    "He saw 25 more.\nThat is 40+25 = <<40+25=65>>65 bugs.\nSo 65/2 = <<65/2=32.5>>32.5 flew.\n#### 32.5")
    assert first_wrong(bugs, "65", "more = 100 / 4\nprint(more)", "bugs = 40 + more\nprint(bugs)", "final_answer_print(bugs)") == 3


@pytest.mark.parametrize("sum_of_two", ["lamps + chairs", "161 + 93"])
def test_printed_numbers_are_followed_like_variables(sum_of_two):
    tables = in_words("Ann has $900. She buys 7 lamps for $23 each, 3 chairs for $31 each and 2 tables for $47 each. What is left?",
                      "Lamps cost 7*23 = $<<7*23=161>>161.\nChairs 3*31 = $<<3*31=93>>93.\nTables 2*47 = $<<2*47=94>>94.\nShe has "
                      "900-161-93-94 = $<<900-161-93-94=552>>552 left.\n#### 552")
    programs = ["lamps = 7*23\nprint(lamps)", "chairs = 3*31\nprint(chairs)", "tables = 2*47\nprint(tables)",
                f"two = {sum_of_two}\nprint(two)", "spent = two + 94\nprint(spent)", "final_answer_print(spent)"]
    assert first_wrong(tables, "348", *programs) == len(programs)              # only the answer is wrong


def test_runs_without_an_answer(asked):
    lost = codes(OTTO, "86", "a = 7*23\nprint(a)", "print(a)", "print(unknown)")
    assert judged(asked, "86", lost).first_wrong_step == 2                     # the first without progress
    for text in ("I have no idea.", "", "## Step 7\nFirst."):
        plan = run(OTTO, [text])
        assert plan.stop == "format" and judged(asked, "86", plan).first_wrong_step == 0
    words = run(OTTO, ["<first_thought>I compute.</first_thought>", "It is 86."])
    assert judged(asked, "86", words).first_wrong_step == 1


# ---- corrections ----

class Broken:
    """A student that takes the teacher's steps, one of them broken; after a correction it goes on rightly."""
    batched = True

    def __init__(self, contents, k, code):
        self.contents, self.k, self.code = contents, k, code

    def play(self, episodes, progress=None, **_):
        for e in episodes:
            while e.stop is None:
                k = step_of(e.messages)
                content = self.contents[k]
                if k == self.k and e.first_step == 0:
                    content = f"<thought>I go on.</thought><code>{self.code}</code>"
                e.turn(content)


@pytest.mark.parametrize("question, solution, expressions, names", PROBLEMS)
def test_a_correction_and_going_on_reach_the_answer(asked, question, solution, expressions, names):
    answer = solution.rpartition("#### ")[2]
    contents = [message["content"] for message in demonstrated(asked, question, answer)["messages"][1::2]]
    args = mps.parse_args(["--tasks", "-", "--student", "-", "--out", "-", "--teacher-url", asked.url, "--max-steps", "10"])
    for k in range(1, len(contents) - 1):
        code = next(broken_steps(code_of(contents[k])))
        done = []
        mps.play([{"id": "a", "question": question, "answer": answer}], Broken(contents, k, code),
                 judge.Teacher.from_args(args), None, args, done.append)
        record = done[0].record()
        assert record["outcome"] == "corrected", record["reason"]
        (correction,) = record["corrections"]
        assert correction["step"] == k and correction["chosen"]["content"] == contents[k]


def test_a_correction_starts_from_what_the_student_has(asked):
    """Its own names, its other order, what it jumped over."""
    episode = codes(OTTO, "86", "stools = 3*31\nprint(stools)", "lamps = 7*32\nprint(lamps)", "final_answer_print(lamps)")
    assert judged(asked, "86", episode).first_wrong_step == 2
    before = episode.messages[:5]
    content = asked.correct(OTTO, "86", before, episode.messages[5]["content"], "224", "It is wrong.", "Do it anew.")
    assert code_of(content) == "dollars = 7 * 23\nprint(dollars)"
    after = [*before, {"role": "assistant", "content": content}, {"role": "user", "content": "Observation: 161"}]
    assert code_of(asked.step(OTTO, after)) == "dollars_2 = 340 - dollars - stools\nprint(dollars_2)"
    plan = asked.correct(OTTO, "86", before[:1], "I have no idea.", None, "It is no plan.", "Make one.")
    assert plan.startswith("<first_thought>First I find ")
    all_at_once = codes(OTTO, "86", "print(340 - 7*23 - 3*31)").messages
    assert code_of(asked.step(OTTO, all_at_once)) == "final_answer_print(86)"


@pytest.mark.parametrize("program", [
    "print(nothing)\nlamps = 7*23", "lamps = 161\nfor i in range(3):\n    lamps += i\nprint(lamps)", "print('9' * 6000)",
    "x = 999999**20 * 999999**20\nprint(x > 0)", "x = " + "+".join("1" * 3000) + "\nprint(x)", "x = = 1", "x = 9**99999",
    "def f(): return 161\nlamps = f()", "x = 1e400", "lamps, x = 161, 5\nprint(-5)", "x = 5 % 0"])
def test_code_that_rules_cannot_read(asked, program):
    """It is answered, and the next step stands on nothing that is not there."""
    before = codes(OTTO, "86", "chairs = 3*31\nprint(chairs)").messages
    episode = run(OTTO, [before[1]["content"], before[3]["content"], f"<thought>I try.</thought><code>{program}</code>"])
    assert judged(asked, "86", episode).first_wrong_step in (1, 2)
    while episode.stop is None:
        episode = run(OTTO, [m["content"] for m in episode.messages[1::2]] + [asked.step(OTTO, episode.messages)])
    assert episode.prediction is not None and judge.check_by_rule(episode.prediction, "86")


# ---- equivalence ----

def test_same_steps_and_answers(asked):
    def step(code, seen):
        return {"content": f"<thought>Other words.</thought><code>{code}</code>", "observation": seen}
    before = codes(OTTO, "86", "lamps = 7*23\nprint(lamps)").messages
    same = [("chairs = 3*31", "None", "c = 31 * 3\nprint(c)", "93"),
            ("x = 340 - lamps\nprint(x)", "179", "print(340 - 161)", "179"),
            ("final_answer_print(161)", "161", "final_answer_print(lamps)", "161.0")]        # both wrong
    other = [("chairs = 3*31", "None", "c = 3 + 31\nprint(c)", "34"), ("x = 5 * 5", "None", "final_answer_print(25)", "25"),
             ("import math", "None", "pass", "None")]
    for a, seen_a, b, seen_b in same + other:
        wanted = (a, seen_a, b, seen_b) in same
        assert asked.same_step(OTTO, before, step(a, seen_a), step(b, seen_b)) is wanted, (a, b)
    for prediction, wanted in (("86 dollars are left, of all", True), ("85 or 86", False), ("all of it", False), ("-$86 each", False),
                               ("$−86 in all", False), ("86 million of them", False)):
        assert asked.same_answer(OTTO, prediction, "86") is wanted


# ---- the real file ----

@pytest.fixture(scope="module")
def real():
    set_sandbox("auto", False)
    server, asked = serve(DATA)
    yield asked, list(server.args.problems.values())
    server.shutdown()


@needs_data
@pytest.mark.slow
def test_on_the_real_problems(real):
    """A sample of them: demonstrations end in the answer, planted errors are found where they are.

    A few are found later: the broken step finds a value that a right step may find too (100 / 5 of 100 / 2 / 5).
    """
    asked, problems = real
    assert len(problems) > 6700
    rng = random.Random(1)
    for problem in rng.sample(problems, 200):
        demonstrated(asked, problem.question, problem.answer)
    counts = collections.Counter()
    for problem in rng.sample(problems, 50):
        counts += check_planted_errors(asked, problem.question, problem.answer, lambda programs: [rng.choice(programs)])
    assert counts["early"] == 0
    assert counts["found"] >= 0.85 * sum(counts.values()) > 80, counts


# ---- the script ----

def test_the_script_says_what_is_missing(tmp_path):
    done = subprocess.run(["bash", os.path.join(ROOT, "demo", "gsm8k.sh"), "--data", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "https://github.com/openai/grade-school-math" in done.stderr
    done = subprocess.run(["bash", os.path.join(ROOT, "demo", "gsm8k.sh"), "--size", "huge"], capture_output=True, text=True)
    assert done.returncode == 2 and "--size is cpu or gpu" in done.stderr
