"""demo/faults.py: what the first wrong step of a toy run does."""
import random

import pytest

import faults
import world
from conftest import script
from test_stages import write


def tasks(kind, n):
    found = world.make_tasks(random.Random(0), "t", 40, set())
    return next(task for task in found if (task["kind"], task["horizon"]) == (kind, n))


def run(question, *steps):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "<first_thought>P</first_thought>"},
                {"role": "user", "content": "Observation: None"}]
    for code, seen in steps:
        messages += [{"role": "assistant", "content": f"<thought>T.</thought><code>{code}</code>"},
                     {"role": "user", "content": f"Observation: {seen}"}]
    return {"question": question, "messages": messages[:-1], "score": 0.0}


AMOUNT = "Lea has 6 pears, plus 3, times 2, minus 4. How many pears does Lea have?"
GIVEN = ("Lea=6\nprint(Lea)", "6")


@pytest.mark.parametrize("steps, kind", [
    ([GIVEN, ("Lea=12\nprint(Lea)", "12")], "leaps to an amount"),
    ([GIVEN, ("Lea=Lea*5\nprint(Lea)", "30")], "takes another operation"),
    ([GIVEN, ("Lea=Lea+3\nprint(Lea)", "9"), ("final_answer_print(Lea)", "9")], "ends too early"),
    ([GIVEN, ("Lea=Lea+3\nprint(Lea)", "9")], "is cut off or has no form"),
    ([GIVEN, ("Lea=18\nprint(Lea)", "18"), ("Lea=Lea-5\nprint(Lea)", "13")], "takes another operation")])      # 18 is right
def test_amounts(steps, kind):
    assert faults.fault(run(AMOUNT, *steps)) == kind


def test_names():
    question = tasks("search", 3)["question"]
    (first, start, one), (second, _, two), _ = world.parse_search(question)
    found = (f'print(web_search("{first} of {start}"))', f"The {first} of {start} is {one}.")
    for step, kind in [((f'print(web_search("{second} of Nobody Here"))', ""), "leaps to a name"),
                       (('final_answer_print("Nobody Here")', ""), "leaps to a name"),
                       ((f'print(web_search("{first} of {one}"))', ""), "takes another link"),
                       ((f'final_answer_print("{one}")', one), "ends too early"),
                       (("print(1)", "1"), "is cut off or has no form")]:
        assert faults.fault(run(question, found, step)) == kind
    guessed = (f'print(web_search("{second} of {one}"))', two)             # the right name, which it has not read
    assert faults.fault(run(question, guessed, (f'print(web_search("{first} of {two}"))', ""))) == "takes another link"


def test_the_table(tmp_path):
    (tmp_path / "bc-greedy").mkdir()
    write(tmp_path / "bc-greedy" / "predictions.jsonl",
          [run(AMOUNT, GIVEN, ("Lea=12\nprint(Lea)", "12")), {**run(AMOUNT), "score": 1.0}])
    assert script("demo/faults.py", tmp_path / "bc-greedy").stdout.splitlines()[-1] == "| bc-greedy | 1 | 1 | 0 | 0 | 0 | 0 | 0 |"
    done = script("demo/faults.py", tmp_path, check=False)
    assert done.returncode and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
