"""The process in which math-verify works: a JSON list of two texts per line in, a JSON value per line out.

true; false for two numbers that differ by more than a rounding; null where neither is sure. A process of its own,
because the library's time limits are signals, which work neither in threads nor against a long integer power:
here an alarm without a handler ends the process, and the next question starts another.
"""
import contextlib
import json
import logging
import re
import resource
import signal
import sys

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


def matrix(match):
    """[[1, 2], [3, 4]] as LaTeX."""
    rows = re.findall(r"\[([^][]*)\]", match[1])
    return r"\begin{pmatrix}" + r"\\".join(row.replace(",", "&") for row in rows) + r"\end{pmatrix}"


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
