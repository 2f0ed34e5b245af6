"""Answers in a form in which they can be compared, as graders of mathematics, multiple choice and short answers do."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import regex

Normalization = Literal["lower", "number", "letter", "latex", "punctuation", "articles", "spaces"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)

_SEPARATOR = re.compile(r"(?<=\d)(,|\{,\})(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"([+-]?)(\d*)\.?(\d*)\.?")
_AROUND_A_NUMBER = "$€£¥ %*\\"
_LETTER = re.compile(r"\W*([A-Za-z])\W*|[\s(*\[]*([A-Z])\s*[).:\]*].*", re.DOTALL)
_ARTICLE = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_UNIT = re.compile(r"(?<=.)\\(text|mbox|mathrm)\{ [^{}]*\}$")
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}")
_NAMED = re.compile(r"^\s*\\?[A-Za-z]\w?\s*=\s*(?=[^=]+$)")
_NUMERATOR = re.compile(r"\\frac(\w)")
_DENOMINATOR = regex.compile(r"(\\frac(\{(?:[^{}]++|(?2))*+\}))(\w)")
_SQUARE_ROOT = re.compile(r"\\sqrt(\w)")
_RATIO = re.compile(r"(-?\d+)/(\d+)")
_WITHOUT = (
    *("\\!", "\\,", "\\;", "\\:", "\\ ", "\\left", "\\right", "\\displaystyle", "\\$", "$", "\\%", "%"),
    *("^{\\circ}", "^\\circ", "\\circ"),
)
_SAME = {"\\tfrac": "\\frac", "\\dfrac": "\\frac", "{.": "{0.", "\\cdot": "\\times"}


def normalized(text: str, steps: Sequence[str]) -> str:
    """An answer after the steps of a list of `NORMALIZATIONS`, without white space at its ends."""
    for step in steps:
        text = _STEPS[step](text)
    return text.strip()


def number(text: str) -> str:
    """A number without separators of thousands, currency, percent sign and needless zeros; other text as it is."""
    found = _SEPARATOR.sub("", text.replace("−", "-")).strip(_AROUND_A_NUMBER + "\t\n")
    sign, rest = ("-", found[1:]) if found.startswith("-") else ("", found)  # "-$5"
    match = _NUMBER.fullmatch(sign + rest.strip(_AROUND_A_NUMBER))
    if match is None or not (match[2] or match[3]):
        return text
    whole, decimals = match[2].lstrip("0") or "0", match[3].rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    return f"-{value}" if match[1] == "-" and value != "0" else value


def letter(text: str) -> str:
    """The capital letter of a choice such as "(B)", "b." or "B) Paris"; other text as it is."""
    found = _LETTER.fullmatch(text.strip())
    return text if found is None else (found[1] or found[2]).upper()


def latex(text: str) -> str:
    r"""A formula without spaces, units, degrees, `\left` and `\text`; fractions as `\frac{1}{2}`, "x = 5" as "5"."""
    text = _UNIT.sub("", text.strip().rstrip("."))
    for left_out in _WITHOUT:
        text = text.replace(left_out, "")
    for one, other in _SAME.items():
        text = text.replace(one, other)
    text = _NAMED.sub("", _WORDS.sub(r"\1", text))
    text = "".join(text.split())
    text = f"0{text}" if re.fullmatch(r"\.\d+", text) else text
    text = _SQUARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _NUMERATOR.sub(r"\\frac{\1}", text)
    while (found := _DENOMINATOR.sub(r"\1{\3}", text)) != text:  # fractions in fractions
        text = found
    text = "\\frac{1}{2}" if text == "0.5" else text
    return _RATIO.sub(r"\\frac{\1}{\2}", text) if _RATIO.fullmatch(text) else text


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


_STEPS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "number": number,
    "letter": letter,
    "latex": latex,
    "punctuation": _without_punctuation,
    "articles": lambda text: " ".join(_ARTICLE.sub(" ", text).split()),
    "spaces": lambda text: " ".join(text.split()),
}
