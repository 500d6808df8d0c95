"""The process in which expressions are compared: a JSON question a line in, true, false or null a line out.

Equal means equal in 100 digits at points drawn at random, of both signs: for polynomials a proof but for an
accident of probability 0. Only trees of formulas.py are evaluated, never a text.

It is a process of its own because nothing else stops a long power or factorial: an alarm without a handler
ends it, and the next question starts another one. It ends with its parent, whose death closes its input.
"""
import json
import random
import resource
import signal
import sys
from typing import Any

import mpmath as mp

from plumbing.comparison import same_number
from plumbing.formulas import LOGARITHM

BYTES = 1 << 30                                    # memory of the process
DIGITS = 150                                       # of a computation
EQUAL = mp.mpf(10)**-100                           # relative gap of two values that are the same
LARGEST = 10**40                                   # beyond, a sum would lose what it adds
POINTS = 10                                        # at which expressions with variables are compared
ENOUGH = 4                                         # of them at which both must have a value

FUNCTIONS = {
    "+": lambda a, b: a + b, "*": lambda a, b: a * b, "!": mp.factorial, "binom": mp.binomial, "abs": mp.fabs,
    "exp": mp.exp, "ln": mp.ln, "lg": mp.log10, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot,
    "sec": mp.sec, "csc": mp.csc, "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "sinh": mp.sinh,
    "cosh": mp.cosh, "tanh": mp.tanh}
Point = dict[str, Any]                             # a value for each name


class NoValue(Exception):
    """An expression has no value at this point, or one that 150 digits do not hold."""


def value(tree: Any, point: Point) -> Any:
    """The value of an expression where its variables have these; NoValue if it, or a part of it, has none."""
    if isinstance(tree, str):
        return point[tree]
    operator, *parts = tree
    if operator == "number":
        found = mp.mpf(int(parts[0], 16)) / int(parts[1], 16)
    else:
        values = [value(part, point) for part in parts]
        try:
            found = real_power(*values, parts[1]) if operator == "^" else FUNCTIONS[operator](*values)
        except (ArithmeticError, ValueError):                             # a pole
            raise NoValue from None
    size = abs(found)
    if not (size == 0 or 1 / mp.mpf(LARGEST) < size < LARGEST):
        raise NoValue
    return found


def real_power(base: Any, exponent: Any, written: Any) -> Any:
    """base ^ exponent, and for odd roots the real one: \\sqrt[3]{-8} is -2."""
    if written[0] == "number" and mp.im(base) == 0 and mp.re(base) < 0:
        numerator, denominator = (int(part, 16) for part in written[1:])
        if denominator % 2:
            return (-1)**(numerator % 2) * mp.power(-base, exponent)
    return mp.power(base, exponent)


def equal(a: Any, b: Any, rounded: bool) -> bool:
    """Are two values the same, or one of them the other as a float?"""
    return abs(a - b) <= max(abs(a), abs(b)) * (mp.mpf(10)**-8 if rounded else EQUAL)


def names_in(tree: Any) -> set[str]:
    """The variables of a tree."""
    if isinstance(tree, str):
        return {tree} - {"pi", "e", "i"}
    if tree[0] == "number":
        return set()
    return set().union(*map(names_in, tree[1:]))


def points(names: set[str]) -> list[Point]:
    """Values for the variables: all positive, all negative, and of mixed signs."""
    draw = random.Random(0)
    found = []
    for number in range(POINTS):
        point = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}
        for name in sorted(names):
            sign = draw.choice([1, -1])
            if number < 3 or name == LOGARITHM:
                sign = 1
            elif number < 6:
                sign = -1
            point[name] = sign * mp.mpf(draw.uniform(0.3, 3))
        found.append(point)
    return found


def same_expression(a: Any, b: Any, rounded: bool) -> bool | None:
    """Are two expressions equal? Without variables they may also be known to differ."""
    names = names_in(a) | names_in(b)
    if not names:
        [point] = points(names)[:1]
        first = value(a, point)
        second = value(b, point)
        if equal(first, second, rounded):
            return True
        if mp.im(first) or mp.im(second):
            return None
        return same_number(mp.re(first), mp.re(second), rounded)
    agreed = 0
    for point in points(names):
        try:
            first, second = value(a, point), value(b, point)
        except NoValue:
            continue
        if not equal(first, second, rounded):
            return None
        agreed += 1
    return True if agreed >= ENOUGH else None


def same_equation(a: list, b: list, rounded: bool) -> bool | None:
    """Is left - right of one equation a constant multiple of that of the other? [left, right] each."""
    ratios = []
    for point in points(names_in(["", *a, *b])):
        try:
            left, right = value(a[0], point), value(a[1], point)
            other_left, other_right = value(b[0], point), value(b[1], point)
        except NoValue:
            continue
        if equal(left, right, False) or equal(other_left, other_right, False):
            return None                                                   # true whatever its variables are
        ratios.append((left - right) / (other_left - other_right))
    if len(ratios) >= ENOUGH and all(equal(ratio, ratios[0], rounded) for ratio in ratios):
        return True
    return None


def main() -> None:
    """Answer the questions on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    mp.mp.dps = DIGITS
    questions = {"expression": same_expression, "equation": same_equation}
    for line in sys.stdin:
        question, a, b, rounded, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            decision = questions[question](a, b, rounded)
        except (NoValue, MemoryError, RecursionError):
            decision = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(decision), flush=True)


if __name__ == "__main__":
    main()
