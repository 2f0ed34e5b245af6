"""Numbers, times and names in words, as people read them."""

from __future__ import annotations

from datetime import datetime

MINUTE, HOUR, DAY = 60, 3600, 86400
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def count(number: float) -> str:
    """A number of things, with commas: "1,234,567"."""
    return f"{number:,.0f}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes an s: "1 row", "2,000 rows"."""
    return f"{count(number)} {noun if number == 1 else f'{noun}s'}"


def large(number: float) -> str:
    """A number of things in few characters: "1,234,567", but "12.35 million" from ten million on."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if number >= size * (1 if unit == "billion" else 10):
            return f"{number / size:,.4g} {unit}"
    return count(number)


def rounded(number: float) -> str:
    """A measured number with about three digits: "12,300", "45.6", "0.0123"."""
    if not number:
        return "0"
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.3g}"


def percent(share: float) -> str:
    """A share in percent: "61 %", "0.4 %", "99.9 %". Only a share of 0 is "0 %", and only one of 1 is "100 %"."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share * 100:.0f} %" if 0.1 <= share <= 0.9 else f"{share * 100:.1f} %"


def duration(seconds: float) -> str:
    """A length of time with its two largest units: "0.42 s", "34 s", "4 min 12 s", "1 h 23 min", "2 d 3 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s" if not seconds else "< 0.01 s"
    whole = round(seconds)
    for size, unit, smaller, part in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def moment(seconds: float) -> str:
    """A time in ISO 8601 with the time zone of this machine, from seconds since 1970: "2026-11-25T23:26:04+01:00"."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def date(iso: str) -> str:
    """A time of `moment` for people: "2026-11-25 23:26:04 +01:00"."""
    day, clock = iso[:10], iso[11:19]
    return f"{day} {clock} {'UTC' if iso[19:] == '+00:00' else iso[19:]}"


def size(num_bytes: float) -> str:
    """A number of bytes in the largest fitting unit: "22.2 GiB"."""
    value = float(num_bytes)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and how many characters are left out."""
    return text if len(text) <= most else f"{text[:most]}… ({count(len(text) - most)} more characters)"
