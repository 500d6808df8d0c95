"""Does a step, a plan or a hint state the reference answer, which nothing has shown?"""
import ast
import re

from plumbing.answers import core, rule
from plumbing.records import as_list
from plumbing.trajectory import Messages, code_of, parse_code

# ---- words and numbers of a text ----

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

    If it is all numbers, 1/3, none may be among them. Chinese has no spaces between words.
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


# ---- what a program prints, and what a step states ----

# The numbers of a list are no answer: "10. ", "Step 10: ".
LIST_NUMBER = re.compile(r"^\W*(?:step\s+)?\d{1,2}[.):](?=[ \t]+\S)", re.IGNORECASE | re.MULTILINE)
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
    code = code_of(content) or ""
    thought = LIST_NUMBER.sub("", content.removesuffix(f"{code}</code>"))
    stated = {*AFTER_ANSWER.findall(thought), *printed(code)}
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


# ---- hints ----

# What follows a word that says which of several answers is right: "the correct option is (B)".
CALLED_RIGHT = re.compile(r"\b(?:answer|correct|right|should be|instead)\b.{0,80}", re.IGNORECASE | re.DOTALL)


def gives_away(hint: str, question: str, answers: str | list[str], before: Messages) -> bool:
    """Does a text about a step, made by someone who knows the answer, tell it?

    Stricter than `leaked`: all words of the answer, or a number that equals it, may stand nowhere in the
    hint. If question or observations show them, or if the answer is a mere conclusion, they may not be called
    right. A number in words ("eighteen") is not seen.
    """
    seen = " ".join([question, *(message["content"] for message in before[1:] if message["role"] == "user")])
    for answer in as_list(answers):
        answer = core(answer)
        said = hint
        if is_shown(answer, seen) or CONCLUSION.fullmatch(answer):
            said = " ".join(CALLED_RIGHT.findall(hint))
        if is_shown(answer, said):
            return True
    return False
