"""The one JSON object of a teacher's reply: outside its thinking, not quoted, not one of several."""
import json
import re
from typing import Any

from plumbing.thinking import THINKING, THOUGHT_OUT, end_of_thinking

TRUTH = {"true": True, "false": False, "yes": True, "no": False}
ASKED_FOR = {"analysis", "suggestion", "correct", "first_wrong_step", "equivalent"}      # the fields
# What counts outside of objects: tags of thinking, braces (not LaTeX's \{), a list of lists or objects.
MARK = re.compile(rf"{THINKING.pattern}|{THOUGHT_OUT.pattern}|\\.|[{{}}]|\[(?=\s*[\[{{])", re.IGNORECASE)
# Space between tokens, and comments. They hold no quotation mark, so that none can hide a field.
SPACE = re.compile(r"""(?:\s|(?://|\#)[^\n"'{}]*\n)*""")
# The beginning of an object. Other braces are mathematics or prose, or (in one line) a program's.
OBJECT = re.compile(rf"""\{{{SPACE.pattern}["']""")
# Braces that end in their line, quotation marks in pairs: {"a": n, "b": {"c": n}}.
WORDS = r"""(?:[^{}\n"']|"[^"\n]*"|'[^'\n]*')*"""
IN_ONE_LINE = re.compile(rf"\{{{WORDS}(?:\{{{WORDS}\}}{WORDS})*\}}")
TOKEN = re.compile(r"""[{}\[\],:]|"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*'"""
                   r"|-?\d[\d.eE+-]*|true|false|null|True|False|None", re.DOTALL)
PYTHON_NAMES = {"True": "true", "False": "false", "None": "null"}
# In a text: an escape of JSON, or another backslash with its word, or a quotation mark (within Python's '…').
BACKSLASH = re.compile(r"""\\(?:(u[0-9a-fA-F]{4}|["\\/])|'|([a-zA-Z]*))|\"""")
# Commands of LaTeX that begin like an escape for a return, a newline or a tab: \rho, \neq, \text.
LATEX = re.compile(
    r"r[a-z]+"
    r"|n(?:abla|atural|cong|e|earrow|eg|eq|ewline|exists|geq|leq|mid|olimits|onumber|ot|otin|parallel|prec|sim"
    r"|subset|subseteq|succ|u|warrow)"
    r"|t(?:an|anh|au|ext[a-z]*|frac|herefore|heta|ilde|imes|o|op|riangle[a-z]*)")

UNREADABLE_OBJECT = ("it holds a JSON object, or part of one, that cannot be read: it is cut off, a "
                     "quotation mark inside a text is not escaped, or a field has two values")
NOT_ALONE = ("its JSON object stands inside other braces or inside a sentence, so it may be a quotation: "
             "write it alone")

# What stands before a quotation: a word in the same line, "The student printed:", Markdown's ">".
BEFORE_QUOTATION = re.compile(
    r"[\w,;][ \t\"'`*(]*\Z"
    r"|\b(?:observ\w+|print\w*|outputs|outputted|gave|gives|show\w*|writ\w+|wrote|sa(?:id|ys)|return\w*|answered"
    r"|replied|quot\w+|(?:student|agent|code|program|step \d+|it)\W?s (?:\w+ )?"
    r"(?:answer|code|evaluation|json|object|output|reply|text|verdict)\b)[^.\n{}]*:[^\w.{}]*\Z"
    r"|^\W*(?:the )?(?:student|agent|prediction)\W*\Z|^[ \t]*>[ \t]*\Z", re.IGNORECASE | re.MULTILINE)
# What introduces the verdict itself: "So my verdict is", "Here is my evaluation of the agent's answer:".
OWN = re.compile(
    r"(?:^|[.,!] )\W*(?:(?:so|thus|therefore|and|here|here['’]s|is|my|the|a|final|overall|requested)\W+)*"
    r"(?:verdict|evaluation|assessment|judge?ment|json)(?: (?:object|is|as follows|in json format))*"
    r"(?: (?:of|on|for) [^.,\n]*:)?\W*\Z", re.IGNORECASE | re.MULTILINE)
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


def after_words(text: str, start: int) -> bool:
    """Does what begins there go on with a sentence, or follow "The student printed:"?"""
    before = FENCE_BEFORE.sub("", text[max(0, start - 300):start])
    return bool(BEFORE_QUOTATION.search(before)) and not OWN.search(before)


def is_quoted(text: str, start: int, end: int) -> bool:
    """Is the object from start to end part of a sentence?"""
    return after_words(text, start) or bool(AFTER_QUOTATION.match(text, end))


def value_at(text: str, start: int) -> tuple[Any, int]:
    """The object or list that begins at `start`, and its end.

    None for the braces of a program and for a draft that cannot be read before </think>, and where to go on.
    """
    try:
        return read_json(text, start)
    except (ValueError, RecursionError):
        in_one_line = IN_ONE_LINE.match(text, start)
        if in_one_line and not any(name in in_one_line[0].lower() for name in ASKED_FOR):
            return None, in_one_line.end()
        closing = THOUGHT_OUT.search(text, start)
        if closing is None or not after_words(text, start):
            raise ValueError(UNREADABLE_OBJECT) from None
        return None, closing.start()


def objects_of(text: str, field: str) -> list[tuple[dict, int, int]]:
    """The objects of a reply that have the field (true, false, None for anything else), and where they stand.

    They stand outside thinking and other objects. ValueError if that is in doubt.
    """
    marks = re.compile(rf"{MARK.pattern}|[\"']{field}[\"']\s*:", re.IGNORECASE)
    found: list[tuple[dict, int, int]] = []
    fault = None
    depth = 0                                              # of braces that begin no object
    end = 0
    while mark := marks.search(text, end):
        start, end = mark.span()
        if THOUGHT_OUT.fullmatch(mark[0]):                 # what stood before was thinking, but for a verdict
            found = [place for place in found if not is_quoted(text, *place[1:])]
            if not found:
                fault = None
            depth = 0
        elif THINKING.fullmatch(mark[0]):
            end = end_of_thinking(text, end)
        elif mark[0] == "}":
            depth -= 1
            if depth < 0:
                fault = NOT_ALONE
        elif mark[0] == "{" and not OBJECT.match(text, start):
            depth += 1
        elif mark[0] in "{[":
            value, end = value_at(text, start)
            match value:                                   # not [{"step": 0, "correct": true}]
                case [dict() as only] if {"analysis", field} <= set(only) <= ASKED_FOR:
                    value = only
            if isinstance(value, dict) and field in value:
                value[field] = TRUTH.get(str(value[field]).strip().lower())
                found.append((value, start, end))
                if depth:
                    fault = NOT_ALONE
            elif isinstance(value, dict) and ASKED_FOR & set(value) and not after_words(text, start):
                raise ValueError(UNREADABLE_OBJECT)        # a quotation mark in its analysis has ended it
        elif mark[0][0] in "\"'":                          # the field outside of an object
            fault = UNREADABLE_OBJECT
    if fault:
        raise ValueError(fault)
    return found


def parse_json(text: str, field: str) -> dict:
    """The one JSON object of a reply, which has true or false in that field.

    Fences and prose around it are forgiven, and that it is repeated if it decides the same each time.
    """
    if not OBJECT.search(text):
        text = re.sub(r'\\(["\\])', r"\1", text)           # {\"correct\": …}
        text = re.sub("[“”]", '"', text)
    found = objects_of(text, field)
    if len({(value[field], str(value.get("first_wrong_step"))) for value, _, _ in found}) > 1:
        raise ValueError("it holds several JSON objects that differ: there must be one")
    if not found or found[-1][0][field] is None:
        raise ValueError(f'it holds no complete JSON object whose field "{field}" is true or false')
    value, start, end = found[-1]
    if is_quoted(text, start, end):
        raise ValueError(NOT_ALONE)
    return value
