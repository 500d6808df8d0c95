"""What judge.py decides without a model: is an answer right, can a teacher's reply be used.

Run as a program it is the process in which math-verify works: a JSON list of two texts per line in, a JSON
value per line out: true; false for two numbers that differ by more than a rounding; null where neither is
sure. A process of its own, because the library's time limits are signals, which work neither in threads nor
against a long integer power: here an alarm without a handler ends the process, and the next question starts
another.
"""
import ast
import contextlib
import json
import logging
import os
import re
import resource
import signal
import string
import subprocess
import sys
import threading
from collections import Counter, namedtuple



class InputError(Exception):
    """Something the user gave is wrong; the message is one sentence that names what and where."""


UNREADABLE = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError)


# ---- answers ----

# What normalize_answer would lose: operators, decimals, times, signs (but not the hyphen between two words).
FORMULA = re.compile(r"[\\^=+*/<>|{}()\[\]_]|\d[.,:]\d|\d!|(?<![a-zA-Z]{2})-|-(?![a-zA-Z]{2})")
WORD = re.compile(r"(?<![\\{a-z])(?!(?:sqrt|pi|oo|inf|or|and|sin|cos|tan|log|ln|exp|Matrix)(?![a-z]))"
                  r"[a-z]{2,}|(?<=\d )[a-z]\b", re.I)
UNIT = re.compile(r"(?<=[\d})a-z])\s+(?!(?:or|and|to|half|dozen|hundred)\b)"
                  r"(?:[a-z]{2,}|[mgshlnjwvk])(?:[a-z\s./{}²³-]|\^\{?-?\d)*$", re.I)
TWO = re.compile(r"\d\s+(?!(?:or|and|sqrt)\b)[a-z]{2,}.*\d", re.I)            # 10 cm by 5 cm
HEDGE = re.compile(r"(?<!\\)\b(?:not?|more|less|least|most|about|around|approximately|times)\b", re.I)
SAME_UNIT = {name: names.split()[0] for names in (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
    "in inch inche", "ft foot feet", "yd yard", "mi mile", "g gram", "kg kilogram", "lb pound",
    "l liter litre", "ml milliliter millilitre", "sec second s", "min minute", "hr hour h")
    for name in names.split()}
ROMAN = re.compile(r"(?:(?<=[a-z] )(?<!(?:and|sin|cos|tan|log) )(?<!(?:or|is|of|by|as|in) )[IVX]|"
                   r"(?=[IVXLCDM]{2})M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})"
                   r"(?:I[XV]|V?I{0,3}))(?!\w)")
NUMBERS = {word: n for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split())}
POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
LATEX = [(r"\*\*", "^"), (r"(?<=\d)e([+-]?\d+)", r"*10^{\1}"), (r"\^\s*(-\w+)", r"^{\1}"),
         (r"(?<=\d)(?:\*[iIj]|j)\b", "i"), (r"\boo\b|∞|(?<![\\a-z])inf(?:ty|inity)?\b", r"\\infty "),
         (r"(?<![\\a-zA-Z])(pi|sin|cos|tan|log|ln|exp)(?![a-zA-Z])", r"\\\1"),
         (r"√\s*(\d+|[a-z]\b)", r"\\sqrt{\1}"), (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
         (r"(?<=[)\]])\s*(?:∪|U|or)\s*(?=[(\[])", r"\\cup "),
         (r"\\varnothing|∅|\\\{\s*\\\}", r"\\emptyset "),
         (r"(?<![\d/.^])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}")]              # 2 1/3
MATRIX = r"(?:(?:Matrix|(?:np\.)?array)\()?\[(\[[^][]*\](?:, *\[[^][]*\])*)\]\)?"           # [[1, 2], [3, 4]]
SYMBOLS = str.maketrans({"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "·": r"\cdot ", "÷": "/",
                         "−": "-", "²": "^2", "³": "^3", "½": r"\frac12"})
SECONDS, BYTES = 10, 4 << 30                                              # for one comparison
WORKERS, LOCK = [], threading.Lock()


PARSING = threading.Lock()


def parse_code(text, mode="exec"):
    """`ast.parse`, one thread at a time: in CPython 3.11 several can raise SystemError (gh-106905)."""
    with PARSING:
        return ast.parse(text, mode=mode)


def as_list(answers):
    return [str(a) for a in answers] if isinstance(answers, (list, tuple)) else [str(answers)]


def core(text):
    r"""What an answer says, without its wrapping: the last \boxed{…}, \text{…}, $…$, "the answer is"."""
    text = str(text).replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")         # escapes Python ate
    text = re.sub(r"(?s)^.*\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}.*$", r"\1", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?is)^.*\banswer\s*(?:is|:|=)\s*|\\?\$|[€£¥]|\\[!,;:]|(?<!\\)\\[()\[\]]", "", text)
    return " ".join(text.split()).lstrip("*` ").rstrip(".*` ")


def spelled(text):
    """Numbers as digits: "II" -> 2, "three" -> 3, "1.5 million" -> 1.5*10^6, "1 000"; p.m., square cm."""
    def number(roman):
        values = [dict(I=1, V=5, X=10, L=50, C=100, D=500, M=1000)[letter] for letter in roman[0].upper()]
        return str(sum(-v if v < after else v for v, after in zip(values, values[1:] + [0])))
    text = re.sub(r"(?i)\b(?:%s)\b" % "|".join(NUMBERS), lambda m: str(NUMBERS[m[0].lower()]), text)
    text = re.sub(r"(?i)(?<=\d) (%s)\b" % "|".join(POWERS), lambda m: f"*10^{POWERS[m[1].lower()]}", text)
    text = re.sub(r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\w/.])", lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?i)\b([ap])\.\s?m\b\.?", r"\1m", text)
    for word, power in (("square|sq\\.?", 2), ("cubic|cu\\.?", 3)):
        text = re.sub(rf"(?i)(?<=\d )(?:{word}) (\w+)", rf"\1^{power}", text)
    return re.sub(r"(?<![\w\\])" + ROMAN.pattern + "|^[ivx]{2,}$", number, text)


def matrix(match):
    """[[1, 2], [3, 4]] as LaTeX."""
    rows = re.findall(r"\[([^][]*)\]", match[1])
    return r"\begin{pmatrix}" + r"\\".join(row.replace(",", "&") for row in rows) + r"\end{pmatrix}"


def bare(text):
    """A quantity without "x is equal to" before it and its unit after it."""
    text = re.sub(r"(?i)^[\w\s]*\b(?:is|are|equals)(?: equal to| a total of)?:? (?=\W?[\d.\\])", "", text)
    return UNIT.sub("", text)


def normalize_answer(text):
    """SQuAD's normal form of `core`: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in core(text or "").lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction, answers):
    return float(normalize_answer(prediction) in map(normalize_answer, as_list(answers)))


def f1(prediction, answers):
    """The best token F1 over the answers, as in SQuAD and HotpotQA (yes and no match only themselves)."""
    p, best = normalize_answer(prediction), 0.0
    for a in map(normalize_answer, as_list(answers)):
        if p == a or not {p, a} & {"yes", "no", "noanswer"}:
            common = (Counter(p.split()) & Counter(a.split())).total()
            best = max(best, 2 * common / max(1, len(p.split()) + len(a.split())))
    return best


def rule(prediction, answer):
    """True or False where a rule decides whether two answers say the same, else None."""
    p, a = core(prediction), core(answer)
    if not p or p.lower() == a.lower():
        return bool(p)
    if re.fullmatch(r"\(?[A-Z]\)?", a):                                   # a choice: "B", "(B)", "B. Paris"
        choice = re.match(r"(?:.*\b(?i:option|choice|choose|is):? )?[(\[]?([a-zA-Z])"
                          r"(?![^A-Z]*[,&/dr]\s*\(?[A-Z]\b)(?:[]).:,]|$)", p)       # not "A, B", "A or B"
        return choice and choice[1].upper() == a.strip("()")
    p, a = spelled(p), spelled(a)
    if p.lower() == a.lower():
        return True
    if re.search(r"\d_\{?\d", p + " " + a):                              # in a base: 1011_2
        return len({re.sub(r"[{}\s]", "", text) for text in (p, a)}) == 1 or None
    u, v = (sorted(normalize_answer(re.sub(r"(?<=\w\w)-(?=\w\w)", " ", text)).split(), key=str.isdigit)
            for text in (p, a))                                           # May 3, 1 is 3 May 1
    if u and u == v and not FORMULA.search(p + " " + a):
        return True
    if {*u, *v} in ({"yes", "no"}, {"true", "false"}):
        return False
    words = [[SAME_UNIT.get(w.rstrip("s") or w, w.rstrip("s")) for w in WORD.findall(text.lower())]
             + re.findall(r"\^\{?-?\d", (UNIT.search(text) or [""])[0]) for text in (p, a)]
    if all(words) and words[0] != words[1] or HEDGE.search(p + " " + a) or len(p + a) > 500:
        return None
    p, a = map(bare, (p, a)) if any(words) else (p, a)                    # 5 cm is 5
    unclear = WORD.search(p) and WORD.search(a) or TWO.search(p) or TWO.search(a)
    return None if unclear else math_library(p, a)


def check_by_rule(prediction, answers):
    """True if the prediction is one of the answers, False if it is none, None where rules cannot decide."""
    found = [prediction is not None and rule(prediction, answer) for answer in as_list(answers)]
    return True if True in found else None if None in found else False


def math_equal(prediction, answer):
    return check_by_rule(prediction, answer) is True


def math_library(*sides):
    """math-verify's opinion of two formulas: True, False, or None where it is not sure or takes too long."""
    with LOCK:
        if not WORKERS or WORKERS[-1].poll() is not None:
            WORKERS[:] = [subprocess.Popen([sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)]
        print(json.dumps(sides), file=WORKERS[-1].stdin, flush=True)
        reply = WORKERS[-1].stdout.readline()
        if not reply and WORKERS[-1].wait() > 0:
            raise InputError("math-verify cannot be imported: pip install -r requirements.txt")
        return json.loads(reply or "null")


def same_formula(sides):
    """What math-verify says of two texts, after Python's and Unicode's spellings are made LaTeX."""
    from math_verify import parse, verify
    sides = [side.translate(SYMBOLS) for side in sides]
    for pattern, latex in [*LATEX, (MATRIX, matrix)]:
        sides = [re.sub(pattern, latex, side) for side in sides]
    if {re.sub(r"\\left|\\", "", side)[:1] for side in sides} == {"(", "{"} and "," in sides[0]:
        return None                                                       # a point is no set
    p, a = (parse(f"${side}$", parsing_timeout=None) for side in sides)
    if verify(a, p, timeout_seconds=None) or verify(p, a, timeout_seconds=None):
        return True
    if p[0].is_number and a[0].is_number:
        gap, whole = abs(p[0] - a[0]), p[0].is_integer and a[0].is_integer
        if whole or gap > abs(a[0]) / 50:
            return False
        return True if gap < abs(a[0]) / 10**8 else None                  # 14/3 and 4.67 stay open


def word_ngrams(text, n):
    """-> the words of a text, normalised, and the set of its n-grams; a Chinese sign is a word."""
    words = re.findall(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+", text.lower())
    return " ".join(words), {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


# ---- steps and replies ----

Verdict = namedtuple("Verdict", "correct first_wrong_step analysis suggestion")
LABEL = re.compile(r"\A\s*(?:\W{0,3}(?:(?:first|corrected)[ _])?(?:thought|plan|step(?: \d+)?|action|code)"
                   r"\W{0,2}:\W{0,2}\s*)+", re.I)
TALK = re.compile(r"\b(?:mistake\w*|erroneous\w*|reference (?:answer|solution)|ground truth|rejected|"
                  r"(?:expected|known|given) answer|correct(?:ed|ion)(?: step)?|(?:as|the) suggest(?:ed|ion)|"
                  r"(?:previous|prior|earlier|last) (?:step|attempt|code|thought|approach)\w*[^.\n]*?"
                  r"(?:wrong|incorrect|error|fail|flaw)\w*|the (?:student|analysis))", re.I)


def step_count(messages):
    return sum(message["role"] == "assistant" for message in messages)


def code_of(content):
    return "".join(re.findall(r"<code>(.*?)</code>", content, re.S)[:1]).strip()


def observed(step):
    return (step["observation"] or "").strip().removeprefix("Observation:").strip()


def render(messages):
    """The steps of a trajectory as a prompt shows them: `## Step k`, the content, the observation."""
    steps = [f"## Step {step_count(messages[:i])}\n" * (m["role"] == "assistant") + m["content"].strip()
             for i, m in enumerate(messages) if i]
    return "\n".join(steps) or "(no step yet)"


def render_step(step):
    return f"{step['content'].strip()}\nObservation: {observed(step)}"


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
    content = parse_step(text) if step_count(before) else f"<first_thought>{parse_plan(text)}</first_thought>"
    try:
        parse_code(code_of(content))
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

    for node in (node for statement in parse_code(code_of(content)).body for node in ast.walk(statement)):
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


if __name__ == "__main__":
    import math_verify                                                    # noqa: F401 (missing: ends at once)
    logging.disable()                                                     # it warns that its limits are off
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for line in sys.stdin:
        signal.alarm(SECONDS)
        answer = None
        with contextlib.suppress(Exception):                              # what it cannot read stays open
            answer = same_formula(json.loads(line))
        signal.alarm(0)
        print(json.dumps(answer), flush=True)
