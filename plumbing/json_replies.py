"""The one JSON object of a teacher's reply: outside its thinking, not quoted, not one of several."""
import json
import re
from typing import Any

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


# ---- JSON objects ----

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
