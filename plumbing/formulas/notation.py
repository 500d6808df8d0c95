"""One spelling for what Unicode, LaTeX and words write in several ways, and the tokens of a text."""
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from plumbing.formulas.numerals import in_digits

# ---- one spelling ----

# Words inside a formula: "\text{ cm}" -> "cm".
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|tt|it)|mbox|operatorname|boldsymbol|bm|underline)"
    r"\s*\{([^{}]*)\}")
# The signs of Chinese texts: "（１，２）。" -> "(1,2).".
FULL_WIDTH = {**{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}, **str.maketrans("。、", ".,")}
SIGNS = str.maketrans({
    "–": "-", "—": "-", "‐": "-", "‑": "-", "−": "-", "×": "*", "⋅": "*", "·": "*", "∙": "*", "÷": "/",
    "⁄": "/", "∕": "/", "′": "'", "’": "'", "⩽": "≤", "⩾": "≥", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "℃": "°C", "º": "°", "˚": "°", "µ": "μ", "…": "..."})
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SPELLINGS = [(re.compile(pattern), same) for pattern, same in (
    (r"\\mathbb\s*(?:R\b|\{\s*R\s*\})", "ℝ"),
    (r"\\mathbb\s*(?:Z\b|\{\s*Z\s*\})", "ℤ"),
    (TEXT.pattern, r" \1 "),
    (r"(?<!\\)\\[()\[\]]", " "),                                          # the brackets of a formula: \(5\)
    (r"\^\s*\{?\s*\\circ\s*\}?", "°"),
    (r"(?<=\d),?\\[,!]\s*(?=\d{3})", "{,}"),                              # 16,\!386 and 1\,234
    (r"(?<=\d) ?x ?(?=10\^)", "*"),                                       # 6.02 x 10^23
    (r"(?<=\d\*)[Ij]\b|(?<=\d)j\b", "i"),                                 # 2*I, 2j
    (r"\bper cent\b", "percent"),
    (r"(?<=\d)(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)\b", ""),                  # 1st
    (r"^\s*(?:\w+\.)?(?:[mM]atrix|array)\((\[.*\])\)\s*$", r"\1"))]       # np.array([[1, 2]])


def superscript(match: re.Match) -> str:
    """⁻³ -> ^{-3}"""
    return "^{" + match[0].translate(SUPERSCRIPTS) + "}"


def vulgar_fraction(match: re.Match) -> str:
    """½ -> 1/2, with the spaces of "2 1/2"."""
    return " " + unicodedata.normalize("NFKC", match[0]) + " "


def comma_in_braces(match: re.Match) -> str:
    """14{,}916 -> 14916, and 3{,}14 -> 3.14, as people who write a decimal comma do."""
    parts = re.split(r"\D+", match[0])
    if all(len(part) == 3 for part in parts[1:]) and not parts[0].startswith("0"):
        return "".join(parts)
    return match[0] if len(parts) > 2 else ".".join(parts)


def without_dollars(text: str) -> str:
    r"""Without the $ of LaTeX; one that means money becomes \$: "$5" -> "\$5", "$x$" -> "x"."""
    if len(re.findall(r"(?<!\\)\$", text)) % 2:
        text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])", r"\\$", text, count=1)
    return re.sub(r"(?<!\\)\$", " ", text)


def without_fonts(text: str) -> str:
    """A text without the commands for words in formulas, and with one sign for all its hyphens."""
    return " ".join(TEXT.sub(r" \1 ", text).translate(SIGNS).split())


def one_spelling(text: str) -> str:
    """A text without fonts and with one spelling of what Unicode, LaTeX and words spell in several ways."""
    text = without_dollars(text)
    if "\\" in text:
        text = text.replace("~", " ")
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", vulgar_fraction, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", superscript, text)
    text = text.translate(SIGNS)
    for pattern, same in SPELLINGS:
        text = pattern.sub(same, text)
    text = re.sub(r"\d+(?:\s*\{\s*,\s*\}\s*\d+)+", comma_in_braces, text)
    return in_digits(" ".join(text.split()))


# ---- tokens ----

class Token(NamedTuple):
    """A number, a word, a command of LaTeX or a sign; `apart` if white space stands before it."""
    text: str
    apart: bool = False


# The same sign in LaTeX, Python and Unicode.
SAME = {r"\le": "≤", r"\leq": "≤", r"\leqslant": "≤", "<=": "≤", r"\ge": "≥", r"\geq": "≥", r"\geqslant": "≥",
        ">=": "≥", r"\ne": "≠", r"\neq": "≠", "!=": "≠", r"\lt": "<", r"\gt": ">", r"\times": "*",
        r"\cdot": "*", r"\div": "/", "**": "^", r"\cup": "∪", r"\in": "∈", r"\infty": "∞", "oo": "∞",
        "inf": "∞", "infty": "∞", "infinity": "∞", "Infinity": "∞", r"\pm": "±", r"\mp": "∓",
        r"\emptyset": "∅", r"\varnothing": "∅", r"\lvert": "|", r"\rvert": "|", r"\vert": "|",
        r"\mid": "|", r"\%": "%",
        r"\lbrace": r"\{", r"\rbrace": r"\}", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac",
        r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\degree": "°", "√": r"\sqrt", "sqrt": r"\sqrt",
        r"\prime": "'", r"\approx": "≈"}
# What only moves or sizes signs.
SPACE = re.compile(r"(?:\s|\\[,;:! ]"
                   r"|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|quad|qquad|large|bf|rm)(?![a-zA-Z])\.?)+")
# Digits that repeat for ever: "\overline{3}" of "0.\overline{3}".
REPEATING = r"(?:\\(?:overline|bar|dot)\s*(?:\{(?P<repeated>\d+)\}|(?P<digit>\d))|\((?P<bracketed>\d+)\))"
NUMBER = re.compile(
    rf"(?P<plain>\d+\.\d*){REPEATING}"
    r"|(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\d.]))?",
    re.ASCII)
# The same with separators, which inside brackets could also stand between two numbers.
SEPARATED = re.compile(
    r"(?P<english>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)(?![,.]?\d)"                  # 1,000.99
    r"|(?P<spaced>[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?)(?![\d/]|,\d| \d)"            # 1 000.99
    r"|(?P<german>[1-9]\d{0,2}(?:\.\d{3})+,\d\d|[1-9]\d{3,},\d\d)(?![,.]?\d)",    # 1.000,99 and 1000,99
    re.ASCII)
OTHER_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[a-zA-Z]+|\*\*|<=|>=|!=|.", re.DOTALL)


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
    if found["plain"]:
        repeated = found["repeated"] or found["digit"] or found["bracketed"]
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


def is_digits(token: str) -> bool:
    """Is a token a number without sign and point?"""
    return token.isascii() and token.isdigit()


def is_number(token: str) -> bool:
    """Is a token a number?"""
    return is_digits(token[:1]) or (token[:1] == "." and len(token) > 1)


def number_value(token: str) -> Fraction:
    """0.1(6) -> 1/6; otherwise as Python reads it."""
    plain, _, repeated = token.rstrip(")").partition("(")
    value = Fraction(plain + "0" if plain.endswith(".") else plain)
    if repeated:
        places = len(plain.partition(".")[2])
        value += Fraction(int(repeated), (10**len(repeated) - 1) * 10**places)
    return value


# ---- what a text is like ----

# LaTeX around single letters, which then are variables and no units: "$5 m$", "5 \pi m".
MATHEMATICS = re.compile(r"(?<!\\)\$.*(?<!\\)\$|\\\(|\\[a-zA-Z]", re.DOTALL)


def letters_are_units(text: str) -> bool:
    """May single letters in a text be units?"""
    return not MATHEMATICS.search(TEXT.sub("", text)) or TEXT.search(text) is not None


# A decimal number of nine digits or more.
PRINTED_FLOAT = re.compile(r"(?=.*\.)0*\.?0*[1-9](?:\.?\d){8,}(?:[eE].*)?", re.ASCII)


def is_printed_float(token: str) -> bool:
    """Is a token a number with so many digits that a program printed it?"""
    return PRINTED_FLOAT.fullmatch(token) is not None
