r"""The grammar of answers: `read` turns a text into a tree, or says that it cannot.

Every character is read, or nothing is: a text with anything left over is Unreadable, never its first number.

    answer    item, item or item
    item      side = side, side < side                     equation, inequality, x \in S
    side      quantity : quantity, set \cup set            ratio, union
    quantity  $ sum unit, number - number unit             money, 5 cm, 10%; a score or a span
    sum       product + product - product
    product   factor * factor / factor, factor factor
    factor    primary ^ factor, primary !
    primary   number, 2 1/3, name, \frac{}{}, \sqrt{}, \sin x, (…), [… , …), {…}, matrix

Dates and times of day are forms of their own. A tree is made of
    Fraction              every number, as far as it can be computed exactly: 1/2 and 0.5 are one
    str                   a name: "x", "x_1", "pi", "e", "i", "oo"
    (operator, tree …)    ("+", a, b), ("*", a, b), ("^", a, b), ("sin", a), …
    Quantity              a value and its unit
    Group                 what belongs together and is no number: a list, a set, an interval, an equation
"""
import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

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
    "matrix" of "row"; a sign between its items: "=", "<", "≤", "≠", ":", "-" (a score or a span), "∪";
    "base", "date" or "time".
    """
    kind: str
    items: tuple


# ---- numbers in words ----

SMALL = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen".split())}
TENS = {word: 10 * number for number, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
          "百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8, "万亿": 12}
PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4,
         "fourths": 4, "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "seventh": 7, "sevenths": 7,
         "eighth": 8, "eighths": 8, "ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10}
ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}

WORD = "|".join([*SMALL, *TENS, "hundred", "thousand", "million", "billion", "trillion"])
PART = "|".join(PARTS)
# A number in words: "minus twenty-one", "one hundred and five", "two and a half", "three quarters", "a third".
NUMBER_WORDS = re.compile(
    rf"\b(?P<minus>(?:minus|negative) )?"
    rf"(?:(?P<words>(?:{WORD})(?:(?:-| |(?<=hundred) and |(?<=thousand) and )(?:{WORD}))*)"
    rf"(?: and an? (?P<more>{PART})|[- ](?P<parts>{PART}))?|an? (?P<part>{PART}))\b",
    re.IGNORECASE | re.ASCII)
MINUS = re.compile(r"\b(?:minus|negative) (?=[\d.])", re.IGNORECASE | re.ASCII)
# The power of ten after digits: " million" of "1.5 million", "万" of "20万".
SCALE = re.compile(r"(?<=\d)\s*(?:(hundred|thousand|million|billion|trillion)\b|([百千万亿]{1,2}))",
                   re.IGNORECASE | re.ASCII)
ROMAN = re.compile(
    # One letter after a word, as in "World War I", but not after these words: "x and I", "log X", "is V".
    r"(?<=[a-z] )(?<!(?:and|sin|cos|tan|log) )(?<!(?:or|is|of|by|as|in) )[IVX]\b(?=[\s,.]|$)"
    # Two letters or more, after a word or alone: "XIV".
    r"|(?:(?<=[A-Za-z] )|^)(?=[IVXLCDM]{2})M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})"
    r"(?=[\s,.]|$)(?!\s*[=+*/^-])"
    # The whole answer in small letters: "iii".
    r"|^[ivx]{2,}$")


def whole_number(words: list[str]) -> int | None:
    """twenty, one -> 21; None for words that make no number, as in "one two"."""
    total = 0
    current = 0                                                           # below the next thousand
    room = 10**15                                                         # the next word must be smaller
    for word in words:
        if word in SMALL or word in TENS:
            value = SMALL.get(word, TENS.get(word))
            if value >= room or (value == 0 and len(words) > 1):
                return None
            current += value
            room = 10 if word in TENS else 1
        elif word == "hundred":
            if not 0 < current < 20:
                return None
            current *= 100
            room = 100
        else:
            scale = 10**SCALES[word]
            if current == 0 or (total and total % (scale * 1000)):
                return None
            total += current * scale
            current = 0
            room = 1000
    return total + current


def number_in_digits(match: re.Match) -> str:
    """twenty-one -> 21, one third -> 1/3, two and a half -> 5/2"""
    value = Fraction(1)
    if match["words"]:
        number = whole_number(re.split(r"-| and | ", match["words"].lower()))
        if number is None:
            return match[0]
        value = Fraction(number)
    part = match["parts"] or match["part"]
    if part:
        value /= PARTS[part.lower()]
    if match["more"]:
        value += Fraction(1, PARTS[match["more"].lower()])
    if match["minus"]:
        value = -value
    return str(value)


def scale_in_digits(match: re.Match) -> str:
    """ million -> *10^6"""
    word = match[1].lower() if match[1] else match[2]
    if word not in SCALES:
        return match[0]
    return f"*10^{SCALES[word]}"


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
    """Numbers in digits: "three" -> "3", "1.5 million" -> "1.5*10^6", "Henry VIII" -> "Henry 8"."""
    text = NUMBER_WORDS.sub(number_in_digits, text)
    text = SCALE.sub(scale_in_digits, text)
    text = MINUS.sub("-", text)
    return ROMAN.sub(roman_in_digits, text)


# ---- tokens ----

class Token(NamedTuple):
    """A number, a word, a command of LaTeX or a sign; `apart` if white space stands before it."""
    text: str
    apart: bool = False


# Words inside a formula: "\text{ cm}" -> "cm".
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SIGNS = str.maketrans({
    "–": "-", "—": "-", "‐": "-", "‑": "-", "−": "-", "×": "*", "⋅": "*", "·": "*", "÷": "/", "⁄": "/", "∕": "/",
    "′": "'", "’": "'", "⩽": "≤", "⩾": "≥", "，": ",", "、": ",", "；": ";", "：": ":", "（": "(", "）": ")",
    "％": "%", "＝": "=", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "℃": "°C", "…": "..."})
# The same sign in LaTeX, Python and Unicode.
SAME = {r"\le": "≤", r"\leq": "≤", r"\leqslant": "≤", "<=": "≤", r"\ge": "≥", r"\geq": "≥", r"\geqslant": "≥",
        ">=": "≥", r"\ne": "≠", r"\neq": "≠", "!=": "≠", r"\lt": "<", r"\gt": ">", r"\times": "*", r"\cdot": "*",
        r"\div": "/", "**": "^", r"\cup": "∪", r"\in": "∈", r"\infty": "∞", r"\pm": "±", r"\mp": "∓",
        r"\emptyset": "∅", r"\varnothing": "∅", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\%": "%",
        r"\lbrace": r"\{", r"\rbrace": r"\}", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac",
        r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\colon": ":", r"\degree": "°", "√": r"\sqrt",
        r"\prime": "'", r"\lbrack": "[", r"\rbrack": "]", r"\lor": "or", r"\cosec": r"\csc"}
# What only moves or sizes signs.
SPACE = re.compile(r"(?:\s|~|\\[,;:! ]|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad)"
                   r"(?![a-zA-Z])\.?)+")
PLAIN_NUMBER = r"(?:\d+(?:\.(?!\.)\d*)?|\.\d+)"
# Digits that repeat for ever: "\overline{3}" of "0.\overline{3}".
REPEATING = r"(?:\\(?:overline|bar|dot)\s*(?:\{(?P<repeated>\d+)\}|(?P<digit>\d))|\((?P<bracketed>\d+)\))"
NUMBER = re.compile(rf"(?P<plain>\d+\.\d*){REPEATING}|{PLAIN_NUMBER}(?:[eE][+-]?\d{{1,4}}(?![\d.]))?", re.ASCII)
# The same with separators, which inside brackets could also stand between two numbers.
SEPARATED = re.compile(
    r"(?P<english>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)(?![,.]?\d)"          # 1,000.99
    r"|(?P<spaced>[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?)(?![\d/]|,\d| \d)"    # 1 000.99
    r"|(?P<german>[1-9]\d{0,2}(?:\.\d{3})+,\d\d|[1-9]\d{3,},\d\d)(?![,.]?\d)",      # 1.000,99 and 1000,99
    re.ASCII)
OTHER_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[a-zA-Z]+|\*\*|<=|>=|!=|.", re.DOTALL)


def superscript(match: re.Match) -> str:
    """⁻³ -> ^{-3}"""
    return "^{" + match[0].translate(SUPERSCRIPT) + "}"


def vulgar_fraction(match: re.Match) -> str:
    """½ -> 1/2, as in "2 1/2"."""
    return " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/") + " "


def comma_in_braces(match: re.Match) -> str:
    """14{,}916 -> 14916, and 3{,}14 -> 3.14, as people who write a decimal comma do."""
    parts = re.split(r"[^\d]+", match[0])
    thousands = all(len(part) == 3 for part in parts[1:]) and not parts[0].startswith("0")
    if thousands:
        return "".join(parts)
    return match[0] if len(parts) > 2 else ".".join(parts)


def without_dollars(text: str) -> str:
    r"""Without the $ of LaTeX; one that means money becomes \$: "$5" -> "\$5", "$x$" -> "x"."""
    if len(re.findall(r"(?<!\\)\$", text)) % 2:
        text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])", r"\\$", text, count=1)
    return re.sub(r"(?<!\\)\$", " ", text)


def plain(text: str) -> str:
    """A text without fonts and with one spelling of what Unicode and LaTeX spell in several ways."""
    text = without_dollars(text)
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", vulgar_fraction, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", superscript, text)
    text = text.translate(SIGNS)
    text = re.sub(r"\\mathbb\s*\{?\s*R\s*\}?", "ℝ", text)
    text = re.sub(r"\\mathbb\s*\{?\s*Z\s*\}?", "ℤ", text)
    text = TEXT.sub(r" \1 ", text)
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)                               # the brackets of a formula: \(5\)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = re.sub(r"(?<=\d),?\\[,!](?=\d{3})", "{,}", text)               # 16,\!386 and 1\,234
    text = re.sub(r"\d+(?:\s*\{\s*,\s*\}\s*\d+)+", comma_in_braces, text)
    text = re.sub(r"(?<=\d\*)[Ij]\b|(?<=\d)j\b", "i", text)               # 2*I, 2j
    text = re.sub(r"\bper cent\b", "percent", text)
    text = re.sub(r"(?<=\d)(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)\b", "", text)          # 1st
    text = re.sub(r"^\s*(?:\w+\.)?(?:[mM]atrix|array)\((\[.*\])\)\s*$", r"\1", text)        # np.array([[1, 2]])
    return in_digits(" ".join(text.split()))


def number_at(text: str, start: int, in_brackets: bool) -> tuple[str, int] | None:
    """(the number that begins here, in one spelling; its end), or None."""
    found = None if in_brackets else SEPARATED.match(text, start)
    if found and found["german"]:
        return found[0].replace(".", "").replace(",", "."), found.end()
    if found:
        return re.sub("[, ]", "", found[0]), found.end()
    found = NUMBER.match(text, start)
    if found is None:
        return None
    repeated = found["repeated"] or found["digit"] or found["bracketed"]
    if repeated:
        return f"{found['plain']}({repeated})", found.end()
    return found[0], found.end()


def tokens_of(text: str) -> list[Token]:
    """All of a text as tokens; whatever the grammar does not know becomes a token, too."""
    tokens = []
    position = 0
    apart = False
    depth = 0
    while position < len(text):
        space = SPACE.match(text, position)
        if space:
            position = space.end()
            apart = True
            continue
        number = number_at(text, position, depth > 0)
        if number:
            token, position = number
        else:
            match = OTHER_TOKEN.match(text, position)
            token, position = SAME.get(match[0], match[0]), match.end()
        if token in {"(", "[", r"\{"}:
            depth += 1
        elif token in {")", "]", r"\}"}:
            depth -= 1
        tokens.append(Token(token, apart))
        apart = False
    return tokens


def whole(text: str) -> bool:
    """Is a token a number of digits alone?"""
    return text.isascii() and text.isdigit()


def begins_number(text: str) -> bool:
    """Is a token a number?"""
    return whole(text[:1]) or (text[:1] == "." and len(text) > 1)


def number_value(text: str) -> Fraction:
    """0.1(6) -> 1/6; otherwise as Python reads it."""
    whole, _, repeated = text.rstrip(")").partition("(")
    value = Fraction(whole + "0" if whole.endswith(".") else whole)
    if repeated:
        places = len(whole.partition(".")[2])
        value += Fraction(int(repeated), (10**len(repeated) - 1) * 10**places)
    return value


# ---- computing what is exact ----

def as_value(tree: Tree) -> Tree:
    """A tree to compute with: a span such as 5-1 is a difference here, other groups have no value."""
    if isinstance(tree, Group) and tree.kind == "-" and len(tree.items) == 2:
        return plus(tree.items[0], times(Fraction(-1), tree.items[1]))
    if isinstance(tree, (Group, Quantity)):
        raise Unreadable
    return tree


def computed(value: Fraction) -> Fraction:
    """A number, unless it is too long to go on with."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise Unreadable
    return value


def plus(a: Tree, b: Tree) -> Tree:
    """a + b"""
    a, b = as_value(a), as_value(b)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return computed(a + b)
    return ("+", a, b)


def times(a: Tree, b: Tree) -> Tree:
    """a b"""
    a, b = as_value(a), as_value(b)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return computed(a * b)
    if a == 1:
        return b
    if b == 1:
        return a
    return ("*", a, b)


def power(a: Tree, b: Tree) -> Tree:
    """a ^ b"""
    a, b = as_value(a), as_value(b)
    if b == 1:
        return a
    if not isinstance(a, Fraction) or not isinstance(b, Fraction) or b.denominator != 1:
        return ("^", a, b)
    if a == 0 and b <= 0:
        raise Unreadable
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if bits * abs(b) > MOST_BITS:
        return ("^", a, b)
    return a**int(b)


def applied(name: str, argument: Tree) -> Tree:
    """A function's value: "!" or a name of FUNCTIONS."""
    argument = as_value(argument)
    if name == "!" and isinstance(argument, Fraction) and argument.denominator == 1 and 0 <= argument <= 2500:
        return Fraction(math.factorial(int(argument)))
    if name == "abs" and isinstance(argument, Fraction):
        return abs(argument)
    return (name, argument)


# ---- names ----

FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln lg exp abs".split())
GREEK = set("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho "
            "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega "
            "ell hbar angle triangle".split())
DECORATIONS = {r"\hat", r"\vec", r"\bar", r"\overline", r"\tilde", r"\overrightarrow"}
CONSTANTS = {"pi", "e", "i", "oo"}
LOGARITHM = "base of log"                          # the variable that stands for a base nobody named
MINUS_INFINITY = ("*", Fraction(-1), "oo")
INFINITY = {"∞", "oo", "inf", "infty", "infinity", "Infinity"}
# Short words that are no product of letters.
WORDS = set("a an and are as at be by do for go he if in is it me my no not of on one or our out so the to too up us "
            "we yes nan".split())
# Units: their one name, then the others; a plural s is understood.
UNITS = {}
for _line in """mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kilometer kilometre
in inch inches|ft foot feet|yd yard|mi mile|mg milligram|g gram|kg kilogram|lb pound lbs £|oz ounce|ton tonne
ml mL milliliter millilitre|l L liter litre|gal gallon|cup|pint|quart|s sec second secs|min minute mins
h hr hour hrs|day|week|month|year|mph|kph|unit|dollar $ \\$ USD usd|cent|€ euro EUR|¥ yuan yen RMB CNY
° deg degree|°C celsius|°F fahrenheit|rad radian|% percent pct|N newton|J joule|kJ|W watt|kW|MW|mW|kWh
V volt|mV|kV|Hz hertz|kHz|MHz|GHz|Pa pascal|kPa|K kelvin|mol mole|people persons|child children|man men|woman women
MB|GB|KB|ms millisecond|bit|byte|dozen|point|nm nanometer|mol/L""".replace("\n", "|").split("|"):
    for _name in _line.split():
        UNITS[_name] = _line.split()[0]
        if len(_name) > 2:
            UNITS[_name + "s"] = _line.split()[0]
CURRENCIES = {r"\$", "€", "£", "¥"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# Words in s that are no things one counts.
NO_THINGS = set("times plus minus less this unless versus mins tens dozens hundreds thousands millions billions "
                "does always perhaps plays wins is was has as its us yes".split()) | set(PARTS) | FUNCTIONS


# ---- the grammar ----

SEPARATORS = {",", ";", "and", "or"}
RELATIONS = {"=", "<", ">", "≤", "≥", "≠", "∈"}
CLOSERS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",)}


class Reader:
    """Reads tokens one after the other, by one method for each line of the grammar."""

    def __init__(self, tokens: list[Token], short_units: bool, sign: int) -> None:
        self.tokens = [*tokens, Token("")]                                # "" is the end
        self.position = 0
        self.short_units = short_units                                    # may m, s and g be units?
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
        return self.tokens[self.position - 1].text

    def accept(self, *texts: str) -> bool:
        """Read the next token if it is one of these."""
        if self.next in texts and self.next:
            self.position += 1
            return True
        return False

    def expect(self, *texts: str) -> None:
        """Read one of these tokens, or give up."""
        if not self.accept(*texts):
            raise Unreadable

    def look(self, ahead: int) -> Token:
        """A later token."""
        index = self.position + ahead
        return self.tokens[index] if 0 <= index < len(self.tokens) else Token("")

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
            separators = self.take()
            if separators in {",", ";"} and self.next in {"and", "or"}:
                separators = self.take()
            if separators == "or":
                kind = "or"
            items.append(self.item())
        return tuple(items), kind

    def item(self) -> Tree:
        """An equation, an inequality or a side alone."""
        sides = [self.label() or self.side()]
        relations = []
        while self.next in RELATIONS:
            relations.append(self.take())
            sides.append(self.side())
        return related(sides, relations)

    def label(self) -> str | None:
        """The words before "=": "Area = 5"."""
        words = []
        while self.look(len(words)).text.isalpha() and self.look(len(words)).text.isascii():
            words.append(self.look(len(words)).text)
        if self.look(len(words)).text != "=" or max(map(len, words), default=0) < 4:
            return None
        self.position += len(words)
        return " ".join(words)

    def side(self) -> Tree:
        """Sets put together, a ratio, or a quantity alone."""
        items = [self.quantity()]
        sign = self.next
        if sign == "U" and isinstance(items[0], Group):
            sign = "∪"
        if sign not in {":", "∪"}:
            return items[0]
        while self.accept(sign, "U" if sign == "∪" else sign):
            items.append(self.quantity())
        return Group(sign, tuple(items))

    # -- quantities --

    def quantity(self) -> Tree:
        """A value with its unit, if it has one."""
        value = self.span()
        unit = None
        if value is None:
            signed = self.next == "-" and self.look(1).text in CURRENCIES
            if signed:
                self.take()
            if self.next in CURRENCIES:
                unit = UNITS[self.take()]
            value = self.sum()
            if signed:
                value = times(Fraction(-1), value)
        if unit is None and (is_constant(value) or isinstance(value, Group) and value.kind == "-"):
            unit = self.unit()
        if not unit:
            return value
        return Quantity(value, unit)

    def span(self) -> Group | None:
        """Numbers with hyphens and nothing to compute with around them: a score 5-1, a span 1939-1945."""
        numbers = []
        ahead = 0
        while begins_number(self.look(ahead).text):
            numbers.append(self.look(ahead).text)
            if self.look(ahead + 1).text not in {"-", "to"}:
                break
            ahead += 2
        following = self.look(ahead + 1)
        computes = following.text in {"+", "*", "/", "^", "!", "±", "(", "{", "|"} or following.text[:1] == "\\"
        closes = following.text in {r"\}", r"\$"}
        letters = following.text.isalpha() and not self.is_unit(ahead + 1) and following.text not in SEPARATORS
        if len(numbers) < 2 or len(numbers) != ahead // 2 + 1 or letters or (computes and not closes):
            return None
        self.position += ahead + 1
        return Group("-", tuple(number_value(number) for number in numbers))

    def is_unit(self, ahead: int = 0) -> bool:
        """Is a later token the name of a unit or of things that are counted?"""
        token = self.look(ahead)
        word = token.text
        if word in POWERS or not word.isalpha():
            return word in POWERS or word in {"%", "°", *CURRENCIES}
        after_number = begins_number(self.tokens[self.position + ahead - 1].text)
        if len(word) == 1:
            return word in UNITS and token.apart and after_number and self.short_units
        if len(word) == 2 and not (self.short_units and (token.apart or word != "mg")):
            return False
        return self.unit_name(word) is not None

    def unit_name(self, word: str) -> str | None:
        """ "meters" -> "m", "apples" -> "apple"; None for a word that names no unit."""
        known = UNITS.get(word)
        if known is None and len(word) > 3:
            known = UNITS.get(word.lower())
        counted = len(word) > 3 and word.isascii() and word.islower() and word.endswith("s") and word not in NO_THINGS
        if known is None and counted:
            return word[:-1]
        return known

    def unit(self) -> str:
        """ "square cm" and "cm^2" -> "cm^2", "miles per hour" -> "h^-1 mi"; "" if no unit comes."""
        powers: dict[str, int] = {}
        if not self.is_unit():
            return ""
        sign = 1
        while True:
            word = self.take()
            size = POWERS.get(word, 1)
            if word in POWERS:
                self.accept(".")
                word = self.take()
            name = self.unit_name(word)
            if word == "°" and self.next in {"C", "F"}:
                name = "°" + self.take()
            if name is None:
                raise Unreadable
            if self.next == "." and len(word) <= 3:
                self.take()
            if self.accept("^"):
                exponent = self.exponent()
                if not isinstance(exponent, Fraction):
                    raise Unreadable
                size *= int(exponent)
            powers[name] = powers.get(name, 0) + sign * size
            if self.accept("/", "per"):
                sign = -1
                continue
            if self.accept("*"):
                continue
            follows = self.next in UNITS or self.next in POWERS or self.unit_name(self.next) is not None
            if not (follows and self.next.isalpha()):
                break
        return " ".join(name if size == 1 else f"{name}^{size}" for name, size in sorted(powers.items()))

    # -- sum, product, factor --

    def sum(self) -> Tree:
        """Products that are added."""
        total = None
        while total is None or self.next in {"+", "-", "±", "∓"}:
            sign = 1
            if self.next in {"+", "-", "±", "∓"}:
                sign = {"+": 1, "-": -1, "±": self.sign, "∓": -self.sign}[self.take()]
            product = self.product()
            if sign < 0:
                product = times(Fraction(-1), product)
            total = product if total is None else plus(total, product)
        return total

    def product(self) -> Tree:
        """Factors that are multiplied or divided."""
        result = self.factor()
        while True:
            if self.accept("*"):
                result = times(result, self.signed_factor())
            elif self.next == "/" and not (isinstance(result, Quantity)):
                self.take()
                result = times(result, power(self.signed_factor(), Fraction(-1)))
                if self.begins_factor() and not self.look(0).apart:       # 1/2x: is x below the line?
                    raise Unreadable
            elif not isinstance(result, Group) and self.begins_factor():
                result = times(result, self.factor())
            else:
                return result

    def begins_factor(self) -> bool:
        """Does a further factor follow without a sign, as in 2x?"""
        token = self.next
        if begins_number(token):
            raise Unreadable                                              # two numbers side by side
        if token == "|":
            return not self.in_bars
        if token in {"(", "[", "{"}:
            return True
        if token in SEPARATORS or token in {"to", "per", "U"} or self.is_unit():
            return False
        return token[:1].isalpha() or (token[:1] == "\\" and token[1:].isalpha() and token != r"\end")

    def signed_factor(self) -> Tree:
        """A factor that may have a sign: 3 * -2."""
        if self.accept("-"):
            return times(Fraction(-1), self.factor())
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
                result = applied("!", result)
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

    def deeper(self) -> None:
        """One bracket further in."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable

    # -- primary --

    def primary(self) -> Tree:
        """The smallest thing with a value."""
        token = self.take()
        if begins_number(token):
            return self.number(token)
        if token in CLOSERS:
            return self.bracketed(token)
        if token == "|":
            return applied("abs", self.between_bars())
        if token == "∅":
            return Group("{}", ())
        if token in INFINITY:
            return "oo"
        if token == "ℝ":
            return Group("()", (MINUS_INFINITY, "oo"))
        if token in {r"\sqrt", "sqrt"}:
            return self.root()
        if token == r"\frac":
            return times(self.argument(), power(self.argument(), Fraction(-1)))
        if token == r"\binom":
            return ("binom", as_value(self.argument()), as_value(self.argument()))
        if token == r"\begin":
            return self.matrix()
        if token in DECORATIONS:
            return self.subscript(token[1:] + " " + self.raw())
        name = token.removeprefix("\\")
        if name == "log":
            return self.logarithm()
        if name in FUNCTIONS:
            return self.function(name)
        return self.name(token)

    def number(self, text: str) -> Tree:
        """A number, a number in a base, or a whole number with a fraction behind it."""
        if self.next == "_":
            self.take()
            base = self.raw()
            if not (whole(text) and whole(base)):
                raise Unreadable
            return Group("base", (text.lstrip("0"), base))
        value = number_value(text)
        if not whole(text):
            return value
        part = None
        if self.next == r"\frac":
            part = self.primary()
            if not isinstance(part, Fraction):
                return times(value, part)
        elif whole(self.next) and self.look(0).apart and self.look(1).text == "/" and whole(self.look(2).text):
            part = Fraction(int(self.take()))
            self.take()
            part = times(part, power(Fraction(int(self.take())), Fraction(-1)))
        if part is None:
            return value
        if not 0 < part < 1:
            raise Unreadable
        return value + part

    def bracketed(self, opener: str) -> Tree:
        """What brackets hold: one value, or several things as a Group."""
        self.deeper()
        outside, self.in_bars = self.in_bars, False
        items: tuple = ()
        kind = "list"
        if self.next not in CLOSERS[opener] or opener in "([":
            items, kind = self.sequence()
        closer = self.next
        self.expect(*CLOSERS[opener])
        self.depth -= 1
        self.in_bars = outside
        brackets = (opener + closer).replace("\\", "")
        if len(items) == 1 and opener != r"\{" and brackets in {"()", "[]", "{}"}:
            return items[0]
        if kind == "or" or brackets in {"(]", "[)"} and len(items) != 2:
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
        value = self.sum()
        self.in_bars = False
        self.depth -= 1
        self.expect("|")
        return value

    def argument(self) -> Tree:
        r"""An argument of \frac: a group in braces, one name, or one digit of several."""
        if self.accept("{"):
            self.deeper()
            value = self.sum()
            self.depth -= 1
            self.expect("}")
            return value
        token = self.look(0)
        if len(token.text) == 2 and whole(token.text) and self.look(-1).text == r"\frac":
            self.tokens[self.position] = Token(token.text[1])             # \frac12
            return Fraction(int(token.text[0]))
        if whole(token.text) and len(token.text) > 1:
            raise Unreadable
        return self.primary()

    def root(self) -> Tree:
        r"""\sqrt{2}, \sqrt[3]{8}, sqrt(2), √2"""
        degree = Fraction(2)
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        if begins_number(self.next):
            value = number_value(self.take())
        elif self.next in {"{", "("} or self.next.isalpha() or self.next[:1] == "\\":
            value = self.primary()
        else:
            raise Unreadable
        return power(value, power(degree, Fraction(-1)))

    def logarithm(self) -> Tree:
        r"""\log_2 8; a \log without a base has one that is not known, so \log 100 is 2 for nobody."""
        base: Tree = LOGARITHM
        if self.accept("_"):
            base = number_value(self.take()) if self.look(1).text == "(" and whole(self.next) else self.argument()
        value = self.function("ln")
        return times(value, power(("ln", as_value(base)), Fraction(-1)))

    def function(self, name: str) -> Tree:
        r"""\sin x, \sin^2 x, \sin(x): the argument is a bracket, or factors up to the next sign."""
        exponent: Tree = Fraction(1)
        if self.accept("^"):
            exponent = self.exponent()
            if exponent == -1:
                raise Unreadable                                          # the inverse, or 1 below it?
        outside, self.in_function = self.in_function, True
        self.deeper()
        bracketed = self.next in {"(", "{", "[", "|"}
        argument = self.primary() if bracketed else self.factor()
        while not bracketed and self.begins_factor() and self.next not in {"(", "[", "{", "|"}:
            if self.next.removeprefix("\\") in FUNCTIONS | {"log"}:
                break
            argument = times(argument, self.factor())
        if bracketed and self.accept("°"):
            argument = times(argument, ("*", Fraction(1, 180), "pi"))
        if not bracketed and self.next == "/":
            raise Unreadable                                              # sin x/2
        self.in_function = outside
        self.depth -= 1
        return power(applied(name, argument), exponent)

    def name(self, token: str) -> Tree:
        """A letter with its index, or several letters that are multiplied."""
        if token[:1] == "\\":
            if token[1:] not in GREEK:
                raise Unreadable
            return self.subscript(token[1:])
        if token == "pi" or token in {"ℤ", "ℓ"}:
            return self.subscript(token)
        if len(token) == 1 and not token.isascii():
            described = unicodedata.name(token, "")
            if not described.startswith("GREEK "):
                raise Unreadable
            letter = described.split()[-1].lower()
            return self.subscript(letter.capitalize() if "CAPITAL" in described else letter)
        if not (token.isalpha() and token.isascii()) or (len(token) > 1 and not self.is_product(token)):
            raise Unreadable
        result: Tree = Fraction(1)
        for letter in token[:-1]:
            result = times(result, letter)
        return times(result, self.subscript(token[-1]))

    def is_product(self, letters: str) -> bool:
        """Are the letters just read factors and no word? Then they are few, and stand in a formula."""
        before, token = self.look(-2), self.look(-1)
        glued = begins_number(before.text) and not token.apart
        argument = before.text == "{" and (self.look(-3).text in {"}", "^"} or self.look(-3).text[:1] == "\\")
        computed = before.text in {"+", "-", "*", "/", "=", "^"} or before.text[:1] == "\\"
        followed = self.next in {"+", "*", "/", "=", "^", "("}
        return len(letters) < 4 and letters.lower() not in WORDS and (glued or argument or computed or followed)

    def subscript(self, name: str) -> str:
        """A name with index and primes: x_1, f'."""
        if self.accept("_"):
            name += "_" + self.raw()
        while self.accept("'"):
            name += "'"
        return name

    def raw(self) -> str:
        """A token, or all that a pair of braces holds, as text."""
        if not self.accept("{"):
            if not self.next:
                raise Unreadable
            return self.take()
        texts = []
        while self.next != "}":
            if self.next in {"", "{"}:
                raise Unreadable
            texts.append(self.take())
        self.take()
        return "".join(texts)

    def matrix(self) -> Group:
        r"""\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"""
        kind = self.raw()
        if kind not in {"pmatrix", "bmatrix", "matrix", "array", "smallmatrix"}:
            raise Unreadable
        if kind == "array":
            self.raw()                                                    # {cc}
        self.deeper()
        rows = []
        cells = []
        while True:
            cells.append(self.sum())
            if self.accept("&"):
                continue
            rows.append(Group("row", tuple(cells)))
            cells = []
            if not self.accept("\\\\") or self.next == r"\end":
                break
        self.depth -= 1
        self.expect(r"\end")
        if self.raw() != kind or len({len(row.items) for row in rows}) > 1:
            raise Unreadable
        return Group("matrix", tuple(rows))


def names_in(tree: Tree) -> set[str]:
    """The names in a tree, also those of constants."""
    if isinstance(tree, str):
        return {tree}
    if isinstance(tree, Fraction):
        return set()
    parts = tree[1:] if isinstance(tree, tuple) else (tree.items if isinstance(tree, Group) else (tree.value,))
    return set().union(*map(names_in, parts))


def is_constant(tree: Tree) -> bool:
    """Is a tree a number, if perhaps one that is not computed yet?"""
    return not isinstance(tree, (Group, Quantity)) and names_in(tree) <= CONSTANTS


def related(sides: list[Tree], relations: list[str]) -> Tree:
    """Sides and the signs between them. An inequality that bounds one variable is "x = an interval"."""
    if not relations:
        return sides[0]
    if set(relations) == {"="}:
        return Group("=", tuple(sides))
    if relations == ["∈"]:
        return Group("=", tuple(sides))
    if relations[0] in {">", "≥"}:
        sides = sides[::-1]
        relations = [{">": "<", "≥": "≤"}.get(relation, "?") for relation in relations[::-1]]
    if relations == ["≠"]:
        return Group("≠", tuple(sides))
    if not set(relations) <= {"<", "≤"}:
        raise Unreadable
    opener = "[" if relations[0] == "≤" else "("
    closer = "]" if relations[-1] == "≤" else ")"
    if len(sides) == 3 and isinstance(sides[1], str) and is_constant(sides[0]) and is_constant(sides[2]):
        return Group("=", (sides[1], Group(opener + closer, (sides[0], sides[2]))))
    if len(sides) == 2 and isinstance(sides[0], str) and is_constant(sides[1]):
        return Group("=", (sides[0], Group("(" + closer, (MINUS_INFINITY, sides[1]))))
    if len(sides) == 2 and isinstance(sides[1], str) and is_constant(sides[0]):
        return Group("=", (sides[1], Group(opener + ")", (sides[0], "oo"))))
    if len(sides) == 2:
        return Group(relations[0], tuple(sides))
    raise Unreadable


# ---- dates and times ----

MONTHS = {name: number for number, name in enumerate(
    "jan feb mar apr may jun jul aug sep oct nov dec".split(), start=1)}
MONTH = (r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
         r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?")
DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
WEEKDAY = r"(?:(?P<weekday>(?:mon|tues|wednes|thurs|fri|satur|sun)day),? )?"
DATES = [re.compile(form, re.IGNORECASE | re.ASCII) for form in (
    rf"{WEEKDAY}(?:the )?{DAY}(?: of)? {MONTH}(?:,? (?P<year>\d{{1,4}}))?",                 # 20 June 1837
    rf"{WEEKDAY}{MONTH} {DAY}(?:,? (?P<year>\d{{1,4}}))?",                                  # June 20, 1837
    rf"{MONTH},? (?P<year>\d{{4}})",                                                        # June 1837
    r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})",                          # 2014-07-05
    r"(?P<year>\d{4}) ?年 ?(?P<month>\d{1,2}) ?月(?: ?(?P<day>\d{1,2}) ?[日号])?",            # 2018年12月
    r"(?P<month>\d{1,2}) ?月 ?(?P<day>\d{1,2}) ?[日号]")]
# A date whose order is not said: 05/07/2014.
SHORT_DATE = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})", re.ASCII)
TIME = re.compile(r"(\d{1,2})(?:[:.](\d\d))?(?::(\d\d))? ?(?:([ap])\.? ?m\.?)", re.IGNORECASE | re.ASCII)


def date_or_time(text: str) -> Group | None:
    """A text that is a date (year, month, day, weekday) or a time (hour, minute, second, a or p), or None."""
    text = " ".join(TEXT.sub(r" \1 ", text).translate(SIGNS).split()).rstrip(".")
    time = TIME.fullmatch(text)
    if time:
        return Group("time", (int(time[1]), int(time[2] or 0), int(time[3] or 0), time[4].lower()))
    short = SHORT_DATE.fullmatch(text)
    if short:
        first, second, year = int(short[1]), int(short[3]), int(short[4])
        if first > 12:
            return Group("date", (year, second, first, None))
        if second > 12:
            return Group("date", (year, first, second, None))
        return Group("date", (year, f"{first} {second}", None, None))
    for form in DATES:
        found = form.fullmatch(text)
        if found:
            parts = found.groupdict()
            month = parts["month"]
            month = int(month) if month.isdigit() else MONTHS[month[:3].lower()]
            year = int(parts["year"]) if parts.get("year") else None
            day = int(parts["day"]) if parts.get("day") else None
            weekday = parts.get("weekday")
            return Group("date", (year, month, day, weekday.lower() if weekday else None))
    return None


# ---- all of it ----

# LaTeX around single letters, which then are variables and no units: "$5 m$", "5 \pi m".
MATHEMATICS = re.compile(r"(?<!\\)\$.*(?<!\\)\$|\\\(|\\[a-zA-Z]", re.DOTALL)

# A decimal number of nine digits or more.
PRINTED_FLOAT = re.compile(r"(?=.*\.)0*\.?0*[1-9](?:\.?\d){8,}(?:[eE].*)?", re.ASCII)


class Reading(NamedTuple):
    """What `read` found in a text."""
    tokens: list[str]
    tree: Tree | None                              # None: not readable
    rounded: bool                                  # is a number in it a float that a program printed?


def read(text: str) -> Reading:
    """A text's tokens and, if the grammar reads it to its last character, its tree."""
    if len(text) > LONGEST:
        return Reading([], None, False)
    tree = date_or_time(text)
    if tree is not None:
        return Reading([repr(tree)], tree, False)
    tokens = tokens_of(plain(text))
    texts = [token.text for token in tokens]
    short_units = not MATHEMATICS.search(TEXT.sub("", text)) or TEXT.search(text) is not None
    try:
        tree = Reader(tokens, short_units, 1).answer()
        if "±" in texts or "∓" in texts:
            tree = Group("or", (tree, Reader(tokens, short_units, -1).answer()))
    except Unreadable:
        tree = None
    return Reading(texts, tree, any(map(PRINTED_FLOAT.fullmatch, texts)))
