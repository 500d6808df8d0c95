"""GSM8K's problems: their annotated solutions as chains of steps, and the tasks of demo/gsm8k.sh.

  python demo/gsm8k.py --data FOLDER --out runs/gsm8k/tasks/all.jsonl --seed 0

FOLDER holds train.jsonl and test.jsonl as OpenAI published them (https://github.com/openai/grade-school-math,
MIT licence): {"question", "answer"}, the answer with calculator annotations, "48/2 = <<48/2=24>>24 clips", and
the result after "####". A chain is consistent if every annotation evaluates to what it states and the last one
is the result. Used are consistent chains whose every step computes: some annotators worked a number out in
their heads and wrote <<27=27>>, which no program can be learned from.
"""
import argparse
import ast
import builtins
import itertools
import keyword
import os
import random
import re
import sys
from fractions import Fraction

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from plumbing.cli import InputError, cli
from plumbing.records import read_jsonl, write_jsonl
from plumbing.trajectory import UNREADABLE, parse_code

WHERE = ("{folder} holds no {name}: fetch train.jsonl and test.jsonl from "
         "https://github.com/openai/grade-school-math (folder grade_school_math/data) into it, or name their folder "
         "with --data")
ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
WORDS = {word: Fraction(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split())}
WORDS |= {"half": Fraction(1, 2), "halves": Fraction(1, 2), "twice": Fraction(2), "double": Fraction(2),
          "third": Fraction(1, 3), "triple": Fraction(3), "thrice": Fraction(3), "quarter": Fraction(1, 4),
          "dozen": Fraction(12), "once": Fraction(1)}
LARGEST = 10 ** 30                        # no problem has a larger number, and a float holds it
# Words after a result that do not say what it counts.
NO_NAME = set("""a about additional after against all altogether among an and are around as at away be because before
    between but by can combined each every extra faster fewer for from had has have he her his if in into is it its
    left less longer more needed of off old older on or out over per remaining she shorter since so taller than that
    the their then there they this through to total until up was were when which who will with worth would x
    younger""".split())


class Step:
    """One step of a solution: what the annotator says of it, how it is computed, what it gives."""

    def __init__(self, sentence, tree, value, label):
        self.sentence = sentence                           # without the result
        self.tree = tree                                   # an expression; ast.Name("_2") is the result of step 2
        self.value = value
        self.label = label                                 # what the result is: "clips in May"; may be ""

    def uses(self):
        """Numbers of the steps whose results it computes with."""
        return {int(node.id[1:]) for node in ast.walk(self.tree) if isinstance(node, ast.Name)}


class Problem:
    def __init__(self, question, solution, answer, steps):
        self.question = question
        self.solution = solution                           # the annotator's text, without the line of the result
        self.answer = answer                               # the result, as text
        self.steps = steps


# ---- arithmetic ----

def number(text):
    return Fraction(text.replace(",", ""))


def numbers(text):
    """The numbers of a text, those in words too."""
    found = {number(n) for n in NUMBER.findall(text)}
    return found | {WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in WORDS}


def has_percent(question):
    """Whether a question speaks of shares of 100."""
    return "%" in question or "percent" in question


def value_of(node, names):
    """Value of an expression, exactly; LookupError, TypeError, ArithmeticError or ValueError where it has none."""
    match node:
        case ast.Constant(value) if type(value) in (int, float, Fraction):
            return of_size(Fraction(str(value)))
        case ast.Name(name) if isinstance(names[name], Fraction):
            return names[name]
        case ast.UnaryOp(ast.USub(), operand):
            return -value_of(operand, names)
        case ast.UnaryOp(ast.UAdd(), operand):
            return value_of(operand, names)
        case ast.BinOp(left, op, right):
            return of_size(operate(value_of(left, names), op, value_of(right, names)))
        case ast.Call(ast.Name("sum" | "max" | "min" as name), [ast.List(parts) | ast.Tuple(parts)], []):
            return {"sum": sum, "max": max, "min": min}[name]([value_of(part, names) for part in parts])
        case ast.Call(ast.Name("max" | "min" as name), [_, _, *_] as parts, []):
            return {"max": max, "min": min}[name]([value_of(part, names) for part in parts])
        case ast.Call(ast.Name("int"), [x], []):
            return Fraction(int(value_of(x, names)))
        case ast.Call(ast.Name("float"), [x], []):
            return value_of(x, names)
        case ast.Call(ast.Name("abs"), [x], []):
            return abs(value_of(x, names))
        case ast.Call(ast.Name("round"), [x], []):
            return Fraction(round(value_of(x, names)))
        case ast.Call(ast.Name("round"), [x, ast.Constant(int() as places)], []) if places in range(20):
            return round(value_of(x, names), places)
    raise TypeError(ast.dump(node))


def of_size(value):
    """The number; OverflowError for one that is in no problem, and may be too large for a float."""
    if abs(value) > LARGEST:
        raise OverflowError
    return value


def operate(a, op, b):
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.FloorDiv():
            return Fraction(a // b)
        case ast.Mod():
            return a % b
        case ast.Pow() if b.denominator == 1 and abs(b) <= 20 and abs(a) < 10 ** 6:
            return Fraction(a ** int(b))
    raise TypeError(ast.dump(op))


# ---- a solution's text -> its steps ----

def read_solution(question, solution):
    """The problem, or the reason why its chain is not used."""
    body, mark, result = solution.rpartition("####")
    answer = result.replace(",", "").strip()
    try:
        gold = number(answer)
    except ValueError:
        return "its result is no number"
    if not mark or not ANNOTATION.search(body):
        return "no annotation"
    steps = []
    said = ""                                              # lines without an annotation belong to the next step
    for line in body.strip().split("\n"):
        end = 0
        places = list(ANNOTATION.finditer(line))
        for n, place in enumerate(places):
            text = line[end:place.start()]
            end = place.end()
            stated = NUMBER.match(line, end)               # the result stands behind its annotation once more
            if stated and number(stated[0].rstrip(",")) == fraction(place[2]):
                end += len(stated[0].rstrip(","))
            tail = line[end:] if n == len(places) - 1 else ""
            step = read_step(f"{said} {text}".strip(), place, tail)
            if isinstance(step, str):
                return step
            steps.append(step)
            said = ""
        if not places:
            said = f"{said} {line.strip()}".strip()
    if steps[-1].value != gold:
        return "the last annotation is not the result"
    given = numbers(question)
    steps = without_repetitions(steps, given)
    if not steps or steps[-1].value != gold or any(is_literal(step.tree) for step in steps):
        return "a step without a computation"
    link(steps, given, has_percent(question))
    return Problem(question, body.strip(), answer, steps)


def fraction(text):
    """The number that a text is; None if it is none."""
    try:
        return number(text.strip().strip("$%"))
    except ValueError:
        return None


def read_step(before, place, tail):
    """The step of one annotation, between the texts before and after it; or what is wrong with it."""
    try:
        tree = parse_code(place[1].strip()).body[0].value
        value = value_of(tree, {})
    except (*UNREADABLE, AttributeError, ArithmeticError):
        return "an annotation that is no expression"
    stated = fraction(place[2])
    if stated is None or not rounds_to(value, stated, place[2]):
        return "an annotation that does not evaluate to what it states"
    unit = "dollars" if before.endswith("$") else ""
    equals = re.search(r"\s*=\s*\$?\s*$", before)
    if equals:
        left = before[:equals.start()]
        unit_there = left[-1:].isalpha() or has_unit(left, tail)
        unknown = " = ?" if unit_there and re.match(r"\s*\w", tail) else ""
        sentence = left + unknown + tail                   # "2 hours * 3 mph = ? miles"
    else:
        sentence = f"{before.rstrip('$').rstrip()} {ast.unparse(tree)}{tail}"
    sentence = without_result(" ".join(sentence.split()), stated, tree)
    if not sentence.endswith((".", "!", "?")):
        sentence += "."
    label = re.split(r"[.,;:!?(=]", tail)[0]
    label = " ".join([unit, *(word for word in label.split() if word.isalpha())][:9]).strip()
    return Step(sentence, tree, stated, label)


def has_unit(left, tail):
    """Whether a number on the left has the unit of the result already: "20 minutes * 2", " minutes of work"."""
    unit = re.match(r"\s*([A-Za-z]+)", tail)
    return bool(unit and re.search(rf"\d {unit[1]} *[-+*x×/÷]", left))


def rounds_to(value, stated, text):
    """Whether a value is what the text states, or is that after rounding to as many places."""
    places = len(text.strip().partition(".")[2])
    return value == stated or (places > 0 and abs(value - stated) <= Fraction(1, 2 * 10 ** places))


def without_result(sentence, value, tree):
    """The sentence with the expression where it states the result: "He eats 32, as 2 x 16" -> "He eats 2 * 16 …"."""
    operands = {Fraction(str(node.value)) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    if value in operands:
        return sentence
    return NUMBER.sub(lambda found: ast.unparse(tree) if fraction(found[0].rstrip(",")) == value else found[0],
                      sentence)


def is_literal(tree):
    """Whether an annotation computes nothing: <<27=27>>."""
    return isinstance(tree, (ast.Constant, ast.UnaryOp))


def without_repetitions(steps, given):
    """The steps without those that only repeat a number of the question or an earlier result."""
    kept = []
    for step in steps:
        known = step.value in given or step.value in [other.value for other in kept]
        if not (is_literal(step.tree) and known):
            kept.append(step)
    return kept


def link(steps, given, percent):
    """Put ast.Name("_k") where a step computes with the result of step k.

    That is where a number is an earlier result and not in the question; and where it is both, if nothing else
    uses that result. percent: whether the question has shares of 100.
    """
    units = [node for step in steps for node in units_of(step.tree, percent)]
    for n in range(len(steps)):
        def earlier(node, n=n):
            value = Fraction(str(node.value))
            places = [k for k in range(n) if steps[k].value == value]
            return places[-1] if places and value not in given and node not in units else None
        steps[n].tree = with_names(steps[n].tree, earlier)
    for k in range(len(steps) - 1):
        for step in steps[k + 1:]:
            if not any(k in other.uses() for other in steps):
                numbers_of = [node for node in ast.walk(step.tree) if isinstance(node, ast.Constant)]
                same = [node for node in numbers_of
                        if Fraction(str(node.value)) == steps[k].value and node not in units]
                if same:                                   # the last of several: "3/5 * 5"
                    last = max(same, key=lambda node: node.col_offset)
                    step.tree = with_names(step.tree, lambda node: k if node is last else None)


def units_of(tree, percent):
    """Divisors that are no results even where a result is the same number: the 100 of 35 / 100, the second 60 of
    60 / 60."""
    quotients = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    return [node.right for node in quotients if isinstance(node.right, ast.Constant)
            and (percent and node.right.value == 100
                 or isinstance(node.left, ast.Constant) and node.left.value == node.right.value)]


def with_leaves(node, leaf):
    """The expression with leaf(x) for each number or name x in it."""
    match node:
        case ast.Constant() | ast.Name():
            return leaf(node)
        case ast.BinOp(left, op, right):
            return ast.BinOp(with_leaves(left, leaf), op, with_leaves(right, leaf))
        case ast.UnaryOp(op, inner):
            return ast.UnaryOp(op, with_leaves(inner, leaf))
    return node


def with_names(node, step_of):
    """The expression with ast.Name("_k") for each number of which step_of says k."""
    def leaf(x):
        k = step_of(x) if isinstance(x, ast.Constant) else None
        return x if k is None else ast.Name(f"_{k}")
    return with_leaves(node, leaf)


def with_results(node, expression_of):
    """The expression with expression_of(k) for each ast.Name("_k")."""
    def leaf(x):
        return expression_of(int(x.id[1:])) if isinstance(x, ast.Name) else x
    return with_leaves(node, leaf)


def name_of(step, taken):
    """A variable's name for the result, as its label says, other than those taken."""
    words = [word.lower() for word in step.label.split() if word.isascii()]
    while words and words[0] in NO_NAME and words[0] != "per":         # "more purple flowers than yellow flowers"
        words = words[1:]
    noun = list(itertools.takewhile(lambda word: word not in NO_NAME, words))
    name = noun[-1] if noun else "result"                  # "flowers"
    rest = words[len(noun):]
    if rest[:1] == ["per"] and len(rest) > 1:
        name = "_".join([*noun[-1:], "per", rest[1]])      # "dollars per minute"
    if keyword.iskeyword(name) or hasattr(builtins, name) or name in ("web_search", "final_answer_print"):
        name += "_number"
    n = 1
    free = name
    while free in taken:
        n += 1
        free = f"{name}_{n}"
    return free


# ---- files ----

def read_file(folder, name):
    """[{"question", "answer"}] of a file; InputError if it is missing or has another form."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        raise InputError(WHERE.format(folder=folder, name=name))
    return list(read_rows(path))


def read_rows(path):
    """Yield {"question", "answer"} of every line, both texts; InputError names the file and the line."""
    for n, record in read_jsonl(path):
        row = {name: record.get(name) for name in ("question", "answer")}
        if not all(isinstance(text, str) for text in row.values()):
            raise InputError(f'{path}, line {n}: not an object with the texts "question" and "answer"')
        yield {"question": row["question"].strip(), "answer": row["answer"]}


def read_problems(folder):
    """({line number: Problem} of train.jsonl, {reason: number of problems left out})."""
    problems = {}
    left_out = {}
    for n, row in enumerate(read_file(folder, "train.jsonl"), 1):
        problem = read_solution(row["question"], row["answer"])
        if isinstance(problem, str):
            left_out[problem] = left_out.get(problem, 0) + 1
        else:
            problems[n] = problem
    return problems, left_out


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", required=True, help="folder with GSM8K's train.jsonl and test.jsonl")
    p.add_argument("--out", required=True, help="JSONL file for the tasks of all problems that are used")
    p.add_argument("--seed", type=int, default=0, help="another seed, another order")
    return p.parse_args(argv)


def main(args):
    read_file(args.data, "test.jsonl")                     # what is missing is told before anything is made
    problems, left_out = read_problems(args.data)
    total = len(problems) + sum(left_out.values())
    print(f"{args.data}/train.jsonl: {total} problems, {len(problems)} used; left out: "
          + ", ".join(f"{n} {reason}" for reason, n in left_out.items()))
    tasks = [{"id": f"train-{n:04d}", "question": problem.question, "answer": problem.answer,
              "horizon": len(problem.steps)} for n, problem in problems.items()]
    random.Random(args.seed).shuffle(tasks)
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    write_jsonl(args.out, tasks)


if __name__ == "__main__":
    arguments = parse_args()
    cli(main, arguments)
