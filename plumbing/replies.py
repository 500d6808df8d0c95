"""Can a teacher's reply be used? Parsers of plans, steps, verdicts and corrections, without a model.

A parser returns what the reply says or raises ValueError; its message tells the teacher what is wrong, and
goes on after "That reply cannot be used: ".
"""
import ast
import json
import re
from typing import Any, NamedTuple

from plumbing.answers import core, rule
from plumbing.records import as_list
from plumbing.trajectory import UNREADABLE, Messages, Step, code_of, observed, parse_code, step_of

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


# ---- thinking, which is no part of a reply ----

THINKING = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
THOUGHT_OUT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)           # some templates have only this one
OWN_TAG = re.compile(r"\s*<(?:first_)?thought>", re.IGNORECASE)


def end_of_thinking(text: str, start: int) -> int:
    """Where the next </think> begins; ValueError if there is none."""
    closing = THOUGHT_OUT.search(text, start)
    if closing is None:
        raise ValueError("it ends before its thinking does")
    return closing.start()


def without_thinking(text: str) -> str:
    """What a plan or a step says after its thinking; </think> inside a step's code ends nothing."""
    start = 0
    while not OWN_TAG.match(text, start):
        mark = THOUGHT_OUT.search(text, start) or THINKING.search(text, start)
        if mark is None:
            break
        start = THOUGHT_OUT.search(text, end_of_thinking(text, start)).end()
    return text[start:].strip()


# ---- JSON objects: verdicts and equivalence ----

TRUTH = {"true": True, "false": False}
# What counts outside of objects: tags of thinking, braces (not LaTeX's \{), a list of lists or objects.
MARK = re.compile(rf"{THINKING.pattern}|{THOUGHT_OUT.pattern}|\\.|[{{}}]|\[(?=\s*[\[{{])", re.IGNORECASE)
# The beginning of an object. Other braces are mathematics or prose.
OBJECT = re.compile(r"\{\s*[\"']")
TOKEN = re.compile(r"""[{}\[\],:]|"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*'"""
                   r"|-?\d[\d.eE+-]*|true|false|null|True|False|None", re.DOTALL)
SPACE = re.compile(r"\s*")
PYTHON_NAMES = {"True": "true", "False": "false", "None": "null"}
# In a text: an escape of JSON, or another backslash with its word, or a quotation mark (within Python's '…').
BACKSLASH = re.compile(r"""\\(?:(u[0-9a-fA-F]{4}|["\\/])|'|([a-zA-Z]*))|\"""")
# Commands of LaTeX that begin like an escape for a return, a newline or a tab: \rho, \neq, \text.
LATEX = re.compile(
    r"r[a-z]+"
    r"|n(?:abla|atural|cong|e|earrow|eg|eq|ewline|exists|geq|leq|mid|olimits|onumber|ot|otin|parallel|prec|sim"
    r"|subset|subseteq|succ|u|warrow)"
    r"|t(?:an|anh|au|ext[a-z]*|frac|herefore|heta|ilde|imes|o|op|riangle[a-z]*)")
# The number of a step: "2", "Step 2", "2.0".
STEP_NUMBER = re.compile(r"\s*(?:step\s*)?(\d{1,6})(?:\.0)?\s*", re.IGNORECASE)

UNREADABLE_OBJECT = ("it holds a JSON object that cannot be read: it is cut off, a quotation mark inside a "
                     "text is not escaped, or a field has two values")
NOT_ALONE = "its JSON object stands inside other braces or inside a sentence, so it may be a quotation"

# The end of what stands before a quotation: a word in the same line, or "The student printed:".
BEFORE_QUOTATION = re.compile(
    r"[\w,;][ \t\"'`*(]*\Z"
    r"|\b(?:observ\w+|print\w*|writ\w+|wrote|sa(?:id|ys)|return\w*|answered|replied|quot\w+"
    r"|(?:student|agent)\W?s (?:answer|code|json|object|output|reply|text))\b[^.\n]*:\W*\Z", re.IGNORECASE)
# The opening of a fence: "```json".
FENCE_BEFORE = re.compile(r"(?:```|~~~)[ \t]*\w*\s*\Z")
# The rest of a sentence after a quotation: '", which is wrong'.
AFTER_QUOTATION = re.compile(r"[\"'`*)\]]*[,;]?\s*[a-z]")


def json_escape(match: re.Match) -> str:
    r"""A backslash as JSON wants it: an escape stays, that of LaTeX's \frac is doubled."""
    escape, word = match.groups()
    if match[0] == '"':
        return '\\"'
    if match[0] == "\\'":
        return "'"
    if escape or (word[:1] in ("n", "r", "t") and not LATEX.fullmatch(word)):        # "\nThe": a newline
        return match[0]
    return "\\" + match[0]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, their names in small letters; ValueError for one with two values."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        name = name.strip().lower()
        if found.setdefault(name, value) != value:
            raise ValueError(UNREADABLE_OBJECT)
    return found


def read_json(text: str, start: int) -> tuple[Any, int]:
    """The object or list that begins at `start`, and its end.

    Forgives LaTeX's single backslashes, raw newlines, Python's quotes and names, and a comma at the end.
    """
    depth = 0
    parts = []
    end = start
    while True:
        token = TOKEN.match(text, SPACE.match(text, end).end())
        if token is None:
            raise ValueError(UNREADABLE_OBJECT)
        end = token.end()
        part = PYTHON_NAMES.get(token[0], token[0])
        if part[0] in "\"'":
            part = '"' + BACKSLASH.sub(json_escape, part[1:-1]) + '"'
        elif part in "{[":
            depth += 1
        elif part in "}]":
            depth -= 1
            if parts[-1] == ",":
                parts.pop()
        parts.append(part)
        if depth == 0:
            return json.loads(" ".join(parts), strict=False, object_pairs_hook=unique), end


def objects_of(text: str, field: str) -> list[tuple[dict, int, int]]:
    """The objects of a reply that have the field (true, false, None for anything else), and where they stand.

    They stand outside thinking and other objects. ValueError if that is in doubt.
    """
    found: list[tuple[dict, int, int]] = []
    fault = None
    depth = 0                                              # of braces that begin no object
    end = 0
    while mark := MARK.search(text, end):
        end = mark.end()
        if THOUGHT_OUT.fullmatch(mark[0]):                 # what stood before was thinking
            found = []
            fault = None
            depth = 0
        elif THINKING.fullmatch(mark[0]):
            end = end_of_thinking(text, end)
        elif mark[0] == "}":
            depth -= 1
            if depth < 0:
                fault = NOT_ALONE
        elif mark[0] == "{" and not OBJECT.match(text, mark.start()):
            depth += 1
        elif mark[0] in "{[":
            try:
                value, end = read_json(text, mark.start())
            except (ValueError, RecursionError):
                fault = UNREADABLE_OBJECT
                if not THOUGHT_OUT.search(text, end):
                    break
                end = end_of_thinking(text, end)           # it was a draft, not a verdict
                continue
            if isinstance(value, dict) and field in value:
                value[field] = TRUTH.get(str(value[field]).strip().lower())
                found.append((value, mark.start(), end))
                if depth:
                    fault = NOT_ALONE
    if fault:
        raise ValueError(fault)
    return found


def parse_json(text: str, field: str) -> dict:
    """The one JSON object of a reply, which has true or false in that field.

    Fences and prose around it are forgiven, and that it is repeated if it decides the same each time.
    """
    if not OBJECT.search(text):
        text = re.sub(r'\\(["\\])', r"\1", text)           # {\"correct\": …}
    found = objects_of(text, field)
    if len({(value[field], str(value.get("first_wrong_step"))) for value, _, _ in found}) > 1:
        raise ValueError("it holds several JSON objects that differ: there must be one")
    if not found or found[-1][0][field] is None:
        raise ValueError(f'it holds no complete JSON object whose field "{field}" is true or false')
    value, start, end = found[-1]
    before = FENCE_BEFORE.sub("", text[max(0, start - 300):start])
    if BEFORE_QUOTATION.search(before) or AFTER_QUOTATION.match(text, end):
        raise ValueError(NOT_ALONE)
    return value


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
THOUGHT = re.compile(r"<thought>((?:(?!</?thought>).)*)</thought>\s*(?=<code\b)", re.DOTALL | re.IGNORECASE)
# What a plan holds that is a program already: a fence, a call with its arguments, a line of code.
PROGRAM = re.compile(
    r"```|~~~"
    r"|\bprint\([^)\s]|\b\w*(?:search|answer_print)\(\s*[\"'\d]"
    r"|^\W{0,3}(?i:code|observation)\W{0,3}:"
    r"|^[ \t]*(?:import \w+$|from [\w.]+ import |def \w+\(|for \w+ in .*:$|\w+ = \w+\()", re.MULTILINE)
# A number that is worked out, "6 + 3 = 9", "30% of 20 is 6", "\frac{12}{4} = 3", or given as the answer.
NUMBER = r"[({]?\\?\$?\d[\d,]*(?:\.\d+)?(?:\\?%)?[)}]?"
RESULT = re.compile(
    rf"(?<![\w^.,+]){NUMBER}"
    r"(?:\s*(?:[-+*/×÷·−x^]|\*\*|\\times|\\cdot|\\div|plus|minus|times|divided by|of)\s*"
    rf"{NUMBER}){{1,8}}\s*(?:[=≈]|is|equals|gives)\s*-?{NUMBER}"
    rf"|\\(?:[dt]?frac|sqrt)\{{[\d{{}}.,]+\}}\s*[=≈]\s*-?{NUMBER}"
    rf"|\banswer\s*(?:is|=)[^\w\n]{{0,6}}-?{NUMBER}|\banswer\s*:[^\w\n]{{0,6}}-?{NUMBER}\W{{0,6}}$"
    r"|\\boxed\s*\{[^{}]*\d", re.IGNORECASE | re.MULTILINE)


def parse_plan(text: str, question: str = "", answers: str | list[str] | None = None) -> str:
    """The first thought of a reply, without tags and labels. It may neither hold code nor results.

    answers: the reference answers, which it may not hold either; None: that is not checked here. Only the
    check sees them: what is wrong is said without naming them.
    """
    text = without_thinking(text)
    tagged = FIRST_THOUGHT.search(text)
    if tagged:
        text = tagged[1]
    plan = LABEL.sub("", text).strip()
    if not plan or TAG.search(plan) or PROGRAM.search(plan):
        raise ValueError("it must be a plan in plain text, without code")
    stated = [result[0] for result in RESULT.finditer(plan) if not tokens(result[0]) <= tokens(question)]
    if stated or (answers and leaked(f"<first_thought>{plan}</first_thought>", question, answers, [])):
        raise ValueError("it states a result: a plan says what to do, and leaves doing it to the steps")
    return plan


def parse_step(text: str) -> str:
    """The first thought–code pair of a reply, without labels, and its code without fences."""
    text = without_thinking(text)
    found = THOUGHT.search(text)
    thought = ""
    code = None
    if found:
        thought = LABEL.sub("", found[1]).strip()
        code = code_of(text[found.end():])
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
    r"|(?:previous|prior|earlier|last) (?:step|attempt|code|thought|approach)\w*[^.\n]{0,200}?"
    r"(?:wrong|incorrect|error|fail|flaw)\w*"
    r"|the (?:student|analysis))",
    re.IGNORECASE)


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


def words(text: str) -> list[str]:
    """Words and numbers, each number in one form: "1,000.0 km" -> ["1000", "km"]"""
    text = COMMAND.sub(" ", text.lower())
    text = THOUSANDS_COMMA.sub("", text)
    return [LAST_ZEROS.sub(r"\1", token) for token in NUMBER_OR_WORD.findall(text)]


def tokens(text: str) -> set[str]:
    """The words and numbers of a text."""
    return set(words(text))


def in_one_place(answer: str, text: str) -> bool:
    """Does a text hold an answer, its words in any order, with at most two others among them?

    The numbers of a list, "1. … 3. …", are not the answer 1/3. Chinese has no spaces between words.
    """
    if not answer.isascii() and answer.lower() in text.lower():
        return True
    wanted = words(answer)
    said = words(text)
    width = len(wanted)
    if not all(word.isdigit() for word in wanted):
        width += 2
    places = range(max(1, len(said) - width + 1))
    return any(set(wanted) <= set(said[place:place + width]) for place in places)


# What follows the word answer: "So the answer is 18."
AFTER_ANSWER = re.compile(r"\banswer\b.{0,80}", re.IGNORECASE)
# An answer that is a mere conclusion, which a step may always state: yes, no, a choice.
CONCLUSION = re.compile(r"yes|no|true|false|\(?[A-Z]\)?", re.IGNORECASE)
LONGEST = 10_000                                   # characters of a literal that are looked at
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
        if text is None or len(text) > LONGEST:
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


def is_shown(answer: str, seen: str) -> bool:
    """Do question and observations show all words of an answer, or a number that equals it?"""
    shown = tokens(seen)
    if tokens(answer) <= shown or (not answer.isascii() and answer.lower() in seen.lower()):
        return True
    return any(rule(token, answer) for token in shown if token[0].isdigit())


def leaked(content: str, question: str, answers: str | list[str], before: Messages) -> str | None:
    """The reference answer, if a step states it though neither question nor observation shows it.

    Stated is what a first thought holds in one place, what follows the word answer, and what code prints
    without computing it.
    """
    thought = content.partition("<code>")[0]
    stated = {*AFTER_ANSWER.findall(thought), *printed(code_of(content) or "")}
    observations = [message["content"] for message in before[1:] if message["role"] == "user"]
    seen = " ".join([question, *observations])
    for answer in as_list(answers):
        answer = core(answer)
        if is_shown(answer, seen) or CONCLUSION.fullmatch(answer):
            continue
        if content.startswith("<first_thought>") and len(answer) > 1 and in_one_place(answer, thought):
            return answer
        for text in stated:
            if tokens(answer) <= tokens(text) or (re.search(r"\d", text) and rule(text, answer)):
                return answer
    return None
