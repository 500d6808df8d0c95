"""The process in which math-verify works: a JSON list of two texts per line in, a JSON value per line out.

true; false for two numbers that differ by more than a rounding; null if undecided. It is a process
of its own because the library's time limits are signals. Signals work neither in threads nor against a long
integer power. Here an alarm without a handler ends the process, and the next question starts another one.

answers.py starts it as a program, so it imports nothing of the project.
"""
import json
import logging
import re
import resource
import signal
import sys
from typing import Any

from math_verify import parse, verify

SECONDS = 10                                       # for one comparison
BYTES = 4 << 30                                    # memory of the process

SYMBOLS = str.maketrans({"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "·": r"\cdot ", "÷": "/",
                         "−": "-", "²": "^2", "³": "^3", "½": r"\frac12"})
# Python's and plain text's spellings, and LaTeX's for them, in the order in which they are replaced.
TO_LATEX = [
    (r"\*\*", "^"),                                                       # x**2
    (r"(?<=\d)e([+-]?\d+)", r"*10^{\1}"),                                 # 6.02e23
    (r"\^\s*(-\w+)", r"^{\1}"),                                           # 10^-3
    (r"(?<=\d)(?:\*[iIj]|j)\b", "i"),                                     # 2*I, 2j
    (r"\boo\b|∞|(?<![\\a-z])inf(?:ty|inity)?\b", r"\\infty "),            # oo, inf, infinity
    (r"(?<![\\a-zA-Z])(pi|sin|cos|tan|log|ln|exp)(?![a-zA-Z])", r"\\\1"),     # sin(pi/6)
    (r"√\s*(\d+|[a-z]\b)", r"\\sqrt{\1}"),                                # √2
    (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),                                 # √(x+1)
    (r"(?<=[)\]])\s*(?:∪|U|or)\s*(?=[(\[])", r"\\cup "),                  # (-1,0) U (0,1)
    (r"\\varnothing|∅|\\\{\s*\\\}", r"\\emptyset "),                      # \{\}
    (r"(?<![\d/.^])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),      # 2 1/3
]
# A matrix as Python writes it: [[1, 2], [3, 4]], Matrix([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]]).
MATRIX = re.compile(r"(?:(?:Matrix|(?:np\.)?array)\()?\[(\[[^][]*\](?:, *\[[^][]*\])*)\]\)?")
ROW = re.compile(r"\[([^][]*)\]")


def matrix_to_latex(match: re.Match) -> str:
    r"""[[1, 2], [3, 4]] -> \begin{pmatrix}1& 2\\3& 4\end{pmatrix}"""
    rows = [row.replace(",", "&") for row in ROW.findall(match[1])]
    return r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}"


def to_latex(text: str) -> str:
    """A formula in Python's, Unicode's or plain spelling as LaTeX."""
    text = text.translate(SYMBOLS)
    for pattern, latex in TO_LATEX:
        text = re.sub(pattern, latex, text)
    return MATRIX.sub(matrix_to_latex, text)


def opening(latex: str) -> str:
    r"""The first sign of a formula: "(" of "\left(1,2\right)", "{" of "\{1,2\}"."""
    return re.sub(r"\\left|\\", "", latex)[:1]


def same_formula(prediction: str, answer: str) -> bool | None:
    """What math-verify says of two texts."""
    prediction = to_latex(prediction)
    answer = to_latex(answer)
    if {opening(prediction), opening(answer)} == {"(", "{"} and "," in prediction:
        return None                                                       # a point is no set
    predicted = parse(f"${prediction}$", parsing_timeout=None)
    wanted = parse(f"${answer}$", parsing_timeout=None)
    if verify(wanted, predicted, timeout_seconds=None) or verify(predicted, wanted, timeout_seconds=None):
        return True
    return same_number(predicted[0], wanted[0])


def same_number(predicted: Any, wanted: Any) -> bool | None:
    """Compare two SymPy expressions that math-verify does not find equal.

    4 and 5 -> False, 4.2 and 14/3 -> False, 4.67 and 14/3 -> None, 4.66666666667 and 14/3 -> True.
    """
    if not predicted.is_number or not wanted.is_number:
        return None
    gap = abs(predicted - wanted)
    if predicted.is_integer and wanted.is_integer:
        return False
    if gap > abs(wanted) / 50:
        return False
    if gap < abs(wanted) / 10**8:
        return True
    return None                                                           # one may be the other, rounded


def main() -> None:
    """Answer the questions on standard input until it ends."""
    logging.disable()                                                     # it warns that its limits are off
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for line in sys.stdin:
        signal.alarm(SECONDS)
        try:
            decision = same_formula(*json.loads(line))
        except Exception:                # whatever parser and algebra raise: what they cannot read stays open
            decision = None
        signal.alarm(0)
        print(json.dumps(decision), flush=True)


if __name__ == "__main__":
    main()
