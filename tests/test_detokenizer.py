from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.detokenizer import Detokenizer

BYTES = [None, *(bytes([byte]) for byte in range(256))]


def feed(detokenizer: Detokenizer, tokens: int) -> tuple[str | None, list[str]]:
    """Push ids 0, 1, … until a stop string ends the text; returns it, and the deltas on the way with the final one."""
    deltas, found = [], None
    for token_id in range(tokens):
        found = detokenizer.push(token_id)
        deltas.append(detokenizer.delta())
        if found is not None:
            break
    return found, [*deltas, detokenizer.delta(final=True)]


def naive(data: bytes, ignored: int, stops: tuple[str, ...], include: bool) -> tuple[str | None, bytes]:
    """By definition: of all matches that end behind the first `ignored` bytes, the earliest end, then the longest."""
    matches = [
        (start + len(stop.encode()), start, stop)
        for stop in stops
        for start in range(len(data))
        if data.startswith(stop.encode(), start) and start + len(stop.encode()) > ignored
    ]
    if not matches:
        return None, data
    end, start, stop = min(matches)
    return stop, data[: end if include else start]


# A small alphabet makes matches, overlaps and broken UTF-8 common.
pieces = st.lists(st.sampled_from([0x61, 0x62, 0x0A, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80]), max_size=4).map(bytes)
stop_texts = st.text("ab\né😀", min_size=1, max_size=4)


@given(
    tokens=st.lists(pieces, max_size=24),
    stops=st.lists(stop_texts, max_size=3).map(tuple),
    include=st.booleans(),
    min_tokens=st.integers(0, 5),
)
def test_equals_the_naive_definition_however_tokens_divide_the_bytes(tokens, stops, include, min_tokens):
    detokenizer = Detokenizer([token or None for token in tokens], stops, include, min_tokens)
    found, deltas = feed(detokenizer, len(tokens))
    stop, data = naive(b"".join(tokens), len(b"".join(tokens[:min_tokens])), stops, include)
    assert found == stop
    assert detokenizer.text() == data.decode("utf-8", errors="replace")
    assert "".join(deltas) == detokenizer.text()
    assert found is None or deltas[-1] == "", "a stop string decides everything"


@given(
    data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=10), stop=st.text(min_size=1, max_size=3)
)
def test_one_stop_string_cuts_where_find_does(data: bytes, cuts: list[int], stop: str):
    data += stop.encode() + data
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    detokenizer = Detokenizer([data[a:b] for a, b in pairwise(bounds)], (stop,))
    found, _ = feed(detokenizer, len(bounds) - 1)
    assert found == stop
    assert detokenizer.text() == data[: data.find(stop.encode())].decode("utf-8", errors="replace")


def push_all(detokenizer: Detokenizer, data: bytes) -> list[str | None]:
    return [detokenizer.push(byte + 1) for byte in data]


def test_stop_string_is_found_across_tokens_with_its_last_byte():
    detokenizer = Detokenizer(BYTES, ("\n\nUser:",))
    assert push_all(detokenizer, b"yes\n\nUser:") == [None] * 9 + ["\n\nUser:"]
    assert detokenizer.text() == "yes"


def test_text_behind_the_stop_string_in_the_same_token_is_dropped():
    for include, expected in ((False, "yes"), (True, "yes###")):
        detokenizer = Detokenizer([None, b"yes#", b"##no"], ("###",), include)
        assert [detokenizer.push(1), detokenizer.push(2)] == [None, "###"]
        assert detokenizer.text() == expected


def test_the_match_that_ends_first_counts_then_the_longest():
    assert Detokenizer([b"abcd"], ("abcd", "bc")).push(0) == "bc"
    assert Detokenizer([b"abcd"], ("bc", "abc")).push(0) == "abc"
    assert Detokenizer([b"abab"], ("ab",)).push(0) == "ab"


def test_stop_string_within_the_first_tokens_is_text():
    detokenizer = Detokenizer([b"a.", b".", b"b", b"."], (".", "!!!!"), min_tokens=2)
    deltas = [(detokenizer.push(i), detokenizer.delta()) for i in range(4)]
    assert deltas == [(None, "a."), (None, "."), (None, "b"), (".", "")]
    assert detokenizer.text() == "a..b"


def test_incomplete_utf8_is_kept_and_held_back():
    detokenizer = Detokenizer(BYTES)
    push_all(detokenizer, "é".encode()[:1])
    assert detokenizer.delta() == ""
    assert detokenizer.text() == "\ufffd"
    push_all(detokenizer, "é".encode()[1:])
    assert (detokenizer.delta(), detokenizer.text()) == ("é", "é")


def test_delta_holds_back_what_may_begin_a_stop_string():
    detokenizer = Detokenizer(BYTES, ("END",))
    deltas = []
    for byte in b"aENENx":
        detokenizer.push(byte + 1)
        deltas.append(detokenizer.delta())
    assert deltas == ["a", "", "", "EN", "", "ENx"]
    assert detokenizer.delta(final=True) == ""


def test_ids_without_bytes_add_nothing():
    detokenizer = Detokenizer([None, b"a"], ("b",))
    assert [detokenizer.push(i) for i in (0, 1, 99)] == [None] * 3
    assert detokenizer.text() == "a"


def test_stop_string_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        Detokenizer(BYTES, ("\ud800",))
