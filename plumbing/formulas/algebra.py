"""Are two numbers, expressions or equations the same? The values of expressions are compared at a few points.

Expressions are called the same if they agree in 100 digits at points drawn at random, of both signs: for
polynomials a proof but for an accident of probability 0. No value on the way may exceed 10^40, and no number
has more than 150 digits, so that each step takes at most milliseconds, whatever a text asks to be computed.
"""
import random
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from mpmath.ctx_mp import MPContext

from plumbing.formulas.grammar import CONSTANTS, LOGARITHM, Tree, names_in

DIGITS = 150                                       # of a computation
EQUAL = 10**100                                    # values are the same if they differ by less than this part
ROUNDED = 10**8                                    # the same where one is a float that a program printed
LARGEST = 10**40                                   # beyond, a sum would lose what it adds
POINTS = 10                                        # at which expressions with variables are compared
ENOUGH = 4                                         # of them at which both must have a value


class NoValue(Exception):
    """An expression has no value at a point, or one that 150 digits do not hold, or time is up."""


def same_number(a: Any, b: Any, rounded: bool) -> bool | None:
    """Compare two numbers: 4 and 5 -> False, 4.2 and 14/3 -> False, 4.67 and 14/3 -> None: it may be rounded.

    Both are Fractions, or both are mpmath's. `rounded`: one of them is a float, so 4.66666666667 -> True.
    """
    if a == b:
        return True
    if isinstance(a, Fraction) and a.denominator == b.denominator == 1:
        return False
    largest = max(abs(a), abs(b))
    gap = abs(a - b)
    if rounded and gap * ROUNDED <= largest:
        return True
    if 0 in (a, b) and largest * 10**9 < 1:                               # a 0 as floats compute it
        return None
    return False if gap * 50 > largest else None                          # more than rounding


class Algebra:
    """Compares expressions until the time `end`, in numbers of its own, so that threads do not meet."""

    def __init__(self, rounded: bool, end: float) -> None:
        self.rounded = rounded                                            # is a number a printed float?
        self.end = end
        self.mp = mp = MPContext()
        mp.dps = DIGITS
        self.functions = {
            "!": mp.factorial, "binom": mp.binomial, "abs": mp.fabs, "exp": mp.exp, "ln": mp.ln,
            "lg": mp.log10, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec,
            "csc": mp.csc, "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "sinh": mp.sinh,
            "cosh": mp.cosh, "tanh": mp.tanh}

    def value(self, tree: Tree, point: dict[str, Any]) -> Any:
        """An expression's value where its variables have these; NoValue if it or a part of it has none."""
        if time.monotonic() > self.end:
            raise NoValue
        try:
            found = self.computed(tree, point)
        except (ArithmeticError, ValueError):                             # a pole
            raise NoValue from None
        size = abs(found)
        if not (size == 0 or 1 < size * LARGEST < LARGEST**2):            # this is true of nan, too
            raise NoValue
        return found

    def computed(self, tree: Tree, point: dict[str, Any]) -> Any:
        """The same without its limits."""
        if isinstance(tree, Fraction):
            return self.mp.mpf(tree.numerator) / tree.denominator
        if isinstance(tree, str):
            return point[tree]
        operator, *parts = tree
        values = [self.value(part, point) for part in parts]
        if operator == "+":
            return values[0] + values[1]
        if operator == "*":
            return values[0] * values[1]
        if operator != "^":
            return self.functions[operator](*values)
        base, exponent = values
        odd_root = isinstance(parts[1], Fraction) and parts[1].denominator % 2 == 1
        if odd_root and self.mp.im(base) == 0 and self.mp.re(base) < 0:   # \sqrt[3]{-8} is -2
            return (-1)**(parts[1].numerator % 2) * self.mp.power(-base, exponent)
        return self.mp.power(base, exponent)

    def points(self, names: set[str]) -> Iterator[dict[str, Any]]:
        """Values for the variables: all positive, all negative, and of mixed signs."""
        mp = self.mp
        draw = random.Random(0)
        for number in range(POINTS):
            point = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}
            for name in sorted(names):
                sign = draw.choice([1, -1])
                if number < 3 or name == LOGARITHM:
                    sign = 1
                elif number < 6:
                    sign = -1
                point[name] = sign * mp.mpf(draw.uniform(0.3, 3))
            yield point

    def equal(self, a: Any, b: Any) -> bool:
        """Are two values the same, or one of them the other as a float?"""
        return abs(a - b) * (ROUNDED if self.rounded else EQUAL) <= max(abs(a), abs(b))

    def same_expression(self, a: Tree, b: Tree) -> bool | None:
        """Are two expressions equal? Without variables they may also be known to differ."""
        names = (names_in(a) | names_in(b)) - CONSTANTS
        agreed = 0
        for point in self.points(names):
            try:
                first, second = self.value(a, point), self.value(b, point)
            except NoValue:
                continue
            if self.equal(first, second):
                agreed += 1
                continue
            if names or self.mp.im(first) or self.mp.im(second):
                return None
            return same_number(first, second, self.rounded)
        return True if agreed >= ENOUGH else None

    def same_equation(self, a: tuple, b: tuple) -> bool | None:
        """Is left - right of one equation a constant multiple of that of the other? (left, right) each."""
        ratios = []
        for point in self.points(set().union(*map(names_in, a + b)) - CONSTANTS):
            try:
                (left, right), (other_left, other_right) = ([self.value(side, point) for side in sides]
                                                            for sides in (a, b))
            except NoValue:
                continue
            if self.equal(left, right) or self.equal(other_left, other_right):
                return None                                               # true whatever its variables are
            ratios.append((left - right) / (other_left - other_right))
        if len(ratios) >= ENOUGH and all(self.equal(ratio, ratios[0]) for ratio in ratios):
            return True
        return None
