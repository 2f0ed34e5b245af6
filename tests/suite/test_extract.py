"""Answers in completions as models write them."""

from __future__ import annotations

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite import extract as module
from rwkv_batch.suite.extract import BOXED, ExtractError, check_pattern, extract, last_boxed, without_thought

GSM8K = r"#### (-?[0-9.,]+)"
FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
LETTER = r"(?i)answer is:? *\(?([A-J])\b"


@pytest.mark.parametrize(
    ("text", "patterns", "take", "found"),
    [
        ("Half of 36 is 18.\n#### 18", [GSM8K], "first", "18"),
        ("#### 18\n\nQuestion: 2 + 2?\n#### 4", [GSM8K], "first", "18"),
        ("#### 18, no:\n#### 17", [GSM8K], "last", "17"),
        ("She has 3 apples and 4 pears, so 7", [FLEXIBLE], "last", "7"),
        ("it costs $1,234.50 now 5", [FLEXIBLE], "first", "$1,234.50"),
        ("The answer is 1,234.", [GSM8K, r"answer is ([\d,]+)"], "first", "1,234"),
        ("Therefore, the Answer is (B).", [LETTER], "first", "B"),
        ("the answer is: c", [LETTER], "first", "c"),
        ("the answer is apples", [LETTER], "first", None),
        (r"so $\boxed{\frac{1}{2}}$.", [GSM8K, BOXED], "first", r"\frac{1}{2}"),
        ("  Paris \n", [], "first", "Paris"),
        (" \n", [], "first", None),
        ("no number", [GSM8K], "last", None),
        ("<a> </a>", ["<a>(.*?)</a>", "never"], "first", None),
        ("日本 答案：東京。", ["答案：(.+?)。"], "first", "東京"),
        ("12", [r"\d"], "first", "1"),
        ("12", [r"\d"], "last", "2"),
    ],
)
def test_real_answers(text: str, patterns: list[str], take: str, found: str | None) -> None:
    assert extract(text, patterns, take=take) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{5} then \boxed{7}", "7"),
        (r"\boxed{\text{a}\{x\}}", r"\text{a}\{x\}"),
        (r"\boxed{\left\{1, \frac{2}{3}\right\}}", r"\left\{1, \frac{2}{3}\right\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\fbox{9}", "9"),
        (r"$\boxed 42$ is it", "42"),
        (r"\boxed{\frac{1}{2}", None),
        ("boxed", None),
    ],
)
def test_boxed(text: str, found: str | None) -> None:
    assert last_boxed(text) == found


@pytest.mark.parametrize(
    ("text", "has_begun", "answer"),
    [
        ("<think>2 + 2 is 4</think>\n4", False, "\n4"),
        (" first 3, no: 4\n</think>4", True, "4"),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>it goes on", False, ""),
        ("\n<think", False, ""),
        ("it goes on", True, ""),
        ("4", False, "4"),
        ("I <think> so", False, "I <think> so"),
    ],
)
def test_thoughts(text: str, has_begun: bool, answer: str) -> None:
    assert without_thought(text, has_begun=has_begun) == answer


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("a(b", "missing ) at its end"),
        ("*a", "nothing to repeat at character 1, '*a'"),
        ("ab(?P<n>x)(?P=m)", "unknown group at character 14, '=m)'"),
        ("[", "unterminated character set at its end"),
    ],
)
def test_a_bad_expression_is_refused_with_its_position(pattern: str, place: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_pattern(pattern)
    assert str(caught.value) == f"got {pattern!r}, expected a regular expression: {place}"


@pytest.mark.parametrize("take", ["first", "last"])
def test_a_catastrophic_expression_ends(monkeypatch: pytest.MonkeyPatch, take: str) -> None:
    monkeypatch.setattr(module, "SEARCH_SECONDS", 0.05)
    with pytest.raises(ExtractError, match=r"'\(a\|aa\)\+\$' took more than 0.05 seconds in a text of 50,001 char"):
        extract("a" * 50_000 + "!", ["(a|aa)+$"], take=take)
