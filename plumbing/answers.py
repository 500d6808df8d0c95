"""Is an answer right? What can be said without a model; what needs formulas is asked of formulas.py."""
import ast
import json
import os
import re
import string
import subprocess
import sys
import threading
from collections import Counter

from plumbing.cli import InputError
from plumbing.records import as_list

UNREADABLE = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError)


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
WORKERS, LOCK = [], threading.Lock()
PARSING = threading.Lock()


def parse_code(text, mode="exec"):
    """`ast.parse`, one thread at a time: in CPython 3.11 several can raise SystemError (gh-106905)."""
    with PARSING:
        return ast.parse(text, mode=mode)


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
            WORKERS[:] = [subprocess.Popen([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "formulas.py")], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)]
        print(json.dumps(sides), file=WORKERS[-1].stdin, flush=True)
        reply = WORKERS[-1].stdout.readline()
        if not reply and WORKERS[-1].wait() > 0:
            raise InputError("math-verify cannot be imported: pip install -r requirements.txt")
        return json.loads(reply or "null")
