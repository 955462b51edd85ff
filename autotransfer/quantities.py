"""Durations and counts as people write them: `10m`, `1h30m`, `20M`; and back again for reading."""

import math
import re
from decimal import Decimal

from autotransfer.errors import SpaceError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smhd])\s*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_COUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]*)?(?:e[0-9]{1,2})?|\.[0-9]+)\s*([kmgb]?)")
_LARGEST_COUNT = 10**15


def parse_duration(text: str | float) -> float:
    """Seconds from `90`, `90s`, `10m`, `1.5h`, `1h30m` or `2d`; a number is seconds already.

    Raises:
        SpaceError: it is not a duration, or not a positive and finite one.

    Example:
        >>> parse_duration("1h30m"), parse_duration(90)
        (5400.0, 90.0)
    """
    seconds = float(text) if isinstance(text, int | float) else _seconds(text.strip().lower())
    if seconds is None:
        raise SpaceError(
            f"'{text}' is not a duration. Write a number with a unit, such as 90s, 10m, 1.5h or 1h30m; "
            "a number alone is seconds."
        )
    if not (math.isfinite(seconds) and seconds > 0):
        raise SpaceError(f"a duration must be longer than zero and finite, but got '{text}'.")
    return seconds


def parse_count(text: str | int) -> int:
    """A positive whole number from `20M`, `1.5k`, `2e7`, `300_000` or `20000000`.

    `k`, `M` and `G` (or `B`) are thousands, millions and billions, in either case.

    Raises:
        SpaceError: it is not a count, or not a positive and whole one.

    Example:
        >>> parse_count("20M"), parse_count("1.5k")
        (20000000, 1500)
    """
    match = _COUNT.fullmatch(str(text).strip().lower().replace(",", ""))
    if match is None or isinstance(text, bool):
        raise SpaceError(
            f"'{text}' is not a count. Write a positive whole number, such as 20M, 1.5k or 300000 "
            "(k, M and G are thousands, millions and billions)."
        )
    number, unit = match.groups()
    count = Decimal(number.replace("_", "")) * _MULTIPLES[unit]
    if not 1 <= count <= _LARGEST_COUNT or count != count.to_integral_value():
        raise SpaceError(f"a count must be a whole number from 1 to {_LARGEST_COUNT:.0e}, but got '{text}'.")
    return int(count)


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, for reading.

    Example:
        >>> format_duration(3725), format_duration(90), format_duration(4.21)
        ('1h 2m', '1m 30s', '4.2s')
    """
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"


def format_count(count: float) -> str:
    """A count with three digits and a unit, for reading.

    Example:
        >>> format_count(21_300_000), format_count(999)
        ('21.3M', '999')
    """
    for unit, multiple in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= multiple:
            return f"{count / multiple:.3g}{unit}"
    return f"{count:.0f}"


def format_bytes(size: int) -> str:
    """A size in decimal units, for reading.

    Example:
        >>> format_bytes(1_250_000)
        '1.2 MB'
    """
    for unit, multiple in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= multiple:
            return f"{size / multiple:.1f} {unit}"
    return f"{size} B"


def _seconds(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return None
        total += float(part[1]) * _SECONDS[part[2]]
        end = part.end()
    return total if end == len(text) and end > 0 else None
