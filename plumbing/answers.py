"""Is an answer right? What can be decided without a model.

`rule` says True or False only where it has read both answers to their last character: as a choice, as
something the grammar of formulas/ reads, or as words. Everything else is None, and the caller asks a model.

formulas/ has numerals.py (numbers in words, dates), notation.py (spellings, tokens), grammar.py (each line of
it reads a kind of answer that public sets have), comparison.py (lists, units, equations) and algebra.py
(equality of expressions). They earn their length: a library that reads the beginning of a text, or what is
left of it after substitutions, calls wrong answers right.
"""
import re
import string
from collections import Counter
from typing import Any

from plumbing.formulas.comparison import same_tree
from plumbing.formulas.grammar import read
from plumbing.formulas.notation import FULL_WIDTH, TEXT, without_dollars, without_fonts
from plumbing.formulas.numerals import SCALE, in_digits
from plumbing.records import as_list

# ---- what an answer says, without its wrapping ----

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may stand between boxes that belong together: "\(\boxed{2}\) and \(\boxed{3}\)".
BETWEEN_BOXES = re.compile(r"(?:[\s$,;}]|\\[()]|\\q?quad|\\text\s*\{|\b(?:and|or)\b)*")
# What makes a box an addition to the one before: "\boxed{\sqrt{2}} \approx \boxed{1.41}".
APPROXIMATELY = (r"\approx", "≈")
# Emphasis: "**42**", "`42`", "```text\n42\n```".
EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3})(?=[^\s*])([^*]+)(?<=\S)\1(?![\w(*])"
                      r"|`{3}\w*\n([^`]*)`{3}|`([^`]*)`")
# What stands before the answer: "Hence the answer is 5", "Answer $5$", "答案是5", "#### 5".
BEFORE = re.compile(
    r"^(?:.*(?<!wrong )(?<!incorrect )\banswer\s*"
    r"(?:is\b|[:=]|(?=[$\\\n])|(?:seems to|should|would|must) be\b)\s*:?"
    r"|.*\b(?:ans|solution|result):|.*答案[是为:]+|#+ )(?=.*\w)", re.IGNORECASE | re.DOTALL)
# Money, LaTeX's thin spaces, and the brackets around a formula: "\$5", "1\,000", "\(5\)".
LAYOUT = re.compile(r"\\?\$|[€£¥]|\\[!,;:]|(?<!\\)\\[()\[\]]")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every \\boxed{…} that is in no other one; [] if one of them never closes."""
    found = []
    end = 0
    while opening := BOX.search(text, end):
        depth = 1
        for brace in BRACE.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                break
        if depth > 0:
            return []
        end = brace.end()
        found.append((opening.start(), end, text[opening.end():end - 1]))
    return found


def unwrapped(text: Any) -> str:
    r"""An answer without its box, emphasis and what is said before it: "The answer is $\boxed{5}$." -> "5".

    Of several boxes the last counts, with those that it continues: "\boxed{2} and \boxed{3}" -> "2, 3".
    """
    text = str(text).replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")         # escapes Python ate
    text = text.translate(FULL_WIDTH)
    conclusion, hope, _ = text.rpartition(". I hope it is correct")       # what Minerva's prompt asks for
    if hope:
        text = conclusion[max(0, conclusion.rfind("The final answer is")):]
    while found := boxes(text):
        exact = [(start, end, content) for start, end, content in found
                 if not content.lstrip().startswith(APPROXIMATELY)
                 and not text[:start].rstrip(" $").endswith(APPROXIMATELY)] or found
        contents: list[str] = []
        start_of_next = None
        for start, end, content in reversed(exact):
            if start_of_next is not None and not BETWEEN_BOXES.fullmatch(text, end, start_of_next):
                break
            if content not in contents:
                contents.insert(0, content)
            start_of_next = start
        text = ", ".join(contents)
    text = EMPHASIS.sub(r"\2\3\4", text.replace(r"\boxed", ""))
    return without_stop(" ".join(BEFORE.sub("", text).split()))


def without_stop(text: str) -> str:
    """A text without its full stop and a stray backslash; "1, 2, ..." has no full stop."""
    text = text.strip("`* " if text.startswith("*") else "` ").rstrip("\\ ")
    return text if text.endswith("..") else text.removesuffix(".").rstrip()


def core(text: Any) -> str:
    r"""What an answer says, as plain text: "The answer is $\boxed{5 \text{ cm}}$." -> "5 cm"."""
    text = LAYOUT.sub("", TEXT.sub(r" \1 ", unwrapped(text)))
    return without_stop(" ".join(text.split()))


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


def exact_match(prediction: str | None, answers: str | list[str]) -> float:
    """1.0 if the prediction is one of the answers, in SQuAD's normal form of `core`, else 0.0."""
    return qa_score(core(prediction or ""), [core(answer) for answer in as_list(answers)], "squad")[1]


def f1(prediction: str | None, answers: str | list[str]) -> float:
    """The best token F1 over the answers, in SQuAD's normal form of `core`."""
    return qa_score(core(prediction or ""), [core(answer) for answer in as_list(answers)], "squad")[0]


# ---- choices and words ----

# A reference answer that is a choice: "B", "(B)".
CHOICE = re.compile(r"\(?[A-Z]\)?")
# The choice that a prediction makes: "B", "(B)", "B. Paris", "Option B", "So, B", "B - Paris", "B is right".
CHOSEN = re.compile(r"(.*\b(?i:option|choice|choose|pick|is|so|thus|hence|therefore)[:,]? )?[(\[]?([a-zA-Z])"
                    r"(?:[]).:,]|$| [-–—] | because\b| is (?:the )?(?:correct|right|answer)\b)")
# A letter that could be a choice: the D of "B, or D", but not the A of "A bird".
ANY_CHOICE = re.compile(r"(?<!\bnot )(?<![\w'’])(?:[B-HJ-Z]\b|[a-eA-Z](?=[]).:,;/]|$| (?:[-–—]|or|and) ))")
# A word that turns a sentence round.
DENIAL = re.compile(r"\b(?:not?|never|cannot|none|neither|nor|nothing|wrong|incorrect|false|impossible"
                    r"|unlikely|except)\b|n['’]t\b", re.IGNORECASE)
# Signs that always mean something; texts with one of them are the same if they are equal.
FORMULA = re.compile(r"[\\^=+*/<>|{}\[\]_]")
# What words can lose: quotation marks, and full stops and commas behind them.
QUOTE = re.compile(r"(?<!\d)['’‘\"“”`](?!\d)|[《》「」『』«»]")
STOP = re.compile(r"(?<=[^\W\d])(?:\.(?!\d)|[,:;?](?= |$))|(?<=\d)[.,:;](?= [^\W\d]|$)")
# The A of "Vitamin A".
NO_ARTICLE = re.compile(r" a$", re.IGNORECASE)
# The hyphen of "Saint-Denis".
HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
# A short word after a number may be a unit, whose capitals mean something: 5 mW, 5 MW.
UNIT = re.compile(r"(?<=\d)(?: \w{1,3}|[^\W\d]{1,3})\b")


def same_choice(prediction: str, answer: str) -> bool | None:
    """Does a prediction choose this letter? None if it chooses no letter or may choose several."""
    chosen = CHOSEN.match(prediction)
    if chosen is None or DENIAL.search(chosen[1] or ""):
        return None
    letter = chosen[2].upper()
    if {*"".join(ANY_CHOICE.findall(prediction)).upper()} - {letter}:
        return None
    return letter == answer.strip("()")


def plain_words(text: str) -> tuple[str, list[str]]:
    """(words and numbers in small letters without what says nothing, what may be units)"""
    text = HYPHEN.sub(" ", STOP.sub("", QUOTE.sub("", in_digits(text))))
    return normal_form(NO_ARTICLE.sub(" _a", text), "arpo"), UNIT.findall(text)


def same_words(prediction: str, answer: str) -> bool | None:
    """True if two texts have the same words, False for yes and no or true and false."""
    prediction = without_fonts(without_dollars(prediction))
    answer = without_fonts(without_dollars(answer))
    if FORMULA.search(prediction + answer):
        return True if prediction == answer else None
    predicted = plain_words(prediction)
    wanted = plain_words(answer)
    if predicted == wanted and predicted[0]:
        return True
    if {predicted[0], wanted[0]} in ({"yes", "no"}, {"true", "false"}):
        return False
    return None


# ---- the comparison ----

# A sentence before a quantity: "x is equal to " of "x is equal to 5".
SENTENCE = re.compile(
    r"(?:(?:so|thus|hence|then|therefore),? )?"
    r"(?:[a-z][a-z $]*? (?:is|are|equals)(?: equal to| a total of)?:? )?"
    r"(?=\W{0,3}[\d.\\]|[a-z] = )", re.IGNORECASE | re.ASCII)
# A word that makes a sentence say something else than its number.
HEDGE = re.compile(DENIAL.pattern + r"|\b(?:more|less|fewer|least|most|about|around|approximately|times|twice"
                   r"|half|double|than|if|from)\b", re.IGNORECASE)


def without_sentence(text: str) -> str:
    """A quantity without the sentence before it."""
    sentence = SENTENCE.match(text)
    if sentence is None or HEDGE.search(sentence[0]):
        return text
    return text[sentence.end():]


def rule(prediction: Any, answer: Any) -> bool | None:
    """True or False where a rule decides whether two answers say the same, else None."""
    if not core(prediction):
        return False
    if CHOICE.fullmatch(core(answer)):
        return same_choice(core(prediction), core(answer))
    prediction = unwrapped(prediction)
    answer = unwrapped(answer)
    predicted = read(without_sentence(prediction))
    wanted = read(without_sentence(answer))
    if predicted.tokens and predicted.tokens == wanted.tokens:
        return True
    if predicted.tree is None or wanted.tree is None:
        return same_words(prediction, answer)
    same = same_tree(predicted.tree, wanted.tree, predicted.rounded or wanted.rounded)
    if same is False and bool(SCALE.search(prediction)) != bool(SCALE.search(answer)):
        return None                                                       # 1.5 may count millions
    if same is False and prediction.endswith("!") != answer.endswith("!"):
        return None                                                       # 42! may be no factorial
    return same


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
