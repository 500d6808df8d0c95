"""Do two answers that grammar.py has read say the same? True, False, or None where that stays open.

False is said of numbers only: lists, equations and intervals that look different may be the same in another
form.
"""
import time
from fractions import Fraction
from itertools import pairwise

from plumbing.formulas import grammar
from plumbing.formulas.algebra import Algebra, same_number
from plumbing.formulas.grammar import Group, Quantity, Tree, is_constant, names_in

SECONDS = 2.0                                      # for one comparison


# ---- what trees are ----

LISTS = {"list", "or", "{}", "[]"}


def kind_of(tree: Tree) -> str:
    """The kind of a Group, "" for what is none."""
    return tree.kind if isinstance(tree, Group) else ""


def is_label(tree: Tree) -> bool:
    """Is a tree a name for what is asked: x, x_1, f(x), (p, q), a:b, m + n? It holds no number."""
    if isinstance(tree, str):
        return tree not in grammar.CONSTANTS
    if isinstance(tree, Group):
        return tree.kind in {"()", ":"} and all(map(is_label, tree.items))
    if isinstance(tree, (Fraction, Quantity)):
        return False
    if tree[0] == "^":
        return tree[2] == -1 and is_label(tree[1])
    return all(map(is_label, tree[1:]))


def first_name(label: Tree) -> str:
    """f of f(x)"""
    if isinstance(label, str):
        return label.partition("(")[0]
    return first_name(label.items[0] if isinstance(label, Group) else label[1])


def is_time(ratio: Group) -> bool:
    """Could a ratio be a time of day, as 7:32 could?"""
    return isinstance(ratio.items[-1], Fraction) and 10 <= ratio.items[-1] < 60


def has_no_order(kind: str, items: tuple) -> bool:
    """Is the order of a list without meaning?

    It is for sets, alternatives, points, and for constants that look like roots: -2, 1. But 12, 7 may be a
    score or the answers to two questions, and is not 7, 12.
    """
    if kind in {"or", "{}", "∪"} or any(kind_of(item) == "()" for item in items):
        return True
    numbers = [item for item in items if isinstance(item, Fraction) and item >= 0]
    return all(map(is_constant, items)) and len(numbers) < len(items)


# ---- the comparison ----

class Comparison:
    """One comparison, with its limit of time."""

    def __init__(self, rounded: bool) -> None:
        self.rounded = rounded                                            # is a number in it a printed float?
        self.end = time.monotonic() + SECONDS

    def same(self, a: Tree | None, b: Tree | None) -> bool | None:
        """Do two trees say the same? None is a tree that could not be had; None too when time is up."""
        if a is None or b is None or time.monotonic() > self.end:
            return None
        if a == b:
            return True
        kinds = kind_of(a), kind_of(b)
        if kinds == ("=", "="):
            return self.same_equation(a, b)
        if "=" in kinds or ("≈" in kinds and kinds[0] != kinds[1]):
            return self.same(self.value_of(a), self.value_of(b))
        if isinstance(a, Quantity) or isinstance(b, Quantity):
            return self.same_quantity(a, b)
        if kinds == ("", ""):
            return self.same_value(a, b)
        if "" in kinds:
            return self.same_ratio_and_number(a, b) if kinds[0] else self.same_ratio_and_number(b, a)
        if set(kinds) <= LISTS or set(kinds) <= {"or", "∪"}:               # x < -2 or x > 2
            return self.same_list(a, b)
        if set(kinds) == {":", "time"}:                                   # 12:30 PM is 12:30
            return a.items[:2] == b.items[:2] or None
        if kinds[0] != kinds[1] or kinds[0] in {"time", "date", "base", "-"}:
            return None
        if kinds[0] == ":":
            return self.same_ratio(a, b)
        return self.same_items(a.items, b.items, any_order=False)

    def same_value(self, a: Tree, b: Tree) -> bool | None:
        """Two expressions."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return same_number(a, b, self.rounded)
        if "oo" in names_in(a) | names_in(b):
            return None
        return Algebra(self.rounded, self.end).same_expression(a, b)

    def same_ratio_and_number(self, ratio: Group, number: Tree) -> bool | None:
        """3:2 is 3/2, but 3:1 is not 3."""
        whole = isinstance(number, Fraction) and number.denominator == 1
        if ratio.kind != ":" or len(ratio.items) != 2 or is_time(ratio) or whole:
            return None
        return self.same_value(grammar.divided(*ratio.items), number) or None

    def same_ratio(self, a: Group, b: Group) -> bool | None:
        """4:6 is 2:3, unless they may be times of day."""
        if len(a.items) != 2 or len(b.items) != 2 or is_time(a) or is_time(b):
            return None
        return self.same_value(grammar.divided(*a.items), grammar.divided(*b.items)) or None

    def same_quantity(self, a: Tree, b: Tree) -> bool | None:
        """Two values of which one has a unit. The other may leave it out, and percent may be hundredths."""
        unit_a, unit_b = getattr(a, "unit", ""), getattr(b, "unit", "")
        value_a, value_b = getattr(a, "value", a), getattr(b, "value", b)
        if unit_a and unit_b and unit_a != unit_b:
            return None                                                   # 5 cm, 50 mm
        same = self.same(value_a, value_b)
        if unit_a == unit_b:
            return same
        if "%" in (unit_a, unit_b) and not kind_of(value_a) and not kind_of(value_b):
            hundredth = Fraction(1, 100)
            hundredths_a = grammar.times(value_a, hundredth) if unit_a else value_a
            hundredths_b = grammar.times(value_b, hundredth) if unit_b else value_b
            same_hundredths = self.same(hundredths_a, hundredths_b)
            if same is False and same_hundredths is False:
                return False
            return same or same_hundredths or None
        is_measured = (unit_a or unit_b) in grammar.UNITS.values()       # 5 m may be 500, in cm
        return same or (None if is_measured else same)

    # -- equations --

    def value_of(self, tree: Tree) -> Tree | None:
        """5 of x = 5, 293 of m + n = 256 + 37 = 293; other trees as they are; None for other equations."""
        if kind_of(tree) == "≈":                                          # \sqrt{2} ≈ 1.41, x ≈ 5
            exact, rounded = tree.items
            if is_label(exact):
                return rounded
            return None if self.same(exact, rounded) is False else exact
        if kind_of(tree) != "=":
            return tree
        label, *values = tree.items
        names = names_in(values[-1])
        if not is_label(label) or first_name(label) in {name.partition("(")[0] for name in names}:
            return None
        if names and isinstance(label, tuple) and label[0] == "+":        # x + y = z
            return None
        computed = [grammar.as_value(value) if kind_of(value) == "-" else value for value in values]
        if len(values) > 1 and not all(self.same(x, y) for x, y in pairwise(computed)):
            return None
        return values[-1]

    def same_equation(self, a: Group, b: Group) -> bool | None:
        """x = 5 and x = 5.0, y = x/2 and 2y = x."""
        if a.items[0] == b.items[0] and is_label(a.items[0]):
            return self.same(self.value_of(a), self.value_of(b))
        sides = [*a.items, *b.items]
        if len(sides) > 4 or any(isinstance(side, (Group, Quantity)) for side in sides):
            return None
        return Algebra(self.rounded, self.end).same_equation(a.items, b.items)

    # -- lists --

    def same_list(self, a: Group, b: Group) -> bool | None:
        """Lists with or without brackets and names: x = 1, x = 2; a = 4, b = 5."""
        if a.kind != b.kind and "[]" in (a.kind, b.kind) and len(a.items) < 3:
            return None                                                   # [1, 2] may be an interval
        names_a, values_a = self.names_and_values(a)
        names_b, values_b = self.names_and_values(b)
        if names_a and names_b and {*names_a} != {*names_b}:
            return None
        if len({*names_a}) == len(names_b) > 1:                           # b = 5, a = 4
            by_name = dict(zip(names_b, values_b, strict=True))
            return self.same_items(values_a, tuple(by_name[name] for name in names_a), any_order=False)
        if a.kind == b.kind == "[]":
            return self.same_items(values_a, values_b, any_order=False)
        one_name = 1 in (len({*names_a}), len({*names_b}))                # x = 1, x = 2 or x = 1, 2
        any_order = one_name or has_no_order(a.kind, values_a) or has_no_order(b.kind, values_b)
        return self.same_items(values_a, values_b, any_order)

    def names_and_values(self, group: Group) -> tuple[list[Tree], tuple]:
        """(what a list's items are called, what they are): a = 4, b = 5 -> [a, b], (4, 5)"""
        names = [item.items[0] for item in group.items if kind_of(item) in {"=", "≈"}]
        values = tuple(map(self.value_of, group.items))
        if None in values or 1 < len(names) < len(values):
            return [], group.items
        return names, values

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
            found = [y for y in left if self.same(x, y)]
            if not found:
                return None
            left.remove(found[0])
        return True


def same_tree(a: Tree, b: Tree, rounded: bool) -> bool | None:
    """Do two trees say the same? `rounded`: a number in them is a float that a program printed."""
    try:
        return Comparison(rounded).same(a, b)
    except grammar.Unreadable:                                           # as 1:0, which has no value
        return None
