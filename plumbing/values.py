"""What the value of a flag may be: functions for argparse's `type=`, whose complaint says what is allowed."""
import argparse
import math
from collections.abc import Callable
from typing import Any


def checked(read: Callable[[str], Any], allowed: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """Reads the text of a flag; what it cannot `read` or is not `allowed` is said not to be `what`."""
    def from_text(text: str) -> Any:
        try:
            number = read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not {what}") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not allowed(number):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return number
    return from_text


def whole(least: int) -> Callable[[str], int]:
    """A whole number, `least` or more."""
    return checked(int, lambda n: n >= least, f"a whole number of at least {least}")


not_negative = checked(float, lambda x: x >= 0, "a number of at least 0")
from_one = checked(float, lambda x: x >= 1, "a number of at least 1")
positive = checked(float, lambda x: x > 0, "a number above 0")
share = checked(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
positive_share = checked(float, lambda x: 0 < x <= 1, "a number above 0 and at most 1")
dual = checked(float, lambda x: x == 0 or x > 1, "0 or a number above 1")
chance = checked(float, lambda x: 0 < x < 1, "a number above 0 and below 1")
seconds = checked(float, lambda x: 0 < x <= 1e6, "a number above 0 and at most 1000000")
seed = checked(int, lambda n: 0 <= n < 1 << 32, "a whole number from 0 to 4294967295")
port = checked(int, lambda n: 0 <= n < 1 << 16, "a port from 0 to 65535")
