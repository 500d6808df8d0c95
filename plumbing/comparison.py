"""Do two answers that formulas.py has read say the same? True, False, or None where that stays open.

False is said of numbers only: what a list, an equation or an interval leaves unequal may be the same in
another form. Numbers are compared exactly here; what needs algebra goes to a process of algebra.py.
"""
import json
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from itertools import pairwise
from typing import Any

from plumbing.cli import InputError
from plumbing.formulas import (
    CONSTANTS, UNITS, Group, Quantity, Tree, Unreadable, as_value, is_constant, names_in, power, times)

SECONDS = 2.0                                      # for one comparison
PROCESSES = 4                                      # at most: a slow question then holds up no other thread
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---- the processes of algebra.py ----

class Workers:
    """A few processes: a question takes an idle one, or starts one if there is none."""

    def __init__(self) -> None:
        self.idle: list[subprocess.Popen] = []
        self.places = threading.BoundedSemaphore(PROCESSES)

    def ask(self, question: str, a: Any, b: Any, rounded: bool, seconds: float) -> bool | None:
        """Are two expressions, or two equations (left, right), the same? None too if it takes too long.

        Raises InputError if mpmath is not installed.
        """
        line = json.dumps([question, as_json(a), as_json(b), rounded, seconds])
        with self.places:
            process = self.idle_or_new()
            try:
                print(line, file=process.stdin, flush=True)
                reply = process.stdout.readline()
            except OSError:                                               # it died a moment ago
                reply = ""
            if reply:
                self.idle.append(process)
                return json.loads(reply)
            # It ended without a reply: by its alarm (its code is negative) or because its import failed.
            if process.wait() > 0:
                raise InputError("mpmath cannot be imported: pip install -r requirements.txt")
            return None

    def idle_or_new(self) -> subprocess.Popen:
        """A process that lives."""
        while self.idle:
            process = self.idle.pop()
            if process.poll() is None:
                return process
        return subprocess.Popen([sys.executable, "-m", "plumbing.algebra"], cwd=ROOT, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


WORKERS = Workers()


def as_json(tree: Any) -> Any:
    """A tree whose numbers are ["number", numerator, denominator], in hexadecimal digits."""
    if isinstance(tree, Fraction):
        return ["number", hex(tree.numerator), hex(tree.denominator)]
    if isinstance(tree, tuple):
        return [as_json(part) for part in tree]
    return tree


# ---- numbers and quantities ----

def same_number(a: Any, b: Any, rounded: bool) -> bool | None:
    """Compare two numbers: 4 and 5 -> False, 4.2 and 14/3 -> False, 4.67 and 14/3 -> None (it may be rounded).

    Both are Fractions, or both are mpmath's. `rounded`: one of them is a float, so 4.66666666667 -> True.
    """
    if a == b:
        return True
    if isinstance(a, Fraction) and a.denominator == b.denominator == 1:
        return False
    largest = max(abs(a), abs(b))
    gap = abs(a - b)
    if rounded and gap * 10**8 <= largest:
        return True
    if 0 in (a, b) and largest * 10**9 < 1:                               # it may be a 0 that a program computed
        return None
    if gap * 50 > largest:                                                # no rounding explains that much
        return False
    return None


def same_tree(a: Tree, b: Tree, rounded: bool) -> bool | None:
    """Do two trees say the same? `rounded`: a number in them is a float that a program printed."""
    try:
        return Comparison(rounded).same(a, b)
    except Unreadable:                                                    # as 1:0, which has no value
        return None


class Comparison:
    """One comparison of two trees, with its limit of time."""

    def __init__(self, rounded: bool) -> None:
        self.rounded = rounded                                            # is a number in it a printed float?
        self.end = time.monotonic() + SECONDS

    def same(self, a: Tree, b: Tree) -> bool | None:
        """Do two trees say the same?"""
        if a == b:
            return True
        kinds = [tree.kind if isinstance(tree, Group) else "" for tree in (a, b)]
        if kinds == ["=", "="]:
            return self.same_equation(a, b)
        if "=" in kinds:
            a, b = self.value_of(a), self.value_of(b)
            return None if a is None or b is None else self.same(a, b)
        if isinstance(a, Quantity) or isinstance(b, Quantity):
            return self.same_quantity(with_unit(a), with_unit(b))
        if kinds == ["", ""]:
            return self.same_value(a, b)
        if "" not in kinds:
            return self.same_group(a, b)
        ratio, number = (a, b) if kinds[0] else (b, a)
        if ratio.kind == ":" and len(ratio.items) == 2 and not is_time(ratio):
            return self.same_value(quotient(ratio), number) or None
        return None

    # -- numbers --

    def ask(self, question: str, a: Tree, b: Tree) -> bool | None:
        """What algebra.py says, in the time that is left."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            return None
        return WORKERS.ask(question, a, b, self.rounded, seconds)

    def same_value(self, a: Tree, b: Tree) -> bool | None:
        """Two expressions."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return same_number(a, b, self.rounded)
        if "oo" in names_in(a) | names_in(b):
            return None
        return self.ask("expression", a, b)

    def same_quantity(self, a: Quantity, b: Quantity) -> bool | None:
        """Two values with units, "" for none. A unit may be left out, and percent may be hundredths."""
        same = self.same(a.value, b.value)
        if a.unit == b.unit:
            return same
        if a.unit and b.unit:
            return None                                                   # 5 cm, 50 mm
        if "%" not in (a.unit, b.unit) or isinstance(a.value, Group) or isinstance(b.value, Group):
            counted = (a.unit or b.unit) not in UNITS.values()            # 5 apples are not 6, but 5 m are 500 cm
            return same if same or counted else None
        hundredths = [times(tree.value, Fraction(1, 100)) if tree.unit else tree.value for tree in (a, b)]
        same_hundredths = self.same(*hundredths)
        if same or same_hundredths:
            return True
        return False if same is same_hundredths is False else None

    # -- equations --

    def value_of(self, tree: Tree) -> Tree | None:
        """5 of x = 5, 293 of m + n = 256 + 37 = 293; other trees as they are; None if it is no single value."""
        if not isinstance(tree, Group) or tree.kind != "=":
            return tree
        label, *values = tree.items
        computed = [as_value(value) if is_span(value) else value for value in values]
        consistent = all(self.same(first, second) for first, second in pairwise(computed))
        names = names_in(values[-1])
        if not is_label(label) or not consistent or first_name(label) in names:
            return None
        if names and isinstance(label, tuple) and label[0] == "+":       # x + y = z
            return None
        return values[-1]

    def same_equation(self, a: Group, b: Group) -> bool | None:
        """x = 5 and x = 5.0, y = x/2 and 2y = x."""
        if a.items[0] == b.items[0] and is_label(a.items[0]):
            return self.same(self.value_of(a), self.value_of(b))
        sides = [*a.items, *b.items]
        if len(sides) > 4 or any(isinstance(side, (Group, Quantity)) for side in sides):
            return None
        return self.ask("equation", a.items, b.items)

    # -- groups --

    def same_group(self, a: Group, b: Group) -> bool | None:
        """Lists, sets, intervals, matrices, ratios, dates."""
        if a.kind in LISTS and b.kind in LISTS:
            return self.same_list(a, b)
        if {a.kind, b.kind} == {":", "time"}:
            clock, ratio = (a, b) if a.kind == "time" else (b, a)
            return ratio.items == clock.items[:len(ratio.items)] or None
        if a.kind != b.kind:
            return None
        if a.kind == "date":
            return (a.items[:3] == b.items[:3] and None in (a.items[3], b.items[3])) or None
        if a.kind == ":" and len(a.items) == len(b.items) == 2 and not is_time(a) and not is_time(b):
            return self.same_value(quotient(a), quotient(b)) or None
        if a.kind in {"time", "base", "-", ":"}:
            return None
        return self.same_items(a.items, b.items, any_order=a.kind == "∪")

    def same_list(self, a: Group, b: Group) -> bool | None:
        """Lists with or without brackets and names: x = 1, x = 2; a = 4, b = 5."""
        if "[]" in (a.kind, b.kind) and min(len(a.items), len(b.items)) < 3 and a.kind != b.kind:
            return None                                                   # [1, 2] may be an interval
        names_a, a = self.names_and_values(a)
        names_b, b = self.names_and_values(b)
        if names_a and names_b:
            if sorted(map(str, names_a)) != sorted(map(str, names_b)):
                return None
            other = dict(zip(names_b, b.items, strict=True))
            return self.same_items(a.items, tuple(other[name] for name in names_a), any_order=False)
        return self.same_items(a.items, b.items, any_order=has_no_order(a) or has_no_order(b))

    def names_and_values(self, group: Group) -> tuple[list[Tree], Group]:
        """(the different names of a list's items, the list without them); [] if there are none."""
        names = [item.items[0] if isinstance(item, Group) and item.kind == "=" else None for item in group.items]
        values = tuple(self.value_of(item) for item in group.items)
        if not any(names) or None in values:
            return [], group
        without = Group(group.kind, values)
        if len(set(names) - {None}) == 1:                                 # x = 1, x = 2 or x = 1, 2
            return [], Group("or", values)
        if None in names or len(set(names)) < len(names):
            return [], group
        return names, without

    def same_items(self, a: tuple, b: tuple, any_order: bool) -> bool | None:
        """True if the items are the same; otherwise they may still be, in another form: None."""
        if len(a) != len(b):
            return None
        if all(self.same(x, y) for x, y in zip(a, b, strict=True)):
            return True
        if not any_order:
            return None
        left = list(b)
        for x in a:
            found = next((y for y in left if self.same(x, y)), None)
            if found is None:
                return None
            left.remove(found)
        return True


def first_name(label: Tree) -> str:
    """f of f(x)"""
    if isinstance(label, str):
        return label
    return first_name(label.items[0] if isinstance(label, Group) else label[1])


def with_unit(tree: Tree) -> Quantity:
    """A tree as a quantity, whose unit is "" if it has none."""
    return tree if isinstance(tree, Quantity) else Quantity(tree, "")


def is_span(tree: Tree) -> bool:
    """Is a tree two numbers with a hyphen between them?"""
    return isinstance(tree, Group) and tree.kind == "-" and len(tree.items) == 2


def is_time(ratio: Group) -> bool:
    """Could a ratio be a time of day, as 7:32 could?"""
    minutes = ratio.items[-1]
    return isinstance(minutes, Fraction) and 10 <= minutes < 60


def quotient(ratio: Group) -> Tree:
    """The value of a:b."""
    return times(ratio.items[0], power(ratio.items[1], Fraction(-1)))


LISTS = {"list", "or", "{}", "[]"}


def has_no_order(group: Group) -> bool:
    """Is the order of a list without meaning?

    It is for sets, alternatives, points, and for numbers that look like roots: -2, 1. But 12, 7 may be a score
    or a pair of answers, and is not 7, 12.
    """
    if group.kind in {"or", "{}"}:
        return True
    for item in group.items:
        if isinstance(item, Group) and item.kind == "()":
            return True
        if is_constant(item) and (not isinstance(item, Fraction) or item < 0):
            return True
    return False


def is_label(tree: Tree) -> bool:
    """Is a tree a name for what is asked: x, x_1, f(x), (p, q), a:b, m + n? It holds no number."""
    if isinstance(tree, str):
        return tree not in CONSTANTS
    if isinstance(tree, Group):
        return tree.kind in {"()", ":"} and all(map(is_label, tree.items))
    if isinstance(tree, (Fraction, Quantity)):
        return False
    if tree[0] == "^":
        return tree[2] == -1 and is_label(tree[1])
    return all(map(is_label, tree[1:]))
