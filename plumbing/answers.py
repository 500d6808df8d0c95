"""Is an answer right? What can be decided without a model.

`rule` says True or False only where it read both answers to their last character: as a choice, as something
that the grammar of formulas.py reads, or as words. Everything else is None, and the caller asks a model.
"""
import re
import string
from collections import Counter
from typing import Any

from plumbing.comparison import same_tree
from plumbing.formulas import SCALE, TEXT, in_digits, read
from plumbing.records import as_list

# ---- what an answer says, without its wrapping ----

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What may stand between boxes that belong together: "\boxed{2} and \boxed{3}".
BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|and|or|, and|, or)[\s$]*")
# Emphasis: "**42**", "`42`", "```text\n42\n```".
EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3})(?=[^\s*])([^*]+)(?<=\S)\1(?![\w(*])|`{3}\w*\n([^`]*)`{3}|`([^`]*)`")
# What stands before the answer: "Hence the answer is 5", "#### 5".
BEFORE = re.compile(r"^.*\banswer\s*(?:is\b|:|：|=|(?:seems to|should|would|must) be\b)\s*:?|^#+ ", re.IGNORECASE | re.DOTALL)
MONEY = re.compile(r"\\?\$|[€£¥]")
# LaTeX's thin spaces, and the brackets around a formula: "1\,000", "\(5\)".
LAYOUT = re.compile(r"\\[!,;:]|(?<!\\)\\[()\[\]]")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every \\boxed{…} that is closed and in no other one."""
    found = []
    position = 0
    while opening := BOX.search(text, position):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[opening.end():], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                break
        if depth:                                                         # it never closes, nor does a later one
            break
        position = opening.end() + brace.end()
        found.append((opening.start(), position, text[opening.end():position - 1]))
    return found


def unwrapped(text: Any) -> str:
    r"""An answer without box, emphasis and what is said before: "The answer is $\boxed{5}$." -> "5"."""
    text = str(text).replace("\x08oxed", r"\boxed").replace("\x0crac", r"\frac")      # escapes Python ate
    while found := boxes(text):
        exact = [box for box in found if not box[2].lstrip().startswith(r"\approx")] or found
        contents = [exact[-1][2]]
        for (_, end, content), (start, _, _) in zip(exact[-2::-1], exact[:0:-1], strict=True):
            if not BETWEEN_BOXES.fullmatch(text[end:start]):
                break
            contents.insert(0, content)
        text = ", ".join(contents)
    text = EMPHASIS.sub(r"\2\3\4", text.replace(r"\boxed", ""))
    text = " ".join(BEFORE.sub("", text).split())
    if not text.endswith("..."):
        text = text.rstrip(". ")
    return text


def core(text: Any) -> str:
    r"""The same as plain text: "$5 \text{ cm}$" -> "5 cm"."""
    text = TEXT.sub(r" \1 ", unwrapped(text))
    text = LAYOUT.sub("", MONEY.sub("", text))
    return " ".join(text.split()).strip("` ").rstrip(". ")


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


# ---- choices and words ----

# A reference answer that is a choice: "B", "(B)".
CHOICE = re.compile(r"\(?[A-Z]\)?")
# The choice that a prediction makes: "B", "(B)", "B. Paris", "Option B", "The choice is: B", "B - Paris".
CHOSEN = re.compile(
    r"(?:.*\b(?i:option|choice|choose|pick|is):? )?[(\[]?([a-zA-Z])"
    r"(?![^A-Z]*[,&/dr]\s*\(?[A-Z]\b)"             # but not "A, B", "A and B", "A or B"
    r"(?:[]).:,]|$| [-–—] | because\b)")
# What a text can lose and still say the same: quotation marks, full stops, commas; none beside a digit.
MARKS = re.compile(r"(?<!\d)[.,:;'’‘\"“”?`](?!\d)|(?<=\d)[.,:;](?=\s|$)|[《》「」『』«»]|(?<=[^\W\d_])-(?=[^\W\d_])")
# A word after a number may be a unit, whose letters mean something: 5 mW, 5 MW.
UNIT = re.compile(r"(?<=\d )\w{1,3}\b|(?<=\d)[^\W\d]{1,3}\b")


def same_choice(prediction: str, answer: str) -> bool | None:
    """Does a prediction choose this letter? None if it chooses no letter or several."""
    chosen = CHOSEN.match(prediction)
    if chosen is None:
        return None
    return chosen[1].upper() == answer.strip("()")


def plain_words(text: str) -> str:
    """Words and numbers in small letters, without what says nothing: "The Saint-Denis." -> "saint denis"."""
    text = MARKS.sub(lambda mark: " " if mark[0] == "-" else "", in_digits(text))
    units = UNIT.findall(text)
    return normal_form(text, "arpo") + " ".join(["", *units])


def same_words(prediction: str, answer: str) -> bool | None:
    """True if two texts have the same words, False for yes and no or true and false."""
    predicted = plain_words(prediction)
    wanted = plain_words(answer)
    if predicted and predicted == wanted:
        return True
    if {predicted, wanted} in ({"yes", "no"}, {"true", "false"}):
        return False
    return None


# ---- the comparison ----

# A sentence before a quantity: "x is equal to " of "x is equal to 5".
SENTENCE = re.compile(r"^(?:(?:so|thus|hence|then|therefore),? )?(?:[a-z][a-z ]*? (?:is|are|equals)(?: equal to| a total of)?:? )?"
                      r"(?=\W?[\d.\\]|[a-z] = )", re.IGNORECASE | re.ASCII)
# A word that makes a sentence say something else than its number.
HEDGE = re.compile(r"\b(?:not?|never|more|less|fewer|least|most|about|around|approximately|times|twice|half|double|"
                   r"wrong|than|if|from)\b", re.IGNORECASE)


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
    one_is_scaled = bool(SCALE.search(prediction)) != bool(SCALE.search(answer))            # 1.5 million, 1.5
    one_exclaims = prediction.endswith("!") != answer.endswith("!")       # 42! may be no factorial
    if same is False and (one_is_scaled or one_exclaims):
        return None
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
