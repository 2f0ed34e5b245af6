"""Answers in a form in which they can be compared."""

from __future__ import annotations

import pytest

from rwkv_batch.suite.normalize import NORMALIZATIONS, normalized


@pytest.mark.parametrize(
    ("step", "same"),
    [
        (
            "number",
            ["1234", "1,234", "1,234.", "$1,234.00", "1234.0", " 1234 ", r"1{,}234", r"\$1,234", "+1234", "€1234"],
        ),
        ("number", ["-5", "−5", "-$5", "-5.0", "-05", "$-5", "**-5**"]),
        ("number", ["0.5", ".5", "0.50", "0.5%", r"0.5\%"]),
        ("number", ["0", "-0", "0.0", "00"]),
        ("number", ["12345678901234567890123456789012", "12,345,678,901,234,567,890,123,456,789,012.0"]),
        ("letter", ["B", "b", "(B)", "B.", "**B**", "(B) Paris", "B) Paris", "B: Paris\nand more", " [b] "]),
        ("latex", [r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", "1/2", "0.5", r"x = \frac{1}{2}", r"\frac 1 2."]),
        ("latex", [r"\frac{\sqrt{3}}{4}", r"\frac{\sqrt3}{4}", r"$\frac{\sqrt{3}}4$"]),
        ("latex", [r"(1,2)", r"\left( 1,\, 2 \right)", "(1, 2)"]),
        ("latex", ["90", r"90^\circ", r"90^{\circ}", r"90\text{ degrees}", r"90\%", r"\$90"]),
        ("latex", ["Evelyn", r"\text{Evelyn}", r"\mathrm{Evelyn}"]),
        ("latex", ["0.25", ".25"]),
        ("latex", ["-3", " -3 .", "-3."]),
        ("lower", ["paris", "Paris", "PARIS "]),
        ("punctuation", ["dont stop", "don't stop!", "dont, stop."]),
        ("articles", ["cat sat on mat", "The cat sat on a mat", " the  cat sat on mat"]),
        ("spaces", ["a b", "a  b", "a\n\tb "]),
    ],
)
def test_equal_answers(step: str, same: list[str]) -> None:
    assert {normalized(text, [step]) for text in same} == {same[0]}


@pytest.mark.parametrize(
    ("step", "different"),
    [
        ("number", ["1.5", "15", "1,5", "-1.5", "1.2.3", "18 dollars", ".", "-", ""]),
        ("letter", ["A", "B", "A cat", "e.g. B", "AB", "Anna", "42"]),
        ("latex", [r"\frac{1}{3}", r"\frac{3}{1}", "13", "1/3/1", "x+y=3", r"\sqrt{13}", r"\sqrt{1}3"]),
        ("articles", ["another", "other", "then"]),
    ],
)
def test_different_answers(step: str, different: list[str]) -> None:
    assert len({normalized(text, [step]) for text in different}) == len(different)


def test_steps_are_done_in_order() -> None:
    assert normalized(r" \text{1,000} ", ["latex", "number"]) == "1000"
    assert normalized(r"\text{1,000}", ["number", "latex"]) == "1,000"
    assert normalized(" As it is ", []) == "As it is"


@pytest.mark.parametrize("step", NORMALIZATIONS)
@pytest.mark.parametrize("text", ["$1,234.50", "(b) The Answer", r"x=\dfrac12", "A  B\u2212c", "", "١٢"])
def test_a_second_time_changes_nothing(step: str, text: str) -> None:
    once = normalized(text, [step])
    assert normalized(once, [step]) == once
