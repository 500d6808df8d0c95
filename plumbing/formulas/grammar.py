r"""The grammar of answers: `read` turns a text into a tree, or says that it cannot.

Every character is read, or nothing is: a text with anything left over has no tree, and not its first number.

    answer    item, item or item
    item      side = side, side < side, side ≈ side        equation, inequality, x \in S
    side      quantity : quantity, set \cup set            ratio, union
    quantity  $ sum unit, number - number unit             money, 5 cm, 10%; a score or a span
    sum       product + product - product
    product   factor * factor / factor, factor factor
    factor    primary ^ factor, primary !
    primary   number, 2 1/3, name, f(x), \frac{}{}, \sqrt{}, \sin x, |x|, (…), [… , …), {…}, matrix

A tree is made of
    Fraction              every number that can be computed exactly: 1/2 and 0.5 are one
    str                   a name: "x", "x_1", "pi", "e", "i", "oo"
    (operator, tree …)    ("+", a, b), ("*", a, b), ("^", a, b), ("sin", a), …
    Quantity              a value and its unit
    Group                 what belongs together and is no number: a list, a set, an interval, an equation
"""
import math
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from plumbing.formulas.notation import (
    Token,
    is_digits,
    is_number,
    is_printed_float,
    letters_are_units,
    number_value,
    one_spelling,
    tokens_of,
    without_fonts,
)
from plumbing.formulas.numerals import date_in, time_in

Tree = Any
LONGEST = 500                                      # characters; longer answers are prose
DEEPEST = 25                                       # brackets in brackets
MOST_BITS = 1 << 15                                # of a number that is computed here: 2006! has 19,000


class Unreadable(Exception):
    """The grammar does not read this text to its last character."""


@dataclass(frozen=True)
class Quantity:
    """5 cm: the value 5 of the unit "cm"; 60 km/h has the unit "h^-1 km"."""
    value: Tree
    unit: str


@dataclass(frozen=True)
class Group:
    """Trees that belong together. Its kind is

    the brackets "()", "[]", "[)", "(]", "{}"; "list" without brackets, "or" where the order says nothing;
    "matrix" of "row"; a sign between its items: "=", "≈", "<", "≤", "≠", ":", "-" (a score or a
    span), "∪"; "base", "date" or "time".
    """
    kind: str
    items: tuple


# ---- computing what is exact ----

MINUS_ONE = Fraction(-1)


def as_value(tree: Tree) -> Tree:
    """A tree to compute with: a span such as 5-1 is a difference here, other groups have no value."""
    if isinstance(tree, Group) and tree.kind == "-" and len(tree.items) == 2:
        return tree.items[0] - tree.items[1]
    if isinstance(tree, (Group, Quantity)):
        raise Unreadable
    return tree


def plus(a: Tree, b: Tree) -> Tree:
    """a + b"""
    a, b = as_value(a), as_value(b)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return not_too_long(a + b)
    return ("+", a, b)


def times(a: Tree, b: Tree) -> Tree:
    """a b"""
    a, b = as_value(a), as_value(b)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return not_too_long(a * b)
    if a == 1:
        return b
    return a if b == 1 else ("*", a, b)


def power(a: Tree, b: Tree) -> Tree:
    """a ^ b"""
    a, b = as_value(a), as_value(b)
    if b == 1:
        return a
    if not isinstance(a, Fraction) or not isinstance(b, Fraction) or b.denominator > 1:
        return ("^", a, b)
    if a == 0 and b <= 0:
        raise Unreadable
    if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b) > MOST_BITS:
        return ("^", a, b)
    return a**int(b)


def divided(a: Tree, b: Tree) -> Tree:
    """a / b"""
    return times(a, power(b, MINUS_ONE))


def factorial(a: Tree) -> Tree:
    """a!"""
    a = as_value(a)
    if isinstance(a, Fraction) and a.denominator == 1 and 0 <= a <= 2500:
        return Fraction(math.factorial(int(a)))
    return ("!", a)


def not_too_long(value: Fraction) -> Fraction:
    """A number, unless it is too long to go on with."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise Unreadable
    return value


# ---- names and units ----

CONSTANTS = {"pi", "e", "i", "oo"}
MINUS_INFINITY = ("*", MINUS_ONE, "oo")
UNKNOWN_FUNCTIONS = {*"fghFGH"}                     # f(x) is no product
FUNCTIONS = {*"sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln lg exp abs".split()}
LOGARITHM = "base of log"                          # the variable that stands for a base nobody named
GREEK = {*("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi "
           "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi "
           "Psi Omega ell hbar").split()}
# Short words that are no product of letters; in capitals they may be one: NO/BO = 2.
WORDS = {*("an and are as at be by do for go he if in is it me my no not of on one or our out so the to too "
           "up us we yes nan").split()}
# Units: the one name of each, then its other names; a plural s is understood.
UNITS = {}
for _line in """mm millimeter millimetre|cm centimeter centimetre|m meter metre 米|km kilometer kilometre
in inch inches|ft foot feet|yd yard|mi mile|nm nanometer|mg milligram|g gram|kg kilogram|lb pound £|oz ounce
ton tonne|ml mL milliliter millilitre|l L liter litre|gal gallon|cup|pint|quart|ms millisecond|s sec second
min minute|h hr hour|day 天|week|month|year|mph|kph|unit 个|point|dollar $ \\$ USD|cent|€ euro EUR
¥ yuan yen RMB 元|° deg degree|°C celsius|°F fahrenheit|rad radian|% percent pct percentage
N newton|J joule|kJ|W watt|kW|MW|mW|kWh|V volt|mV|kV|Hz hertz|kHz|MHz|GHz|Pa pascal|kPa|K kelvin|mol mole
bit|byte|KB|MB|GB|people person 人|child children|man men|woman women""".replace("\n", "|").split("|"):
    for _name in _line.split():
        UNITS[_name] = _line.split()[0]
        if len(_name) > 1 and _name.isalpha():
            UNITS[_name + "s"] = _line.split()[0]
CURRENCIES = {r"\$", "€", "£", "¥"}
SQUARE_OR_CUBIC = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# Words in s that are not things that are counted.
NO_THINGS = FUNCTIONS | {*("times tens dozens hundreds thousands millions billions halves thirds quarters "
                           "fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths "
                           "does always perhaps across "
                           "afterwards besides towards upwards downwards onwards sometimes").split()}


def unit_name(word: str) -> str | None:
    """ "meters" -> "m", "apples" -> "apple"; None for a word that names no unit and no things."""
    known = UNITS.get(word) or (UNITS.get(word.lower()) if len(word) > 3 else None)
    if known or len(word) < 4 or not (word.isascii() and word.islower()) or word in NO_THINGS:
        return known
    return word[:-1] if word.endswith("s") and word[-2] not in "sui" else None


def names_in(tree: Tree) -> set[str]:
    """The names in a tree, also those of constants."""
    if isinstance(tree, str):
        return {tree}
    if isinstance(tree, Fraction):
        return set()
    if isinstance(tree, Quantity):
        return names_in(tree.value)
    parts = tree.items if isinstance(tree, Group) else tree[1:]
    return set().union(*map(names_in, parts))


def is_constant(tree: Tree) -> bool:
    """Is a tree a number, if perhaps one that is not computed yet?"""
    return not isinstance(tree, (Group, Quantity)) and names_in(tree) <= CONSTANTS


# ---- the grammar ----

SEPARATORS = {",", ";", "and", "or"}
RELATIONS = {"=", "<", ">", "≤", "≥", "≠", "∈", "≈"}
ADDING = {"+", "-", "±", "∓"}
OPERATORS = {"+", "-", "±", "∓", "*", "/", "^", "="}
CLOSERS = {"(": {")", "]"}, "[": {")", "]"}, "{": {"}"}, r"\{": {r"\}"}}


class Reader:
    """Reads tokens one after the other, by one method for each line of the grammar."""

    def __init__(self, tokens: list[Token], short_units: bool, sign: int) -> None:
        self.tokens = [*tokens, Token("")]                                # "" is the end
        self.position = 0
        self.short_units = short_units                                    # may m, s and cm be units?
        self.sign = sign                                                  # of ±, which is read twice
        self.depth = 0                                                    # of brackets
        self.in_bars = False                                              # is the next | the end of |x|?
        self.in_function = False                                          # there ° is a number

    @property
    def next(self) -> str:
        """The text of the next token."""
        return self.tokens[self.position].text

    def take(self) -> str:
        """The next token's text, which then is read."""
        self.position += 1
        if self.position >= len(self.tokens):
            raise Unreadable
        return self.tokens[self.position - 1].text

    def accept(self, *texts: str) -> bool:
        """Read the next token if it is one of these."""
        found = self.next in texts
        self.position += found
        return found

    def expect(self, *texts: str) -> None:
        """Read one of these tokens, or give up."""
        if not self.accept(*texts):
            raise Unreadable

    def look(self, ahead: int) -> Token:
        """The token so far behind the next one, or before it."""
        index = self.position + ahead
        return self.tokens[index] if 0 <= index < len(self.tokens) else Token("")

    def deeper(self) -> None:
        """One bracket further in."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable

    # -- answer, item, side --

    def answer(self) -> Tree:
        """All that there is."""
        self.accept("=")                                                  # "= 5"
        items, kind = self.sequence()
        if self.next:
            raise Unreadable
        return items[0] if len(items) == 1 else Group(kind, items)

    def sequence(self) -> tuple[tuple, str]:
        """(items, "or" if they are alternatives, else "list")"""
        items = [self.item()]
        kind = "list"
        while self.next in SEPARATORS:
            separator = self.take()
            if separator in {",", ";"} and self.next in {"and", "or"}:
                separator = self.take()
            if separator == "or":
                kind = "or"
            items.append(self.item())
        return tuple(items), kind

    def item(self) -> Tree:
        """An equation, an inequality or a side alone."""
        sides = [self.words_before_equals() or self.side()]
        relations = []
        while self.next in RELATIONS:
            relations.append(self.take())
            sides.append(self.side())
        return related(sides, relations) if relations else sides[0]

    def words_before_equals(self) -> str | None:
        """ "Area" of "Area = 5"."""
        words = []
        while self.look(len(words)).text.isascii() and self.look(len(words)).text.isalpha():
            words.append(self.look(len(words)).text)
        if self.look(len(words)).text != "=" or max(map(len, words), default=0) < 4:
            return None
        self.position += len(words)
        return " ".join(words)

    def side(self) -> Tree:
        """Sets put together, a ratio, or a quantity alone."""
        items = [self.quantity()]
        signs = (":",)
        if isinstance(items[0], Group):
            signs = ("∪", "U")
        while self.accept(*signs):
            items.append(self.quantity())
        return items[0] if len(items) == 1 else Group(signs[0], tuple(items))

    # -- quantities --

    def quantity(self) -> Tree:
        """A value with its unit, if it has one."""
        value = self.span()
        unit = ""
        if value is None:
            sign = Fraction(1)
            if self.next == "-" and self.look(1).text in CURRENCIES:
                sign = Fraction(self.take() + "1")
            if self.next in CURRENCIES:
                unit = UNITS[self.take()]
            value = self.sum()
            if unit:
                value = times(sign, value)
        if not unit and self.begins_unit() and (is_constant(value) or getattr(value, "kind", "") == "-"):
            unit = self.unit()
        return Quantity(value, unit) if unit else value

    def span(self) -> Group | None:
        """Numbers with hyphens and nothing to compute with around them: a score 5-1, a span 1939-1945."""
        numbers = []
        ahead = 0
        while is_number(self.look(ahead).text):
            numbers.append(number_value(self.look(ahead).text))
            ahead += 1
            if self.look(ahead).text not in {"-", "to"} or not is_number(self.look(ahead + 1).text):
                break
            ahead += 1
        after = self.look(ahead).text
        ends = after in {"", ")", "]", r"\}", "}", ":", "∪", "&"} | SEPARATORS | RELATIONS
        if len(numbers) < 2 or not (ends or self.begins_unit(ahead)):
            return None
        self.position += ahead
        return Group("-", tuple(numbers))

    def begins_unit(self, ahead: int = 0) -> bool:
        """Is the next token, or a later one, the name of a unit or of things that are counted?"""
        token = self.look(ahead)
        word = token.text
        if word in {"%", "°", *CURRENCIES, *SQUARE_OR_CUBIC}:
            return True
        if not word.isalpha() or unit_name(word) is None:
            return False
        if len(word) == 1 and word.isascii():                             # the m of 5m may be a variable
            return self.short_units and token.apart and is_number(self.look(ahead - 1).text)
        return len(word) > 2 or not word.isascii() or (self.short_units and (token.apart or word != "mg"))

    def unit(self) -> str:
        """ "square cm" and "cm^2" -> "cm^2", "miles per hour" -> "h^-1 mi"."""
        exponents: dict[str, int] = {}
        sign = 1
        more = True
        while more:
            word = self.take()
            size = SQUARE_OR_CUBIC.get(word, 1)
            if word in SQUARE_OR_CUBIC:
                self.accept(".")
                word = self.take()
            name = unit_name(word)
            if word == "°" and self.next in {"C", "F"}:
                name = "°" + self.take()
            if name is None:
                raise Unreadable
            if len(word) < 4:
                self.accept(".")                                          # ft.
            if self.accept("^"):
                exponent = self.exponent()
                if not isinstance(exponent, Fraction) or exponent.denominator > 1:
                    raise Unreadable
                size *= int(exponent)
            exponents[name] = exponents.get(name, 0) + sign * size
            more = self.next.isalpha() and (self.next in SQUARE_OR_CUBIC or unit_name(self.next) is not None)
            if self.accept("/", "per"):
                sign = -1
                more = True
        return " ".join(name if size == 1 else f"{name}^{size}" for name, size in sorted(exponents.items()))

    # -- sum, product, factor --

    def sum(self) -> Tree:
        """Products that are added."""
        total = None
        while total is None or self.next in ADDING:
            sign = 1
            if self.next in ADDING:
                sign = {"+": 1, "-": -1, "±": self.sign, "∓": -self.sign}[self.take()]
            product = self.product()
            if sign < 0:
                product = times(MINUS_ONE, product)
            total = product if total is None else plus(total, product)
        return total

    def product(self) -> Tree:
        """Factors that are multiplied or divided."""
        result = self.factor()
        while True:
            apart = self.look(0).apart
            if self.accept("*"):
                result = times(result, self.signed_factor())
            elif self.accept("/"):
                result = divided(result, self.signed_factor())
                if self.begins_factor() and not self.look(0).apart:
                    raise Unreadable                                      # 1/2x: is x below the line?
            elif not isinstance(result, Group) and self.begins_factor():
                factor = self.factor()
                if apart and isinstance(result, Fraction) and isinstance(factor, Fraction):
                    raise Unreadable                                      # 5 (5)
                result = times(result, factor)
            else:
                return result

    def begins_factor(self) -> bool:
        """Does a further factor follow without a sign, as in 2x?"""
        token = self.next
        if is_number(token):
            if self.look(1).text == "^" and not is_number(self.look(-1).text):
                return True                                               # (n + 1)2^n
            raise Unreadable                                              # two numbers side by side
        if token == "|":
            return not self.in_bars
        if token in SEPARATORS or token in {"to", "per", "U", r"\end"} or self.begins_unit():
            return False
        return token in {"(", "[", "{"} or token.removeprefix("\\").isalpha()

    def signed_factor(self) -> Tree:
        """A factor that may have a sign: 3 * -2."""
        if self.accept("-"):
            return times(MINUS_ONE, self.factor())
        return self.factor()

    def factor(self) -> Tree:
        """A primary with what stands behind it: a power, "!", "°" inside a function."""
        result = self.primary()
        while True:
            if self.accept("^"):
                result = power(result, self.exponent())
            elif self.accept("!"):
                if self.next == "!":
                    raise Unreadable
                result = factorial(result)
            elif self.in_function and self.accept("°"):
                result = times(result, ("*", Fraction(1, 180), "pi"))
            else:
                return result

    def exponent(self) -> Tree:
        """What stands behind "^": a sign and one factor."""
        self.deeper()
        sign = Fraction(1)
        if self.next in {"+", "-"}:
            sign = Fraction(self.take() + "1")
        result = self.primary()
        if self.accept("^"):
            result = power(result, self.exponent())
        self.depth -= 1
        return times(sign, result)

    # -- primary --

    def primary(self) -> Tree:
        """The smallest thing with a value."""
        token = self.take()
        if is_number(token):
            return self.number(token)
        if token in CLOSERS:
            return self.bracketed(token)
        if token == "|":
            return self.between_bars()
        if token == "∅":
            return Group("{}", ())
        if token == "∞":
            return "oo"
        if token == "ℝ":
            return Group("()", (MINUS_INFINITY, "oo"))
        if token == r"\sqrt":
            return self.root()
        if token == r"\frac":
            return divided(self.argument(), self.argument())
        if token == r"\binom":
            return ("binom", as_value(self.argument()), as_value(self.argument()))
        if token == r"\begin":
            return self.matrix()
        name = token.removeprefix("\\")
        if name == "log":
            return self.logarithm()
        if name in FUNCTIONS:
            return self.function(name)
        return self.name(token)

    def number(self, token: str) -> Tree:
        """A number, a number in a base, or a whole number with a fraction behind it."""
        if self.accept("_"):
            base = self.raw()
            if not (is_digits(token) and is_digits(base)):
                raise Unreadable
            return Group("base", (token.lstrip("0"), base))
        value = number_value(token)
        part = None
        if is_digits(token) and self.next == r"\frac":
            part = self.primary()
            if not isinstance(part, Fraction):
                return times(value, part)
        elif is_digits(token) and is_digits(self.next) and self.look(0).apart and self.look(1).text == "/":
            numerator, _, denominator = self.take(), self.take(), self.take()
            if not is_digits(denominator):
                raise Unreadable
            part = divided(Fraction(numerator), Fraction(denominator))
        if part is None:
            return value
        if not 0 < part < 1:
            raise Unreadable
        return value + part

    def bracketed(self, opener: str) -> Tree:
        """What brackets hold: one value, or several things as a Group."""
        self.deeper()
        outside, self.in_bars = self.in_bars, False
        items, kind = (), "list"
        defined = opener == r"\{" and self.next.isalpha() and self.look(1).text == "|"
        if defined:                                                       # \{x | x > 2\} is x > 2
            self.position += 2
        if opener in {"(", "["} or self.next not in CLOSERS[opener]:
            items, kind = self.sequence()
        brackets = (opener + self.next).replace("\\", "")
        self.expect(*CLOSERS[opener])
        self.in_bars = outside
        self.depth -= 1
        if len(items) == 1 and (defined or opener != r"\{") and brackets in {"()", "[]", "{}"}:
            return items[0]
        if kind == "or" or (brackets in {"(]", "[)"} and len(items) != 2):
            raise Unreadable
        rows = [item.items for item in items if isinstance(item, Group) and item.kind == "[]"]
        if brackets == "[]" and len(rows) == len(items) and len({len(row) for row in rows}) == 1:
            return Group("matrix", tuple(Group("row", row) for row in rows))
        return Group(brackets, items)

    def between_bars(self) -> Tree:
        """x of |x|"""
        if self.in_bars:
            raise Unreadable
        self.deeper()
        self.in_bars = True
        value = as_value(self.sum())
        self.in_bars = False
        self.depth -= 1
        self.expect("|")
        return abs(value) if isinstance(value, Fraction) else ("abs", value)

    def argument(self) -> Tree:
        r"""An argument of \frac: a group in braces, one name, or one digit of several."""
        token = self.look(0)
        if self.accept("{"):
            self.deeper()
            value = self.sum()
            self.depth -= 1
            self.expect("}")
            return value
        if len(token.text) == 2 and is_digits(token.text) and self.look(-1).text == r"\frac":
            self.tokens[self.position] = Token(token.text[1])             # \frac12
            return Fraction(token.text[0])
        if is_digits(token.text) and len(token.text) > 1:
            raise Unreadable
        return self.primary()

    def root(self) -> Tree:
        r"""\sqrt{2}, \sqrt[3]{8}, sqrt(2), √2"""
        degree = Fraction(2)
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        token = self.take()
        if is_number(token):
            value = number_value(token)
        else:
            self.position -= 1
            value = self.primary()
        return power(value, divided(Fraction(1), degree))

    def logarithm(self) -> Tree:
        r"""\log_2 8; a \log without a base has one that is not known: \log 100 may be 2 or 4.6."""
        base: Tree = LOGARITHM
        if self.accept("_"):
            plain = is_digits(self.next) and self.look(1).text == "("     # log_10(100)
            base = Fraction(self.take()) if plain else as_value(self.argument())
        return divided(self.function("ln"), ("ln", base))

    def function(self, name: str) -> Tree:
        r"""\sin x, \sin^2 x, \sin(x): the argument is a bracket, or factors up to the next sign."""
        exponent: Tree = Fraction(1)
        if self.accept("^"):
            exponent = self.exponent()
            if exponent == -1:
                name, exponent = "arc" + name, Fraction(1)                # \sin^{-1} x
                if name not in FUNCTIONS:
                    raise Unreadable
        outside, self.in_function = self.in_function, True
        self.deeper()
        if self.next in {"(", "{", "[", "|"}:
            argument = self.primary()
        else:
            argument = self.factor()
            while self.begins_factor() and self.next not in {"(", "{", "[", "|"}:
                if self.next.removeprefix("\\") in FUNCTIONS | {"log"}:
                    break
                argument = times(argument, self.factor())
            if self.next == "/":
                raise Unreadable                                          # sin x/2
        self.in_function = outside
        self.depth -= 1
        return power((name, as_value(argument)), exponent)

    def name(self, token: str) -> Tree:
        """A letter with its index, or several letters that are multiplied."""
        if token in {r"\angle", r"\triangle"}:
            return f"{token} {self.take()}"
        described = unicodedata.name(token, "") if len(token) == 1 and not token.isascii() else ""
        if described.startswith("GREEK "):
            letter = described.split()[-1].lower()
            token = "\\" + (letter.capitalize() if "CAPITAL" in described else letter)
        if token[:1] == "\\" and token[1:] in GREEK:
            return self.indexed(token[1:])
        if token in {"pi", "ℤ"}:
            return self.indexed(token)
        if not (token.isascii() and token.isalpha()) or (len(token) > 1 and not self.is_product(token)):
            raise Unreadable
        result: Tree = Fraction(1)
        for letter in token[:-1]:
            result = times(result, letter)
        return times(result, self.indexed(token[-1]))

    def is_product(self, letters: str) -> bool:
        """Are the letters just read factors and no word? Then they are few, and stand in a formula."""
        before, earlier, after = self.look(-2).text, self.look(-3).text, self.next
        bracketed = before in {"{", "("} and (earlier in OPERATORS | {"}"} or earlier[:1] == "\\")
        glued = is_number(before) and not self.look(-1).apart
        in_formula = bracketed or glued or before in OPERATORS or before == "|" or before[:1] == "\\"
        return (len(letters) < 4 and letters not in WORDS
                and (in_formula or after == "(" or after in OPERATORS - {"-"}))

    def indexed(self, name: str) -> str:
        """A name with its index and primes, or a function with its argument: x_1, f'(x), y(0)."""
        letter = name
        if self.accept("_"):
            name += "_" + self.raw()
        while self.accept("'"):
            name += "'"
        if self.next != "(" or (letter not in UNKNOWN_FUNCTIONS and self.look(2).text != ")"):
            return name
        depth = 0
        while True:
            depth += {"(": 1, ")": -1}.get(self.next, 0)
            name += self.take()
            if depth == 0:
                return name

    def raw(self) -> str:
        """A token, or all that a pair of braces holds, as text."""
        if not self.accept("{"):
            return self.take()
        texts = []
        while not self.accept("}"):
            texts.append(self.take())
        return "".join(texts)

    def matrix(self) -> Group:
        r"""\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"""
        kind = self.raw()
        if kind not in {"pmatrix", "bmatrix", "matrix", "array", "smallmatrix"}:
            raise Unreadable                                              # vmatrix is a determinant
        if kind == "array":
            self.raw()                                                    # {cc}
        self.deeper()
        rows: list[list[Tree]] = [[]]
        while True:
            rows[-1].append(self.sum())
            if self.accept("&"):
                continue
            if not self.accept("\\\\") or self.next == r"\end":
                break
            rows.append([])
        self.depth -= 1
        self.expect(r"\end")
        if self.raw() != kind or len({len(row) for row in rows}) > 1:
            raise Unreadable
        return Group("matrix", tuple(Group("row", tuple(row)) for row in rows))


def related(sides: list[Tree], relations: list[str]) -> Group:
    """Sides and the signs between them. An inequality that bounds one variable is "x = an interval"."""
    if relations[-1] == "≈":
        exact = related(sides[:-1], relations[:-1]) if len(sides) > 2 else sides[0]
        return Group("≈", (exact, sides[-1]))
    if not set().union(*map(names_in, sides)) - CONSTANTS - {LOGARITHM}:  # 3 + 4 = 7 is true, but no answer
        raise Unreadable
    if set(relations) == {"="} or relations == ["∈"]:
        return Group("=", tuple(sides))
    if set(relations) <= {">", "≥"}:
        sides = sides[::-1]
        relations = ["<" if relation == ">" else "≤" for relation in relations[::-1]]
    if relations != ["≠"] and not set(relations) <= {"<", "≤"}:
        raise Unreadable
    opener = "[" if relations[0] == "≤" else "("
    closer = "]" if relations[-1] == "≤" else ")"
    match [is_constant(side) for side in sides], sides:
        case [True, False, True], [low, str(name), high]:
            return Group("=", (name, Group(opener + closer, (low, high))))
        case [False, True], [str(name), high] if relations != ["≠"]:
            return Group("=", (name, Group("(" + closer, (MINUS_INFINITY, high))))
        case [True, False], [low, str(name)] if relations != ["≠"]:
            return Group("=", (name, Group(opener + ")", (low, "oo"))))
        case _, [_, _]:
            return Group(relations[0], tuple(sides))
    raise Unreadable


# ---- all of it ----

class Reading(NamedTuple):
    """What `read` found in a text."""
    tokens: list[str]
    tree: Tree | None                              # None: not readable
    rounded: bool                                  # is a number in it a float that a program printed?


def read(text: str) -> Reading:
    """A text's tokens and, if the grammar reads it to its last character, its tree."""
    if len(text) > LONGEST:
        return Reading([], None, False)
    plain = without_fonts(text).rstrip(".")
    date, time = date_in(plain), time_in(plain)
    if time:
        return Reading([plain], Group("time", time), False)
    if date and any(date[1:]):
        return Reading([plain], Group("date", date), False)
    tokens = tokens_of(one_spelling(text))
    if date:                                                              # 2018年
        tokens = [Token(str(date[0]))]
    texts = [token.text for token in tokens]
    short_units = letters_are_units(text)
    try:
        tree = Reader(tokens, short_units, 1).answer()
        if "±" in texts or "∓" in texts:
            tree = Group("or", (tree, Reader(tokens, short_units, -1).answer()))
    except Unreadable:
        tree = None
    return Reading(texts, tree, any(map(is_printed_float, texts)))
