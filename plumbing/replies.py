"""Can a teacher's reply be used? Parsers of plans, steps, verdicts and corrections, without a model.

A parser returns what the reply says or raises ValueError; its message tells the teacher what is wrong.
"""
import ast
import json
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from plumbing.answers import core, rule
from plumbing.records import as_list
from plumbing.trajectory import Messages, Step, code_of, observed, step_of

# ---- what cannot be read ----

# What ast.parse, ast.literal_eval and json raise on a text that they cannot read. LookupError and TypeError
# also come from a look-up in what they did read.
UNREADABLE = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError)
PARSING = threading.Lock()


def parse_code(text: str, mode: str = "exec") -> ast.Module | ast.Expression:
    """`ast.parse`, one thread at a time: in CPython 3.11 several can raise SystemError (gh-106905)."""
    with PARSING:
        return ast.parse(text, mode=mode)


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
    if ("final_answer_print(" in code_a) != ("final_answer_print(" in code_b):    # only one ends the run
        return None
    return True


# ---- JSON objects: verdicts and equivalence ----

JSON_DECODER = json.JSONDecoder(strict=False)      # not strict: a text may hold raw newlines
TRUTH = {"true": True, "false": False}
# A backslash, with the next character if they are an escape that is kept: "\\", "\"", "\/", "\n", "\u".
BACKSLASH = re.compile(r'\\([\\"/nu])?')
# The number of a step: "2", "Step 2", "2.0".
STEP_NUMBER = re.compile(r"\s*(?:step\s*)?(\d{1,6})(?:\.0)?\s*", re.IGNORECASE)


def double_backslash(match: re.Match) -> str:
    r"""A backslash of LaTeX, as in \frac, doubled as JSON wants it; an escape stays."""
    if match[1]:
        return match[0]
    return r"\\"


def load_json(text: str) -> Any:
    """The JSON object that a text begins with."""
    return JSON_DECODER.raw_decode(text)[0]


def load_python(text: str) -> Any:
    """The Python literal from the beginning of a text to its last brace: {'correct': True}."""
    end = text.rindex("}") + 1
    return ast.literal_eval(parse_code(text[:end], "eval"))


def last_object(text: str, field: str, load: Callable[[str], Any]) -> dict | None:
    """The last object that `load` reads in a text, if it has true or false in that field."""
    braces = [match.start() for match in re.finditer(r"\{", text)]
    for brace in reversed(braces):
        try:
            found = load(text[brace:])
            return {**found, field: TRUTH[str(found[field]).strip().lower()]}
        except UNREADABLE:                         # not an object from here on, or without the field
            continue
    return None


def parse_json(text: str, field: str) -> dict:
    r"""The last JSON object of a reply that has true or false in that field.

    Forgives fences, prose, \" for ", LaTeX's single backslashes, raw newlines and Python's True and None.
    """
    found = last_object(BACKSLASH.sub(double_backslash, text), field, load_json)
    if found is None:
        found = last_object(text.replace('\\"', '"'), field, load_json)
    if found is None:
        found = last_object(text, field, load_python)
    if found is None:
        raise ValueError(f'it holds no complete JSON object whose field "{field}" is true or false')
    return found


def parse_equivalent(text: str, last: bool = False) -> bool:
    """Does a reply say that two answers or steps are equivalent? It makes no difference which try it is."""
    return parse_json(text, "equivalent")["equivalent"]


def parse_verdict(text: str, steps: int) -> Verdict:
    """The verdict on a trajectory of so many steps."""
    found = parse_json(text, "correct")
    number = STEP_NUMBER.fullmatch(str(found.get("first_wrong_step")))
    first_wrong_step = None
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
FIRST_THOUGHT = re.compile(r"<first_thought>(.*?)</first_thought>", re.DOTALL)
TAG = re.compile(r"</?(?:thought|code|first_thought)>")
PAIR = re.compile(r"<thought>(.*?)</thought>\s*<code>(.*?)</code>", re.DOTALL)
# The lines of a Markdown fence around code: "```python", "```".
FENCE = re.compile(r"^\s*```\w*\n|\n```\s*$")


def parse_plan(text: str) -> str:
    """The first thought of a reply, without tags and labels."""
    tagged = FIRST_THOUGHT.search(text)
    if tagged:
        text = tagged[1]
    plan = LABEL.sub("", text).strip()
    if not plan or TAG.search(plan):
        raise ValueError("it must be a plan in plain text, without code")
    return plan


def parse_step(text: str) -> str:
    """The first thought–code pair of a reply, without labels and fences."""
    pair = PAIR.search(text)
    thought = ""
    code = ""
    if pair:
        thought = LABEL.sub("", pair[1]).strip()
        code = FENCE.sub("", pair[2]).strip("\n").rstrip()
    if not thought or not code:
        raise ValueError("it must be one <thought>…</thought> followed by one <code>…</code>, neither empty")
    return f"<thought>{thought}</thought><code>{code}</code>"


# ---- corrections: they may neither talk about the rejected step nor give the answer away ----

# What only someone says who has seen the rejected step or the reference answer.
TALK = re.compile(
    r"\b(?:mistake\w*|erroneous\w*|reference (?:answer|solution)|ground truth|rejected"
    r"|(?:expected|known|given) answer|correct(?:ed|ion)(?: step)?"
    r"|(?:as|the) suggest(?:ed|ion)"
    # "The previous step was wrong"
    r"|(?:previous|prior|earlier|last) (?:step|attempt|code|thought|approach)\w*[^.\n]*?"
    r"(?:wrong|incorrect|error|fail|flaw)\w*"
    r"|the (?:student|analysis))",
    re.IGNORECASE)


def parse_correction(text: str, question: str, answers: str | list[str], before: Messages,
                     last: bool = False) -> str:
    """A corrected step (a first thought if none stands before it), checked for what does not belong in it.

    On the `last` try a label is removed instead of refused.
    """
    if step_of(before) == 0:
        content = f"<first_thought>{parse_plan(text)}</first_thought>"
    else:
        content = parse_step(text)
    try:
        parse_code(code_of(content) or "")
    except UNREADABLE as error:
        raise ValueError(f"the code is not valid Python ({error})") from None
    thought = text.partition("thought>")[2] or text
    if LABEL.match(thought) and not last:
        raise ValueError('labels such as "Thought:" do not belong in it')
    for talk in TALK.finditer(content):
        if not tokens(talk[0]) <= tokens(question):                       # unless the question itself says so
            raise ValueError(f'"{talk[0]}" is not said by one who is at this step for the first time')
    answer = leaked(content, question, answers, before)
    if answer is not None:
        raise ValueError(f'it states "{answer}", which no observation shows: take the step that finds it')
    return content


# A command of LaTeX: "\frac".
COMMAND = re.compile(r"\\[a-zA-Z]+")
# The comma between thousands: "1,000".
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NUMBER_OR_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
# Zeros that end a decimal number: ".0" of "5.0", "00" of "2.500".
LAST_ZEROS = re.compile(r"\.0*$|(\.\d*?)0+$")


def tokens(text: str) -> set[str]:
    """Words and numbers, each number in one form: "1,000.0 km" -> {"1000", "km"}"""
    text = COMMAND.sub(" ", text.lower())
    text = THOUSANDS_COMMA.sub("", text)
    return {LAST_ZEROS.sub(r"\1", token) for token in NUMBER_OR_WORD.findall(text)}


# What follows the word answer: "So the answer is 18."
AFTER_ANSWER = re.compile(r"\banswer\b.{0,80}", re.IGNORECASE)
# An answer that is a mere conclusion, which a step may always state: yes, no, a choice.
CONCLUSION = re.compile(r"yes|no|true|false|\(?[A-Z]\)?", re.IGNORECASE)
# Nodes of a syntax tree that only pass on or put together what they hold: str(18), -18, [1, 18], f"{n} cm".
GLUE = (ast.Call, ast.JoinedStr, ast.FormattedValue, ast.UnaryOp, ast.USub, ast.List, ast.Tuple, ast.Load)


def literal(node: ast.AST, known: dict[str, str | None]) -> str | None:
    """What an expression says with literals only, as text; None if it computes.

    `known` holds the same for the names that it may use: with {"n": "18"}, [1, n] -> "1 18".
    """
    texts = []
    for part in ast.walk(node):
        if isinstance(part, GLUE):
            continue
        text = None
        if isinstance(part, ast.Constant):
            text = str(part.value)
        elif isinstance(part, ast.Name):
            text = known.get(part.id)
        if text is None:
            return None
        texts.append(text)
    return " ".join(texts)


def printed(code: str) -> list[str]:
    """What a program prints without computing it: "n = 18; print(n); print(n + 1)" -> ["18"]"""
    known: dict[str, str | None] = {"str": "", "int": "", "float": ""}    # str(18) says 18
    texts = []
    for statement in parse_code(code).body:
        for node in ast.walk(statement):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    known[name] = literal(value, known)
                case ast.Call(func=ast.Name(id="print" | "final_answer_print"), args=arguments):
                    texts += [literal(argument, known) for argument in arguments]
    return [text for text in texts if text]


def is_shown(answer: str, shown: set[str]) -> bool:
    """Do question and observations show all words of an answer, or a number that equals it?"""
    if tokens(answer) <= shown:
        return True
    return any(rule(token, answer) for token in shown if token[0].isdigit())


def leaked(content: str, question: str, answers: str | list[str], before: Messages) -> str | None:
    """The reference answer, if a step states it though neither question nor observation shows it.

    Stated is what a first thought holds, what follows the word answer, and what code prints without
    computing it.
    """
    thought = content.partition("<code>")[0]
    stated = AFTER_ANSWER.findall(thought) + printed(code_of(content) or "")
    observations = [message["content"] for message in before[1:] if message["role"] == "user"]
    shown = tokens(" ".join([question, *observations]))
    for answer in as_list(answers):
        answer = core(answer)
        if is_shown(answer, shown) or CONCLUSION.fullmatch(answer):
            continue
        texts = stated
        if content.startswith("<first_thought>") and len(answer) > 1:
            texts = [*stated, thought]
        for text in texts:
            if tokens(answer) <= tokens(text) or rule(text, answer):
                return answer
    return None
