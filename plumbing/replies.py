"""Can a teacher's reply be used? Parsers of plans, steps, verdicts and corrections, without a model."""
import ast
import contextlib
import json
import re
from collections import namedtuple

from plumbing.answers import UNREADABLE, core, parse_code, rule
from plumbing.records import as_list
from plumbing.trajectory import code_of, observed, step_of

Verdict = namedtuple("Verdict", "correct first_wrong_step analysis suggestion")
LABEL = re.compile(r"\A\s*(?:\W{0,3}(?:(?:first|corrected)[ _])?(?:thought|plan|step(?: \d+)?|action|code)"
                   r"\W{0,2}:\W{0,2}\s*)+", re.I)
TALK = re.compile(r"\b(?:mistake\w*|erroneous\w*|reference (?:answer|solution)|ground truth|rejected|"
                  r"(?:expected|known|given) answer|correct(?:ed|ion)(?: step)?|(?:as|the) suggest(?:ed|ion)|"
                  r"(?:previous|prior|earlier|last) (?:step|attempt|code|thought|approach)\w*[^.\n]*?"
                  r"(?:wrong|incorrect|error|fail|flaw)\w*|the (?:student|analysis))", re.I)


def same_step_cheap(a, b):
    """True if two steps {"content", "observation"} have the same code (comments and layout aside; without
    code, the same words) or show the same result; None where that does not decide."""
    forms = [code_of(step["content"]) or " ".join(step["content"].split()) for step in (a, b)]
    ends = {"final_answer_print(" in form for form in forms}
    with contextlib.suppress(*UNREADABLE):
        forms = [ast.dump(parse_code(form)) for form in forms]
    shown = observed(a) not in ("", "None") and not re.search(r"Error\b|Exception\b|Traceback", observed(a))
    return True if forms[0] == forms[1] or shown and observed(a) == observed(b) and len(ends) == 1 else None


def parse_json(text, field):
    """The last JSON object of a reply that has true or false in that field; ValueError if there is none.
    Forgives fences, prose, \\" for ", LaTeX's single backslashes, raw newlines and Python's True and None."""
    latex = re.sub(r'\\([\\"/nu])?', lambda m: m[0] if m[1] else r"\\", text)
    decode = json.JSONDecoder(strict=False).raw_decode
    for variant, load in ((latex, lambda s: decode(s)[0]), (text.replace('\\"', '"'), lambda s: decode(s)[0]),
                          (text, lambda s: ast.literal_eval(parse_code(s[:s.rindex("}") + 1], "eval")))):
        for brace in reversed(list(re.finditer(r"\{", variant))):
            with contextlib.suppress(*UNREADABLE):
                found = load(variant[brace.start():])
                return found | {field: {"true": True, "false": False}[str(found[field]).strip().lower()]}
    raise ValueError(f'it holds no complete JSON object whose field "{field}" is true or false')


def parse_equivalent(text, last):
    return parse_json(text, "equivalent")["equivalent"]


def parse_verdict(text, steps):
    """A `Verdict` on a trajectory of so many steps; ValueError says what is wrong with the reply."""
    found = parse_json(text, "correct")
    k = re.fullmatch(r"(?i)\s*(?:step\s*)?(\d{1,6})(?:\.0)?\s*", str(found.get("first_wrong_step")))
    k = int(k[1]) if k and not found["correct"] else None
    if not found["correct"] and (k is None or k >= steps):
        raise ValueError(f'as "correct" is false, "first_wrong_step" must be a step from 0 to {steps - 1}')
    return Verdict(found["correct"], k, str(found.get("analysis") or ""), str(found.get("suggestion") or ""))


def parse_plan(text):
    tagged = re.search(r"(?s)<first_thought>(.*?)</first_thought>", text)
    plan = LABEL.sub("", tagged[1] if tagged else text).strip()
    if not plan or re.search(r"</?(?:thought|code|first_thought)>", plan):
        raise ValueError("it must be a plan in plain text, without code")
    return plan


def parse_step(text):
    """The first thought–code pair of a reply, without labels and fences; ValueError if it is missing."""
    match = re.search(r"<thought>(.*?)</thought>\s*<code>(.*?)</code>", text, re.S)
    thought = LABEL.sub("", match[1]).strip() if match else ""
    code = re.sub(r"^\s*```\w*\n|\n```\s*$", "", match[2]).strip("\n").rstrip() if match else ""
    if not thought or not code:
        raise ValueError("it must be one <thought>…</thought> followed by one <code>…</code>, neither empty")
    return f"<thought>{thought}</thought><code>{code}</code>"


def parse_correction(text, question, answers, before, last=False):
    """A corrected step (a first thought if none stands before it); ValueError names what does not belong
    in it. On the `last` try a label is removed instead."""
    content = parse_step(text) if step_of(before) else f"<first_thought>{parse_plan(text)}</first_thought>"
    try:
        parse_code(code_of(content) or "")
    except UNREADABLE as error:
        raise ValueError(f"the code is not valid Python ({error})") from None
    if LABEL.match(text.partition("thought>")[2] or text) and not last:
        raise ValueError('labels such as "Thought:" do not belong in it')
    for talk in TALK.finditer(content):
        if not tokens(talk[0]) <= tokens(question):                      # unless the question itself says so
            raise ValueError(f'"{talk[0]}" is not said by one who is at this step for the first time')
    if (answer := leaked(content, question, answers, before)) is not None:
        raise ValueError(f'it states "{answer}", which no observation shows: take the step that finds it')
    return content


def tokens(text):
    """Words and numbers, each number in one form: "1,000.0 km" -> {"1000", "km"}"""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\\[a-zA-Z]+", " ", text.lower()))
    return {re.sub(r"\.0*$|(\.\d*?)0+$", r"\1", t) for t in re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text)}


def leaked(content, question, answers, before):
    """The reference answer, if a step states it though neither question nor observation shows it. Stated is
    what a first thought holds, what follows the word answer, and what code prints without computing it."""
    glue = (ast.Call, ast.JoinedStr, ast.FormattedValue, ast.UnaryOp, ast.USub, ast.List, ast.Tuple, ast.Load)
    thought, known = content.partition("<code>")[0], {"str": "", "int": "", "float": ""}
    stated = re.findall(r"(?i)\banswer\b.{0,80}", thought)

    def literal(node):                                                    # None if the expression computes
        parts = [part for part in ast.walk(node) if not isinstance(part, glue)]
        texts = [str(part.value) if isinstance(part, ast.Constant) else known.get(getattr(part, "id", None))
                 for part in parts]
        return None if None in texts else " ".join(texts)

    for node in (node for statement in parse_code(code_of(content) or "").body for node in ast.walk(statement)):
        match node:
            case ast.Assign([ast.Name(name)], value):
                known[name] = literal(value)
            case ast.Call(ast.Name("print" | "final_answer_print"), arguments):
                stated += filter(None, map(literal, arguments))
    shown = tokens(" ".join([question] + [m["content"] for m in before[1:] if m["role"] == "user"]))
    for answer in map(core, as_list(answers)):
        texts = stated + [thought] * (content.startswith("<first_thought>") and len(answer) > 1)
        seen = tokens(answer) <= shown or any(rule(t, answer) for t in shown if t[0].isdigit())
        if seen or re.fullmatch(r"(?i)yes|no|true|false|\(?[A-Z]\)?", answer):    # always a mere conclusion
            continue
        if any(tokens(answer) <= tokens(text) or rule(text, answer) for text in texts):
            return answer
