"""Can a teacher's reply be used? Parsers of plans, steps, verdicts and corrections, without a model.

A parser returns what the reply says or raises ValueError; its message tells the teacher what is wrong, and
goes on after "That reply cannot be used: ". JSON is read in json_replies.py; leaks.py knows whether a step
gives the answer away.
"""
import ast
import re
from typing import NamedTuple

from plumbing.json_replies import parse_json
from plumbing.leaks import leaked, tokens
from plumbing.thinking import without_thinking
from plumbing.trajectory import UNREADABLE, Messages, Step, code_of, observed, parse_code, program_in, step_of

# ---- what a reply says of a trajectory ----

class Verdict(NamedTuple):
    """What the teacher says of a whole trajectory."""
    correct: bool
    first_wrong_step: int | None                   # None if the trajectory is correct
    analysis: str
    suggestion: str


# ---- are two steps the same? ----

# An observation that shows only that something failed.
FAILED = re.compile(r"Error\b|Exception\b|Traceback")


def code_or_words(step: Step) -> str:
    """The program of a step, or its words where it has none."""
    return code_of(step["content"]) or " ".join(step["content"].split())


def same_code(a: str, b: str) -> bool:
    """Are two programs the same but for comments and layout? Texts that are no programs must be equal."""
    try:
        return ast.dump(parse_code(a)) == ast.dump(parse_code(b))
    except UNREADABLE:
        return a == b


def same_step_cheap(a: Step, b: Step) -> bool | None:
    """True if two steps have the same code (without code, the same words) or show the same result; None where
    that does not decide."""
    code_a = code_or_words(a)
    code_b = code_or_words(b)
    if same_code(code_a, code_b):
        return True
    if observed(a) != observed(b):
        return None
    if observed(a) in ("", "None") or FAILED.search(observed(a)):         # no result
        return None
    if gave_answer(a) != gave_answer(b):                                  # only one ends the run
        return None
    return True


def gave_answer(step: Step) -> bool | None:
    """Did a step end its run? None if the record does not say so, but its code may have."""
    if step.get("final"):
        return True
    return None if "final_answer_print" in step["content"] else False


# ---- verdicts and equivalence ----

# The number of a step: "2", "2.0", "Step #2", "step_2", "Step 2: it adds".
STEP_NUMBER = re.compile(r"[\s#*]*(?:step[\s_#*:]*)?(\d{1,6})(?:\.0)?(?:\s*[:(].*|[\s.*]*)",
                         re.IGNORECASE | re.DOTALL)


def parse_equivalent(text: str, last: bool = False) -> bool:
    """Does a reply say that two answers or steps are equivalent? It makes no difference which try it is."""
    return parse_json(text, "equivalent")["equivalent"]


def parse_verdict(text: str, steps: int) -> Verdict:
    """The verdict on a trajectory of so many steps."""
    found = parse_json(text, "correct")
    number = STEP_NUMBER.fullmatch(str(found.get("first_wrong_step")))
    first_wrong_step = None
    if found["correct"] and number:
        raise ValueError('"correct" is true, and yet "first_wrong_step" names a step')
    if not found["correct"]:
        if number is None or int(number[1]) >= steps:
            raise ValueError('as "correct" is false, "first_wrong_step" must be a step from 0 to '
                             f'{steps - 1}')
        first_wrong_step = int(number[1])
    return Verdict(found["correct"], first_wrong_step, str(found.get("analysis") or ""),
                   str(found.get("suggestion") or ""))


# ---- plans and steps ----

# Labels at the beginning of a thought or a plan: "Thought:", "**Step 2:**", "Corrected plan:".
LABEL = re.compile(r"\A\s*(?:\W{0,3}(?:(?:first|corrected)[ _])?(?:thought|plan|step(?: \d+)?|action|code)"
                   r"\W{0,2}:\W{0,2}\s*)+", re.IGNORECASE)
FIRST_THOUGHT = re.compile(r"<first_thought>((?:(?!<first_thought>).)*?)</first_thought>",
                           re.DOTALL | re.IGNORECASE)
TAG = re.compile(r"</?(?:thought|code|first_thought)>", re.IGNORECASE)
# A thought with its code; a label or a fence may stand between them.
THOUGHT = re.compile(r"<thought>((?:(?!</?thought>).)*)</thought>[^<]{0,80}(?=<code\b)",
                     re.DOTALL | re.IGNORECASE)
# The same with a fence in place of the tags of code.
FENCED = re.compile(r"<thought>((?:(?!</?thought>).)*)</thought>\s*"
                    r"```(?:python|py)?[ \t]*\n(.*?)\n[ \t]*```[ \t]*$",
                    re.DOTALL | re.IGNORECASE | re.MULTILINE)
# What a plan holds that is a program already: a fence, a call with its arguments, a line of code.
PROGRAM = re.compile(
    r"```|~~~"
    r"|\bprint\((?!\w*\))|answer_print\(\s*[\"'\d]|(?:^|[:=])\W{0,4}\w*search\(\s*[\"'\d]"
    r"|^\W{0,3}(?i:code|observation)\W{0,3}:"
    r"|^[ \t]*(?:import \w+$|from [\w.]+ import |def \w+\(|for \w+ in .*:$|\w+ = \w+\()", re.MULTILINE)
# A number that is worked out, "6 + 3 = 9", "30% of 20 is 6", "5! = 120", "\frac{12}{4} = 3", or given as the
# answer.
NUMBER = r"[({]?\\?\$?\d[\d,]*(?:\.\d+)?(?:\\?%)?[)}]?"
RESULT = re.compile(
    rf"(?<![\w^.,+]){NUMBER}"
    r"(?:(?:\s*(?:[-+*/×÷·−x^]|\*\*|\\times|\\cdot|\\div|plus|minus|times|divided by|of)\s*"
    rf"{NUMBER}){{1,8}}|!|\s+squared|\s+cubed)\s*(?:[=≈]|is|equals|gives)\s*-?{NUMBER}"
    rf"|\\(?:[dt]?frac|sqrt)\{{[\d{{}}.,]+\}}\s*[=≈]\s*-?{NUMBER}"
    rf"|\banswer\s*(?:is|=)[^\w\n]{{0,6}}-?{NUMBER}|\banswer\s*:[^\w\n]{{0,6}}-?{NUMBER}\W{{0,6}}$"
    r"|\\boxed\s*\{[^{}]*\d", re.IGNORECASE | re.MULTILINE)


def parse_plan(text: str, question: str = "", answers: str | list[str] | None = None) -> str:
    """The first thought of a reply, without tags and labels. It may neither hold code nor results.

    answers: the reference answers, which it may not hold either; None: that is not checked here. Only the
    check sees them: that an answer is in it is said without naming it.
    """
    text = without_thinking(text)
    tagged = FIRST_THOUGHT.search(text)
    if tagged:
        text = tagged[1]
    plan = LABEL.sub("", text).strip()
    if not plan or TAG.search(plan) or PROGRAM.search(plan):
        raise ValueError("it must be a plan in plain text, without code")
    for result in RESULT.finditer(plan):
        if not tokens(result[0]) <= tokens(question):
            said = " ".join(result[0].split())
            raise ValueError(f'it states a result, "{said}": a plan says what to do, and leaves doing it '
                             "to the steps")
    if answers and leaked(f"<first_thought>{plan}</first_thought>", question, answers, []):
        raise ValueError("it states a result: a plan says what to do, and leaves doing it to the steps")
    return plan


def does_nothing(code: str) -> bool:
    """Is a program only `pass`, `None` and the like?"""
    try:
        statements = parse_code(code).body
    except UNREADABLE:
        return False
    return all(isinstance(statement, ast.Pass)
               or isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
               for statement in statements)


def parse_step(text: str) -> str:
    """The first thought–code pair of a reply, without labels, and its code without fences."""
    text = without_thinking(text)
    found = THOUGHT.search(text)
    fenced = FENCED.search(text)
    thought = ""
    code = None
    if fenced and (found is None or fenced.start() < found.start()):
        thought = LABEL.sub("", fenced[1]).strip()
        code = program_in(fenced[2])
    elif found:
        thought = LABEL.sub("", found[1]).strip()
        code = code_of(text[found.end():])
    if not thought or not code:
        raise ValueError("it must be one <thought>…</thought> followed by one <code>…</code>, neither empty")
    if does_nothing(code):
        raise ValueError("its code does nothing")
    return f"<thought>{thought}</thought><code>{code}</code>"


# ---- corrections: they may neither talk about the rejected step nor give the answer away ----

# What only someone says who has seen the rejected step or the reference answer.
TALK = re.compile(
    r"\b(?:mistake\w*|erroneous\w*|reference (?:answer|solution)|ground truth|rejected"
    r"|(?:expected|known|given) answer|correct(?:ed|ion)(?: step)?"
    r"|(?:as|the) suggest(?:ed|ion)"
    # "The previous step was wrong"
    r"|(?:previous|prior|earlier|last) (?:step|attempt|code|thought|approach)\w*[^.\n]{0,200}?"
    r"(?:wrong|incorrect|error|fail|flaw)\w*"
    r"|the (?:student|analysis))",
    re.IGNORECASE)


def talk_of(content: str, question: str) -> str | None:
    """Words of a step that only someone says who has seen the rejected step or the reference answer."""
    for talk in TALK.finditer(content):
        if not tokens(talk[0]) <= tokens(question):                       # unless the question itself says so
            return talk[0]
    return None


def parse_correction(text: str, question: str, answers: str | list[str], before: Messages,
                     last: bool = False) -> str:
    """A corrected step (a first thought if none stands before it), checked for what does not belong in it.

    On the `last` try a label is removed instead of refused.
    """
    text = without_thinking(text)
    if step_of(before) == 0:
        content = f"<first_thought>{parse_plan(text, question)}</first_thought>"
    else:
        content = parse_step(text)
    try:
        parse_code(code_of(content) or "")
    except UNREADABLE as error:
        raise ValueError(f"the code is not valid Python ({error})") from None
    thought = re.split("thought>", text, maxsplit=1, flags=re.IGNORECASE)[-1]
    if LABEL.match(thought) and not last:
        raise ValueError('labels such as "Thought:" do not belong in it')
    talk = talk_of(content, question)
    if talk is not None:
        raise ValueError(f'who is at this step for the first time would not say "{talk}"')
    answer = leaked(content, question, answers, before)
    if answer is not None:
        raise ValueError(f'it states "{answer}", which no observation shows: take the step that finds it')
    return content
