"""Is an answer right? What can be decided without a model.

`rule` compares two answers in small steps: choices, words, numbers in digits, units. Formulas go to
math-verify, which runs in a process of its own (formulas.py). Where nothing decides, the result is None and
the caller asks a model.
"""
import json
import os
import re
import string
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

from plumbing.cli import InputError
from plumbing.records import as_list

# ---- what an answer says, without its wrapping ----

# The last \boxed{…}, with up to two levels of braces inside: "So \boxed{\frac{1}{2}}." -> "\frac{1}{2}".
BOXED = re.compile(r"^.*\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}.*$", re.DOTALL)
# Words inside a formula: "\text{ cm}" -> "cm".
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# What says nothing and is removed.
WRAPPING = re.compile(
    r"^.*\banswer\s*(?:is|:|=)\s*"         # "Hence the answer is 5"
    r"|\\?\$|[€£¥]"                        # "$5$", "\$5", "€5"
    r"|\\[!,;:]"                           # LaTeX's thin spaces: "1\,000"
    r"|(?<!\\)\\[()\[\]]",                 # "\(5\)", "\[5\]"
    re.IGNORECASE | re.DOTALL)


def core(text: Any) -> str:
    r"""What an answer says: "The answer is $\boxed{5 \text{ cm}}$." -> "5 cm"."""
    text = str(text)
    text = text.replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")         # escapes Python ate
    text = BOXED.sub(r"\1", text)
    text = TEXT.sub(r" \1 ", text)
    text = WRAPPING.sub("", text)
    text = " ".join(text.split())
    return text.lstrip("*` ").rstrip(".*` ")


# ---- the measures of question answering ----

ARTICLE = re.compile(r"\b(a|an|the)\b")
WHOLE_ANSWERS = {"yes", "no", "noanswer"}             # these have no part in common with a longer answer


def normal_form(text: str, variant: str) -> str:
    """Lower case, no articles, single spaces; for squad no punctuation either."""
    text = str(text).lower()
    if variant == "squad":
        text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(ARTICLE.sub(" ", text).split())


def compare(said: str, answer: str, variant: str) -> tuple[float, float]:
    """(token F1, exact match) of two texts in their normal form."""
    common = (Counter(said.split()) & Counter(answer.split())).total()
    if variant == "arpo" and common == 0:                  # two empty texts do not match either
        return 0.0, 0.0
    if variant == "squad" and said != answer and (said in WHOLE_ANSWERS or answer in WHOLE_ANSWERS):
        return 0.0, 0.0
    f1 = 0.0
    if common > 0:
        f1 = 2 * common / (len(said.split()) + len(answer.split()))
    return f1, float(said == answer)


def qa_score(prediction: str, answers: str | list[str], variant: str = "arpo") -> tuple[float, float]:
    """(token F1, exact match), each the best over the answers, as the published scripts compute them.

    arpo: lower case, no articles, punctuation stays; without a common token no match (WebThinker and ARPO).
    squad: no punctuation either; "yes", "no" and "noanswer" match only themselves (HotpotQA and SQuAD).
    """
    said = normal_form(prediction, variant)
    compared = [compare(said, normal_form(answer, variant), variant) for answer in as_list(answers)]
    return max((f1 for f1, _ in compared), default=0.0), max((em for _, em in compared), default=0.0)


def normalize_answer(text: str | None) -> str:
    """SQuAD's normal form of `core`."""
    return normal_form(core(text or ""), "squad")


def exact_match(prediction: str | None, answers: str | list[str]) -> float:
    """1.0 if the prediction is one of the answers, in SQuAD's normal form of `core`, else 0.0."""
    return qa_score(core(prediction or ""), [core(answer) for answer in as_list(answers)], "squad")[1]


def f1(prediction: str | None, answers: str | list[str]) -> float:
    """The best token F1 over the answers, in SQuAD's normal form of `core`."""
    return qa_score(core(prediction or ""), [core(answer) for answer in as_list(answers)], "squad")[0]


# ---- numbers in digits ----

NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
           "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
           "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20}
POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}

# A number as a word: "three".
NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(NUMBERS)})\b", re.IGNORECASE)
# A power of ten after digits: " million" of "1.5 million".
POWER_WORD = re.compile(rf"(?<=\d) ({'|'.join(POWERS)})\b", re.IGNORECASE)
# Thousands that stand apart: "1 000 000".
SPACED_NUMBER = re.compile(r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\w/.])")
# A time of day with full stops: "p.m.".
AM_PM = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
# An area or a volume in words: "square cm" of "5 square cm".
SQUARE = re.compile(r"(?<=\d )(?:square|sq\.?) (\w+)", re.IGNORECASE)
CUBIC = re.compile(r"(?<=\d )(?:cubic|cu\.?) (\w+)", re.IGNORECASE)
# A Roman number.
ROMAN = re.compile(
    r"(?<![\w\\])(?:"
    # One letter after a word, as in "World War I", but not after these words: "x and I", "log X", "is V".
    r"(?<=[a-z] )(?<!(?:and|sin|cos|tan|log) )(?<!(?:or|is|of|by|as|in) )[IVX]|"
    # Two letters or more: "XIV".
    r"(?=[IVXLCDM]{2})M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})"
    r")(?!\w)"
    # The whole answer in small letters: "iii".
    r"|^[ivx]{2,}$")


def word_in_digits(match: re.Match) -> str:
    """three -> 3"""
    return str(NUMBERS[match[0].lower()])


def power_in_digits(match: re.Match) -> str:
    """ million -> *10^6"""
    return f"*10^{POWERS[match[1].lower()]}"


def without_spaces(match: re.Match) -> str:
    """1 000 -> 1000"""
    return match[0].replace(" ", "")


def roman_in_digits(match: re.Match) -> str:
    """XIV -> 14: a letter before a greater one is subtracted."""
    values = [ROMAN_DIGITS[letter] for letter in match[0].upper()]
    total = 0
    for value, following in zip(values, [*values[1:], 0], strict=True):
        if value < following:
            total -= value
        else:
            total += value
    return str(total)


def in_digits(text: str) -> str:
    """Numbers and units in one spelling.

    "three" -> "3", "1.5 million" -> "1.5*10^6", "Henry VIII" -> "Henry 8", "1 000" -> "1000",
    "9 p.m." -> "9 pm", "5 square cm" -> "5 cm^2".
    """
    text = NUMBER_WORD.sub(word_in_digits, text)
    text = POWER_WORD.sub(power_in_digits, text)
    text = SPACED_NUMBER.sub(without_spaces, text)
    text = AM_PM.sub(r"\1m", text)
    text = SQUARE.sub(r"\1^2", text)
    text = CUBIC.sub(r"\1^3", text)
    return ROMAN.sub(roman_in_digits, text)


# ---- words and units ----

# What normalize_answer would lose, so that equal normal forms prove nothing.
FORMULA = re.compile(
    r"[\\^=+*/<>|{}()\[\]_]"                       # operators and brackets: "x+1", "(1,2)"
    r"|\d[.,:]\d"                                  # decimals and times: "2.5", "12:30"
    r"|\d!"                                        # factorials: "5!"
    r"|(?<![a-zA-Z]{2})-|-(?![a-zA-Z]{2})")        # a sign, "-5", but not the hyphen of "well-known"
# A hyphen between two words: "well-known".
HYPHEN = re.compile(r"(?<=\w\w)-(?=\w\w)")
# A word or a unit: "apples", "cm", and one letter after a number ("5 m"); not the name of a function.
WORD = re.compile(
    r"(?<![\\{a-z])(?!(?:sqrt|pi|oo|inf|or|and|sin|cos|tan|log|ln|exp|Matrix)(?![a-z]))[a-z]{2,}"
    r"|(?<=\d )[a-z]\b",
    re.IGNORECASE)
# The unit at the end of a quantity: " cm^2" of "12 cm^2", " km/h" of "60 km/h", " apples" of "5 apples".
UNIT = re.compile(
    r"(?<=[\d})a-z])\s+"
    r"(?!(?:or|and|to|half|dozen|hundred)\b)"      # begins no unit: " or x" of "1 or x"
    r"(?:[a-z]{2,}|[mgshlnjwvk])"                  # its first word; one letter only if it is a unit
    r"(?:[a-z\s./{}²³-]|\^\{?-?\d)*$",             # further words and powers
    re.IGNORECASE)
# The power in a unit: "^2" of "cm^2".
UNIT_POWER = re.compile(r"\^\{?-?\d")
# Two quantities in one answer: "10 cm by 5 cm".
TWO_QUANTITIES = re.compile(r"\d\s+(?!(?:or|and|sqrt)\b)[a-z]{2,}.*\d", re.IGNORECASE)
# A word that changes what a number says: "not 5", "at least 3".
HEDGE = re.compile(r"(?<!\\)\b(?:not?|more|less|least|most|about|around|approximately|times)\b",
                   re.IGNORECASE)
# A sentence before a quantity: "x is equal to " of "x is equal to 5".
SENTENCE = re.compile(r"^[\w\s]*\b(?:is|are|equals)(?: equal to| a total of)?:? (?=\W?[\d.\\])",
                      re.IGNORECASE)

# Units with several names, in the singular (which here is the word without its last s).
SAME_UNIT = {"millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm",
             "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
             "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi",
             "gram": "g", "kilogram": "kg", "pound": "lb",
             "liter": "l", "litre": "l", "milliliter": "ml", "millilitre": "ml",
             "second": "sec", "s": "sec", "minute": "min", "hour": "hr", "h": "hr"}


def words_then_numbers(text: str) -> list[str]:
    """The words of a text in their order, then its numbers: "3 May 1837", "May 3, 1837" -> may, 3, 1837."""
    words = normalize_answer(HYPHEN.sub(" ", text)).split()
    return sorted(words, key=str.isdigit)                                 # keeps the order among equals


def words_and_units(text: str) -> list[str]:
    """Words in the singular, units by one name, then the powers of the unit: "12 centimeters^2" -> cm, ^2."""
    found = []
    for word in WORD.findall(text.lower()):
        singular = word.rstrip("s")
        found.append(SAME_UNIT.get(singular or word, singular))           # "s", seconds, has no singular
    unit = UNIT.search(text)
    if unit:
        found += UNIT_POWER.findall(unit[0])
    return found


def bare(text: str) -> str:
    """A quantity without the sentence before it and the unit after it: "x is equal to 5 cm" -> "5"."""
    return UNIT.sub("", SENTENCE.sub("", text))


# ---- math-verify ----

class FormulaWorker:
    """The process of formulas.py: the first question starts it, the next one after its death restarts it."""

    PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "formulas.py")

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()                                      # one question at a time

    def ask(self, prediction: str, answer: str) -> bool | None:
        """math-verify's opinion of two formulas: None where it is not sure or takes too long.

        Raises InputError if math-verify is not installed.
        """
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen([sys.executable, self.PROGRAM], stdin=subprocess.PIPE,
                                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            print(json.dumps([prediction, answer]), file=self.process.stdin, flush=True)
            reply = self.process.stdout.readline()
            if reply:
                return json.loads(reply)
            # It ended without a reply: by its alarm (its code is negative) or because its import failed.
            if self.process.wait() > 0:
                raise InputError("math-verify cannot be imported: pip install -r requirements.txt")
            return None


FORMULA_WORKER = FormulaWorker()


# ---- the comparison ----

# A reference answer that is a choice: "B", "(B)".
CHOICE = re.compile(r"\(?[A-Z]\)?")
# The choice that a prediction makes: "B", "(B)", "B. Paris", "Option B", "The choice is: B".
CHOSEN = re.compile(
    r"(?:.*\b(?i:option|choice|choose|is):? )?[(\[]?([a-zA-Z])"
    r"(?![^A-Z]*[,&/dr]\s*\(?[A-Z]\b)"             # but not "A, B", "A and B", "A or B"
    r"(?:[]).:,]|$)")
# A number in a base: "1011_2", "1011_{2}".
IN_A_BASE = re.compile(r"\d_\{?\d")
LONGEST = 500                                      # characters of two answers together; longer ones are prose


def same_choice(prediction: str, answer: str) -> bool | None:
    """Does a prediction choose this letter? None if it chooses no letter or several."""
    chosen = CHOSEN.match(prediction)
    if chosen is None:
        return None
    return chosen[1].upper() == answer.strip("()")


def same_in_base(prediction: str, answer: str) -> bool | None:
    """True if two numbers in a base are the same digit by digit, else None."""
    if re.sub(r"[{}\s]", "", prediction) == re.sub(r"[{}\s]", "", answer):
        return True
    return None


def same_words(prediction: str, answer: str) -> bool | None:
    """True if two texts without formulas have the same words, False for yes and no or true and false."""
    predicted = words_then_numbers(prediction)
    wanted = words_then_numbers(answer)
    if predicted and predicted == wanted and not FORMULA.search(prediction + " " + answer):
        return True
    if {*predicted, *wanted} in ({"yes", "no"}, {"true", "false"}):
        return False
    return None


def same_quantity(prediction: str, answer: str) -> bool | None:
    """math-verify's opinion of two formulas or quantities; None if the words around them may matter."""
    predicted_units = words_and_units(prediction)
    wanted_units = words_and_units(answer)
    if predicted_units and wanted_units and predicted_units != wanted_units:
        return None
    if HEDGE.search(prediction + " " + answer):
        return None
    if len(prediction + answer) > LONGEST:
        return None
    if predicted_units or wanted_units:                                   # 5 cm is 5
        prediction = bare(prediction)
        answer = bare(answer)
    if WORD.search(prediction) and WORD.search(answer):                   # still words, not formulas
        return None
    if TWO_QUANTITIES.search(prediction) or TWO_QUANTITIES.search(answer):
        return None
    return FORMULA_WORKER.ask(prediction, answer)


def rule(prediction: Any, answer: Any) -> bool | None:
    """True or False where a rule decides whether two answers say the same, else None."""
    prediction = core(prediction)
    answer = core(answer)
    if not prediction:
        return False
    if prediction.lower() == answer.lower():
        return True
    if CHOICE.fullmatch(answer):
        return same_choice(prediction, answer)

    prediction = in_digits(prediction)
    answer = in_digits(answer)
    if prediction.lower() == answer.lower():
        return True
    if IN_A_BASE.search(prediction + " " + answer):
        return same_in_base(prediction, answer)

    by_words = same_words(prediction, answer)
    if by_words is not None:
        return by_words
    return same_quantity(prediction, answer)


def check_by_rule(prediction: str | None, answers: str | list[str]) -> bool | None:
    """True if the prediction is one of the answers, False if it is none, None where rules cannot decide."""
    if prediction is None:
        return False
    decisions = [rule(prediction, answer) for answer in as_list(answers)]
    if True in decisions:
        return True
    if None in decisions:
        return None
    return False
