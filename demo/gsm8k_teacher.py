"""A teacher for GSM8K: rules that know its annotated solutions, behind the interface of a large language model.

  python demo/gsm8k_teacher.py --data FOLDER --port 8008          # /v1/chat/completions and /v1/models

It reads the very prompts that judge.py sends to a 72B model and answers in the same form. **It knows the solution
of every training problem, step by step. It stands in for a large model, so that the pipeline can be run on real
questions without one; it does not replace one.** It cannot answer other questions, understands no thought, and its
plans and thoughts are put together from the annotators' sentences, without the results.

It judges what a step computes. A step is wrong if it finds a value that stands on no path to the solution: neither a
result of the solution nor a part of its formula, taken in another order, factored out, multiplied out, as a share of
100 or rounded. So other orders, combined expressions and equal values written otherwise pass. But if the run's answer
is wrong, a step that found such a value by accident is: one that would not if the numbers of the question were a
little larger. A plan passes if it has the form of one. If nothing before a wrong answer is wrong, the first step that
computed what was known is named; in a run without an answer, the first without progress.
"""
import argparse
import ast
import bisect
import copy
import itertools
import json
import math
import os
import re
import sys
from fractions import Fraction

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import gsm8k
import judge
import teacher
import world
from plumbing.answers import check_by_rule, core
from plumbing.cli import InputError
from plumbing.replies import FAILED, parse_plan, talk_of
from plumbing.trajectory import UNREADABLE, code_of, parse_code

NO_VALUE = (LookupError, TypeError, ValueError, ArithmeticError)
GENERAL_PLAN = "I work it out one step at a time, and print every number that I find."
ALWAYS_KNOWN = [0, 1, 7, 12, 24, 30, 52, 60, 100, 365, 1000]               # where sums begin, and units
LARGE = re.compile(r"\b(?:hundred|thousand|[mb]illion)", re.IGNORECASE)     # "5 million" is not 5
MOST_TERMS = 10                           # of a sum or a product whose parts are all looked at


def close(a, b):
    """Whether two numbers are one, but for the rounding of floats."""
    return abs(a - b) <= 1e-6 * max(1, abs(b))


def is_among(value, ordered):
    """Whether a number is one of an ordered list."""
    at = bisect.bisect(ordered, float(value))
    return any(close(value, found) for found in ordered[max(0, at - 1):at + 1])


# ---- which values stand on a path to the solution ----

def terms_of(node, sign=1):
    """A sum as [(1 or -1, term)]; what is none has one term."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return terms_of(left, sign) + terms_of(right, sign)
        case ast.BinOp(left, ast.Sub(), right):
            return terms_of(left, sign) + terms_of(right, -sign)
        case ast.UnaryOp(ast.USub(), inner):
            return terms_of(inner, -sign)
    return [(sign, node)]


def factors_of(node, power=1):
    """A product as [(1 or -1, factor)], -1 for what it is divided by; what is none has one factor."""
    match node:
        case ast.BinOp(left, ast.Mult(), right):
            return factors_of(left, power) + factors_of(right, power)
        case ast.BinOp(left, ast.Div(), right):
            return factors_of(left, power) + factors_of(right, -power)
    return [(power, node)]


def sums_of_some(values):
    """Sums of two or more of the values, and what they are with the other sign."""
    found = set()
    for n in range(2, min(len(values), MOST_TERMS) + 1):
        for some in itertools.combinations(values[:MOST_TERMS], n):
            found |= {sum(some), -sum(some)}
    return found


def parts(node):
    """The values that may be found on the way to an expression, its own among them."""
    terms = terms_of(node)
    factors = factors_of(node)
    found = set()
    if len(terms) > 1:
        for _, term in terms:
            found |= parts(term)
        found |= parts_of_sum(terms)
    elif len(factors) > 1:
        for _, factor in factors:
            found |= parts(factor)
        found |= parts_of_product(factors)
    if not isinstance(node, ast.Constant):
        found.add(gsm8k.value_of(node, {}))
    return found


def parts_of_sum(terms):
    """Sums of some terms; and what is left of it where a factor of several is taken out: 10 + 0.8 * 10 -> 1.8."""
    values = [sign * gsm8k.value_of(term, {}) for sign, term in terms]
    found = sums_of_some(values)
    coefficients = {}                                      # factor -> what it is multiplied by in each term
    for value, (_, term) in zip(values, terms):
        factors = {gsm8k.value_of(factor, {}) for power, factor in factors_of(term) if power == 1}
        for factor in factors | {abs(value)}:
            if factor not in (0, 1):
                coefficients.setdefault(factor, []).append(value / factor)
    return found | {abs(sum(several)) for several in coefficients.values() if len(several) > 1}


def parts_of_product(factors):
    """Products of some factors, one of them perhaps a part of a sum: 2 * (3 + 4) -> 2 * 3."""
    whole = [gsm8k.value_of(factor, {}) ** power for power, factor in factors]
    found = products_of_some(whole)
    for n, (power, factor) in enumerate(factors):
        terms = terms_of(factor)
        if len(terms) > 1 and power == 1:
            others = products_of_some(whole[:n] + whole[n + 1:], least=1)
            some = {sign * gsm8k.value_of(term, {}) for sign, term in terms} | parts_of_sum(terms)
            found |= {part * other for part in some for other in others}
    return found


def products_of_some(values, least=2):
    """Products of so many or more of the values."""
    found = set()
    for n in range(least, min(len(values), MOST_TERMS) + 1):
        found |= {math.prod(some) for some in itertools.combinations(values[:MOST_TERMS], n)}
    return found


def constants(node):
    """The numbers that are written in an expression."""
    return {Fraction(str(part.value)) for part in ast.walk(node) if isinstance(part, ast.Constant)}


class Solution:
    """A problem, and what may be found on the way to its answer."""

    def __init__(self, problem):
        self.problem = problem
        self.steps = problem.steps
        self.exact = []                                    # of each step; what the annotator states may be rounded
        values = set()
        for k in range(len(self.steps)):
            tree = self.whole(k)
            self.exact.append(gsm8k.value_of(tree, {}))
            values |= parts(tree)
        values |= {step.value for step in self.steps}
        self.given = gsm8k.numbers(problem.question)
        base = {value for value in self.given if value >= 3}
        base |= {1 / value for value in self.given if 0 < value <= Fraction(1, 3)}
        percent = gsm8k.has_percent(problem.question)
        if percent:
            self.given |= {value / 100 for value in self.given}
            values |= {100 * value for value in values if 0 < value < 2}   # 100 - 20 per cent
        # Numbers of the solution that are neither the question's nor results were found in the annotator's head.
        results = {step.value for step in self.steps} | set(self.exact)
        in_head = gsm8k.numbers(problem.solution) - self.given - results
        values |= in_head
        # Where they came from is unknown, so with larger numbers nothing is known of what is computed from them.
        guessed = {value for value in in_head if value >= 3 and value not in ALWAYS_KNOWN}
        self.any_way = in_head | {self.steps[k].value for k in range(len(self.steps))
                                  if guessed & constants(self.whole(k))}
        values |= {round(value, 2) for value in values}
        self.values = sorted(map(float, values))
        # The same problem with other numbers.
        self.larger = {}                                   # number of the question -> a little larger
        for value in sorted(base):
            self.larger[value] = value * (1 + Fraction(1 + world.pick(500, problem.question, value), 9973))
        other = set()
        self.larger_results = []                           # [(result, the same with larger numbers)]
        for k in range(len(self.steps)):
            tree = self.with_larger(self.whole(k))
            other |= parts(tree)
            self.larger_results.append((self.exact[k], gsm8k.value_of(tree, {})))
        if percent:
            other |= {100 * value for value in other}
        self.other_values = sorted(map(float, other))

    def whole(self, k):
        """The expression of step k in numbers of the question."""
        return gsm8k.with_results(self.steps[k].tree, self.whole)

    def larger_number(self, value):
        """A number of a program as it would be if those of the question were a little larger."""
        if value in self.larger:
            return self.larger[value]
        if 100 * value in self.larger:                     # 20 % as 0.2
            return self.larger[100 * value] / 100
        if value and 1 / value in self.larger:             # a quarter as 0.25
            return 1 / self.larger[1 / value]
        return value

    def with_larger(self, tree, known=()):
        """The expression or program with larger numbers in place of the question's; known: [(value, larger)] of
        others."""
        class Enlarge(ast.NodeTransformer):
            def visit_Constant(_, node):
                if type(node.value) not in (int, float) or abs(node.value) > gsm8k.LARGEST:
                    return node
                value = Fraction(str(node.value))
                for other, larger in known:
                    if close(value, other):
                        return ast.Constant(larger)
                return ast.Constant(self.larger_number(value))
        return Enlarge().visit(copy.deepcopy(tree))

    def leads_on(self, value):
        """Whether a value stands on a path to the answer."""
        return is_among(value, self.values)

    def leads_on_with_larger(self, value):
        """The same in the problem with larger numbers."""
        return is_among(value, self.other_values)

    def is_result(self, k, value):
        """Whether a value is the result of step k."""
        return close(value, self.exact[k]) or close(value, self.steps[k].value)

    def needed(self, done):
        """Numbers of the steps that are still to be taken, where the results of those `done` are known.

        In a run that keeps to the solution, all that were not taken; what was jumped over is not needed. A step
        that no other uses (the annotator went on in the head) is taken only until a later one is done.
        """
        used = set().union(*(step.uses() for step in self.steps))
        last = len(self.steps) - 1
        waiting = [k for k in range(last) if k not in used and k > max(done, default=-1)]
        waiting.append(last)
        found = set()
        while waiting:
            k = waiting.pop()
            if k not in done and k not in found:
                found.add(k)
                waiting += self.steps[k].uses()
        return found


# ---- what a step does ----

def effects(program, variables):
    """-> [(kind, name or None, value)], and whether that is all of it; `variables` {name: value} grows.

    kind: "given" for a literal or another name of a variable, "found" for a computation, "answer" (a text).
    """
    found = []
    for n, node in enumerate(program.body):
        try:
            found += effects_of(node, variables)
        except NO_VALUE:
            for part in (part for rest in program.body[n:] for part in ast.walk(rest)):
                match part:
                    case ast.Name(name, ast.Store()):
                        variables[name] = None             # whatever it is now
            return found, False
    return found, True


def program_of(content):
    """The program of a step; an empty one if it has none that can be read."""
    try:
        return copy.deepcopy(parse_code(code_of(content) or ""))           # fails where it is nested too deeply
    except UNREADABLE:
        return ast.Module([], [])


def effects_of(node, variables):
    """The effects of one statement; TypeError for one that the rules cannot read."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(ast.Constant()):
            return []
        case ast.Assign([ast.Name(name)], ast.Constant(str())):
            variables[name] = None
            return []
        case ast.Assign([ast.Name(name)], expression):
            variables[name] = None                         # in case it cannot be read
            variables[name] = gsm8k.value_of(expression, variables)
            return [(kind_of(expression), name, variables[name])]
        case ast.AugAssign(ast.Name(name), op, expression):
            variables[name] = gsm8k.value_of(ast.BinOp(ast.Name(name), op, expression), variables)
            return [("found", name, variables[name])]
        case ast.Expr(ast.Call(ast.Name("print"), shown)):
            return [effect for part in shown for effect in effects_of_print(part, variables)]
        case ast.Expr(ast.Call(ast.Name("final_answer_print"), [ast.Constant(value)])):
            return [("answer", None, str(value))]
        case ast.Expr(ast.Call(ast.Name("final_answer_print"), [expression])):
            return [("answer", None, str(float(gsm8k.value_of(expression, variables))))]
    raise TypeError(ast.dump(node))


def effects_of_print(part, variables):
    match part:
        case ast.Constant(str()):
            return []
        case ast.Name(name):
            variables[name]                                # LookupError: the program ends here
            return []
        case ast.JoinedStr(pieces):
            shown = [piece.value for piece in pieces if isinstance(piece, ast.FormattedValue)]
            return [effect for piece in shown for effect in effects_of_print(piece, variables)]
    return [(kind_of(part), None, gsm8k.value_of(part, variables))]


def kind_of(expression):
    match expression:
        case ast.Constant() | ast.Name() | ast.UnaryOp(_, ast.Constant()):
            return "given"
    return "found"


def effects_of_step(content, observation, variables):
    """The effects of a step; of code that the rules cannot read, the last number that it printed counts."""
    program = program_of(content)
    found, whole = effects(program, variables)
    if not (whole and program.body) and not FAILED.search(observation):
        printed = re.findall(rf"(-?)({gsm8k.NUMBER.pattern})", observation)
        value = gsm8k.fraction("".join(printed[-1]).rstrip(",")) if printed else None
        if value is not None and abs(value) <= gsm8k.LARGEST:
            found.append(("found", None, value))
    return found


def same_answer(prediction, answer):
    """Whether a prediction is the answer; where rules leave it open, by the only number that it has."""
    decided = check_by_rule(prediction, answer)
    if decided is None:
        found = re.findall(rf"((?<![\w)])[-−]\$?|\$[-−])?({gsm8k.NUMBER.pattern})", core(prediction))
        values = {gsm8k.number(n.rstrip(",")) * (-1 if minus else 1) for minus, n in found}
        return values == {gsm8k.number(answer)} and not LARGE.search(prediction)
    return decided


def is_whole_number(node):
    """Whether a part of a program makes whole numbers or rounds."""
    match node:
        case ast.FloorDiv() | ast.Mod() | ast.Call(ast.Name("int" | "round")):
            return True
    return False


# ---- a run on its way ----

class Run:
    """How far a trajectory has come on the way to the solution."""

    def __init__(self, solution):
        self.solution = solution
        self.problem = solution.problem
        self.variables = {}
        self.larger = ({}, {})                             # its variables with larger numbers, for two readings
        self.done = {}                                     # step of the solution -> the variable with its result
        self.known = []                                    # (value, the same with larger numbers) found so far
        self.accident = False                              # whether the last step found a value by accident …
        self.repeats = False                               # … or computed one that was known

    def take(self, content, observation, first=False):
        """Follow one step -> "right" | "idle" (no progress) | "wrong"."""
        self.accident = self.repeats = False
        if first:
            return "right" if re.search(r"<first_thought>.*\S.*</first_thought>", content, re.DOTALL) else "wrong"
        if code_of(content) is None:
            return "wrong"
        larger = self.with_larger_numbers(content)
        results = []
        of_this_step = []                                  # a value counts once a step
        for n, (kind, name, value) in enumerate(effects_of_step(content, observation, self.variables)):
            if kind == "answer":
                results.append("right" if same_answer(value, self.problem.answer) else "wrong")
            elif not any(close(value, other) for other in of_this_step):
                results.append(self.find(kind, name, value, larger[n] if n < len(larger) else []))
                of_this_step.append(value)
        if "wrong" in results:
            return "wrong"
        return "right" if "right" in results else "idle"

    def with_larger_numbers(self, content):
        """What each effect of a step would find with larger numbers, [] where that says nothing.

        A number may be a result, found before or in the head, or the question's: one value for each reading.
        """
        program = program_of(content)
        readings = []
        for known, variables in zip(([*self.known, *self.solution.larger_results], []), self.larger):
            found, _ = effects(self.solution.with_larger(program, known), variables)
            readings.append(found)
        if any(is_whole_number(node) for node in ast.walk(program)):
            return []                                      # 47 // 4 says nothing of larger numbers
        values = []
        for n in range(min(map(len, readings))):
            values.append([reading[n][2] for reading in readings if reading[n][0] == "found"])
        return values

    def find(self, kind, name, value, larger):
        """What it means that a step finds this value; larger: what it would be with larger numbers."""
        solution = self.solution
        known = any(close(value, other) for other, _ in self.known)
        if kind == "given" and (known or any(close(value, other) for other in (*solution.given, *ALWAYS_KNOWN))):
            return "idle"
        if not solution.leads_on(value):
            return "wrong"
        any_way = any(close(value, other) for other in solution.any_way)
        if kind == "found" and larger and not any_way:
            self.accident |= not any(solution.leads_on_with_larger(other) for other in larger)
        self.known.append((value, larger[0] if larger else value))
        for k in range(len(solution.steps)):
            if k not in self.done and solution.is_result(k, value):
                self.done[k] = name
                return "right"
        if known:
            self.repeats |= kind == "found"
            return "idle"
        return "right"

    def next(self):
        """The step to take now."""
        if len(self.solution.steps) - 1 in self.done:
            return self.give_answer()
        k = min(self.solution.needed(self.done))
        step = self.solution.steps[k]
        name = gsm8k.name_of(step, self.variables)
        expression = ast.unparse(gsm8k.with_results(step.tree, self.named))
        thought = step.sentence
        if talk_of(f"<thought>{thought}</thought>", self.problem.question):
            thought = f"Now I work out {expression}."      # "the student …" sounds like someone who corrects
        return world.write(thought, f"{name} = {expression}\nprint({name})")

    def named(self, k):
        """What stands in the code for the result of step k: a variable, or else its expression."""
        name = self.name_with_result(k)
        if name is not None:
            return ast.Name(name)
        return gsm8k.with_results(self.solution.steps[k].tree, self.named)

    def name_with_result(self, k):
        names = [self.done.get(k), *reversed(self.variables)]
        for name in names:
            value = self.variables.get(name)
            if value is not None and self.solution.is_result(k, value):
                return name
        return None

    def give_answer(self):
        last = len(self.solution.steps) - 1
        name = self.name_with_result(last)
        if name is None:                                   # it was printed only
            return world.write("The last number is the answer.", f"final_answer_print({self.problem.answer})")
        shown = name
        if self.solution.exact[last] != self.solution.steps[last].value:
            places = len(self.problem.answer.partition(".")[2])
            shown = f"round({name}, {places})"
        return world.write(f"{name} is the answer.", f"final_answer_print({shown})")


def follow(solution, steps):
    """The run after these steps, [(content, observation)]."""
    run = Run(solution)
    for k, (content, observation) in enumerate(steps):
        run.take(content, observation, first=k == 0)
    return run


# ---- replies ----

def read_steps(text):
    """A rendered trajectory -> [(content, observation)]; a content may be empty, or have such a heading itself."""
    steps = []
    headings = []
    for heading in re.finditer(r"(?m)^## Step (\d+)$", text):
        if int(heading[1]) == len(headings):
            headings.append(heading)
    for heading, following in itertools.zip_longest(headings, headings[1:]):
        end = following.start() if following else len(text)
        content, _, observation = text[heading.end():end].partition("\nObservation: ")
        steps.append((content.strip(), observation.strip()))
    return steps


def plan(problem):
    """A plan that names what is to be found, in its order, and holds no number."""
    wanted = []
    for step in problem.steps:
        label = " ".join(step.label.split()[:6]) or "the next number"
        if wanted[-1:] != [label]:
            wanted.append(label)
    text = GENERAL_PLAN
    if wanted != ["the next number"]:
        text = f"First I find {', then '.join(wanted)}."
    try:
        return parse_plan(text, problem.question, problem.answer)
    except ValueError:
        return GENERAL_PLAN


def verdict(solution, steps, prediction):
    """First wrong step of a run; if none is wrong, the first without progress, or else the last."""
    if prediction is not None and same_answer(prediction, solution.problem.answer):
        return json.dumps({"analysis": "", "suggestion": "", "correct": True, "first_wrong_step": None})
    run = Run(solution)
    places = {"accident": [], "wrong": [], "repeats": [], "idle": []}
    suggestions = []
    for k, (content, observation) in enumerate(steps):
        suggestions.append(GENERAL_PLAN if k == 0 else thought_of(run.next()))
        result = run.take(content, observation, first=k == 0)
        places["accident"] += [k] * run.accident
        places["repeats"] += [k] * run.repeats
        places.setdefault(result, []).append(k)
        if result == "wrong":
            break
    wrong = places["accident"] + places["wrong"]
    analysis = "This step does not lead to the answer: what it computes stands on no way there."
    # A detour is harmless if an answer follows; one that computes what was known may have meant something else.
    if not wrong or (prediction is not None and wrong == [len(steps) - 1]):
        wrong = places["repeats"] + wrong
    if not wrong and prediction is None:
        wrong = places["idle"]
        analysis = "This step makes no progress."
    first = min(wrong, default=len(steps) - 1)
    return json.dumps({"analysis": analysis, "suggestion": suggestions[first], "correct": False,
                       "first_wrong_step": first})


def thought_of(content):
    return re.search("<thought>(.*)</thought>", content, re.DOTALL)[1]


def same_step(solution, steps, step_a, step_b):
    """Whether two steps after these find the same values or give the same answer; plans are all alike."""
    if not steps:
        run = Run(solution)
        return run.take(step_a, "", first=True) == run.take(step_b, "", first=True) == "right"
    done = []
    for text in (step_a, step_b):
        content, _, observation = text.partition("\nObservation: ")
        run = follow(solution, steps)
        values = set()
        for kind, _, value in effects_of_step(content, observation, run.variables):
            if kind == "answer":
                right = same_answer(value, solution.problem.answer)
                stated = gsm8k.fraction(value)
                wrong = core(value) if stated is None else round(stated, 6)        # "161" and "161.0" are one
                values.add((kind, "right" if right else wrong))
            elif kind == "found" or not any(close(value, given) for given in solution.given):
                values.add(("found", f"{float(value):.6g}"))
        done.append(values)
    return bool(done[0]) and done[0] == done[1]


def reply(system, parts, solution):
    """The answer to a prompt of judge.py, whose user message has these parts."""
    kind = system.split("\n")[0]
    problem = solution.problem
    if kind == judge.PLAN_SYSTEM.split("\n")[0]:
        return plan(problem)
    if kind == judge.PROMPT["COT"].split("\n")[0]:
        return f"{gsm8k.ANNOTATION.sub('', problem.solution)}\n\\boxed{{{problem.answer}}}"
    if kind == judge.SAME_ANSWER_SYSTEM.split("\n")[0]:
        same = any(same_answer(parts["Prediction"], answer) for answer in parts["Reference answer"].split("\n"))
        return json.dumps({"analysis": "", "equivalent": same})
    steps = read_steps(parts["Trajectory"])
    if kind == judge.SAME_STEP_SYSTEM.split("\n")[0]:
        same = same_step(solution, steps, parts["Step A"], parts["Step B"])
        return json.dumps({"analysis": "", "equivalent": same})
    if kind == judge.VERDICT_SYSTEM.split("\n")[0]:
        prediction = parts.get("Prediction")
        if prediction is not None and prediction.startswith("(none: the run ended without an answer"):
            prediction = None
        return verdict(solution, steps, prediction)
    if not steps:                                          # CORRECT, of step 0
        return f"<first_thought>{plan(problem)}</first_thought>"
    return follow(solution, steps).next()


class Handler(teacher.Handler):
    model = "gsm8k-solutions"

    def reply(self, system, user):
        parts = teacher.read_prompt(user)
        problem = self.server.args.problems.get(plain(parts["Question"]))
        if problem is None:
            message = "this teacher knows the solutions of GSM8K's training problems only, and this question is none"
            self.answer({"error": {"message": message}}, 400)
            return None
        return reply(system, parts, Solution(problem))


def plain(question):
    """A question without what files and prompts change of its spaces."""
    return " ".join(question.split())


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", required=True, help="folder with GSM8K's train.jsonl")
    teacher.server_flags(p)
    args = p.parse_args(argv)
    problems, _ = gsm8k.read_problems(args.data)
    args.problems = {plain(problem.question): problem for problem in problems.values()}
    return args


if __name__ == "__main__":
    try:
        args = parse_args()
    except InputError as error:
        sys.exit(f"error: {error}")
    teacher.main(args, Handler)
