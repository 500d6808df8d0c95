"""Numbers in words and Roman digits, dates and times of day: what has a grammar of its own in an answer."""
import re
from fractions import Fraction

# ---- numbers in words ----

SMALL = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen".split())}
TENS = {word: 10 * number for number, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}
POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
CHINESE_POWERS = {"百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8, "万亿": 12}
PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
         "eighth": 8, "ninth": 9, "tenth": 10}
ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}

WORD = "|".join([*SMALL, *TENS, *POWERS])
PART = "|".join(PARTS)
# A number in words: "minus twenty-one", "one hundred and five", "two and a half", "one third", "a third".
NUMBER_WORDS = re.compile(
    rf"\b(?<!\d )(?P<minus>(?:minus|negative) )?(?:(?:a (?={'|'.join(POWERS)}))?"
    rf"(?P<words>(?:{WORD})(?:(?:-| |(?<=hundred) and |(?<=thousand) and )(?:{WORD}))*)"
    rf"(?: and (?:an?|one) (?P<more>{PART})|[- ](?P<parts>{PART})s?)?|an? (?P<part>{PART}))\b",
    re.IGNORECASE | re.ASCII)
MINUS = re.compile(r"\b(?:minus|negative) (?=[\d.])", re.IGNORECASE | re.ASCII)
# The power of ten after digits: " million" of "1.5 million", "万" of "20万".
SCALE = re.compile(rf"(?<=\d)\s*(?:({'|'.join(POWERS)})\b|([百千万亿]{{1,2}}))", re.IGNORECASE | re.ASCII)
ROMAN = re.compile(
    # One letter after a word, as in "World War I", but not after these words: "x and I", "log X", "is V".
    r"(?<=[a-z] )(?<!(?:and|sin|cos|tan|log) )(?<!(?:or|is|of|by|as|in) )[IVX](?=[\s,.]|$)"
    # Two letters or more, after a word or alone: "XIV". But "CD = 5" is about two points.
    r"|(?:(?<=[A-Za-z] )|^)(?=[IVXLCDM]{2})M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})"
    r"(?=[\s,.]|$)(?!\s*[=+*/^-])"
    # The whole answer in small letters: "iii".
    r"|^[ivx]{2,}$")


def whole_number(words: list[str]) -> int | None:
    """twenty, one -> 21; None for words that make no number, as in "one two"."""
    total = 0
    current = 0                                                           # what is below the next thousand
    limit = 1000                                                          # the next word has to be smaller
    if words[0] in POWERS:                                                # a hundred
        words = ["one", *words]
    for word in words:
        value = SMALL.get(word, TENS.get(word))
        if value is not None and value < limit and (value or words == ["zero"]):
            current += value
            limit = 10 if word in TENS else 1
        elif word == "hundred" and 0 < current < 100:
            current *= 100
            limit = 100
        elif POWERS.get(word, 0) > 2 and current and total % 10**(POWERS[word] + 3) == 0:
            total += current * 10**POWERS[word]
            current = 0
            limit = 1000
        else:
            return None
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
    return str(-value if match["minus"] else value)


def scale_in_digits(match: re.Match) -> str:
    """ million -> *10^6"""
    power = POWERS[match[1].lower()] if match[1] else CHINESE_POWERS.get(match[2])
    return match[0] if power is None else f"*10^{power}"


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


# ---- dates and times ----

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
MONTH = (r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
         r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?")
DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
DATES = [re.compile(form, re.IGNORECASE | re.ASCII) for form in (
    rf"{DAY}(?: of)? {MONTH}(?:,? (?P<year>\d{{1,4}}))?",                                   # 20 June 1837
    rf"{MONTH} {DAY}(?:,? (?P<year>\d{{1,4}}))?",                                           # June 20, 1837
    rf"{MONTH},? (?P<year>\d{{4}})",                                                        # June 1837
    r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})",                          # 2014-07-05
    r"(?P<year>\d{4}) ?年(?: ?(?P<month>\d{1,2}) ?月(?: ?(?P<day>\d{1,2}) ?[日号])?)?",       # 2018年12月
    r"(?P<month>\d{1,2}) ?月 ?(?P<day>\d{1,2}) ?[日号]",                                     # 12月3日
    r"(?P<day>1[3-9]|[23]\d)([-/.])(?P<month>\d{1,2})\2(?P<year>\d{4})",                    # 26-04-2020
    r"(?P<month>\d{1,2})([-/.])(?P<day>1[3-9]|[23]\d)\2(?P<year>\d{4})",                    # 04/26/2020
    r"(?P<first>\d{1,2})([-/.])(?P<second>\d{1,2})\2(?P<year>\d{4})")]                      # 05/07/2014
TIME = re.compile(r"(\d{1,2})(?:[:.](\d\d))? ?([ap])\.? ?m\.?", re.IGNORECASE | re.ASCII)


def date_in(text: str) -> tuple | None:
    """A text that is a date, as (year, month, day, first, second); None for what it leaves out.

    05/07/2014 is in May or in July, so it has a first and a second number instead.
    """
    for form in DATES:
        found = form.fullmatch(text)
        if found:
            parts = found.groupdict()
            month = parts.get("month")
            if month and month[:3].lower() in MONTHS:
                parts["month"] = MONTHS.index(month[:3].lower()) + 1
            names = ("year", "month", "day", "first", "second")
            return tuple(int(parts[name]) if parts.get(name) else None for name in names)
    return None


def time_in(text: str) -> tuple | None:
    """A text that is a time of day with a.m. or p.m., as (hour, minute, a or p)."""
    found = TIME.fullmatch(text)
    if found is None:
        return None
    return Fraction(found[1]), Fraction(found[2] or 0), found[3].lower()
