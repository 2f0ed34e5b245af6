from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch import detokenizer as module
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.detokenizer import BatchDetokenizer, Detokenizer

BYTES = [None, *(bytes([byte]) for byte in range(256))]


def feed(detokenizer: Detokenizer, tokens: int) -> str | None:
    """Push ids 0, 1, … until a stop string ends the text; returns it."""
    return next((found for found in map(detokenizer.push, range(tokens)) if found is not None), None)


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
    found = feed(detokenizer, len(tokens))
    stop, data = naive(b"".join(tokens), len(b"".join(tokens[:min_tokens])), stops, include)
    assert found == stop
    assert detokenizer.text() == data.decode("utf-8", errors="replace")


@given(
    data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=10), stop=st.text(min_size=1, max_size=3)
)
def test_one_stop_string_cuts_where_find_does(data: bytes, cuts: list[int], stop: str):
    data += stop.encode() + data
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    detokenizer = Detokenizer([data[a:b] for a, b in pairwise(bounds)], (stop,))
    found = feed(detokenizer, len(bounds) - 1)
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
    assert [detokenizer.push(i) for i in range(4)] == [None, None, None, "."]
    assert detokenizer.text() == "a..b"


def test_ids_without_bytes_add_nothing():
    detokenizer = Detokenizer([None, b"a"], ("b",))
    assert [detokenizer.push(i) for i in (0, 1, 99)] == [None] * 3
    assert detokenizer.text() == "a"


def test_stop_string_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        Detokenizer(BYTES, ("\ud800",))


@pytest.fixture(params=["native", "python"], scope="module")
def kind(request) -> str:
    if request.param == "native" and (reason := unavailable()):
        pytest.skip(reason)
    return request.param


def new_detokenizer(kind: str, token_bytes: list[bytes | None]) -> BatchDetokenizer:
    with pytest.MonkeyPatch.context() as patch:
        if kind == "python":
            patch.setattr(module, "unavailable", lambda: "no compiler")
        made = BatchDetokenizer(token_bytes)
    assert (made._table is None) == (kind == "python")
    return made


def check_texts(kind: str, table: list[bytes | None], texts: list[list[int]], limits: list[int]) -> None:
    """Both forms equal what `bytes.decode` makes of each text's bytes."""
    made = new_detokenizer(kind, table)
    token_ids = np.array([i for ids in texts for i in ids], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, texts)])
    expected = []
    for ids, limit in zip(texts, limits, strict=True):
        data = b"".join(table[i] or b"" for i in ids if 0 <= i < len(table))
        expected.append((data if limit < 0 else data[:limit]).decode("utf-8", errors="replace"))
    assert made.texts(token_ids, offsets, np.array(limits, dtype=np.int64)) == expected
    data, ends = made.utf8(token_ids, offsets, np.array(limits, dtype=np.int64))
    assert (data.dtype, ends.dtype, len(data)) == (np.uint8, np.int64, ends[-1])
    assert [data[a:b].tobytes() for a, b in pairwise(ends)] == [text.encode() for text in expected]


# Bytes at the borders of what UTF-8 allows, and whole characters of every length.
border_bytes = st.sampled_from(
    [0x41, 0x7F, *range(0x80, 0x100, 0x10), 0x8F, 0x9F, 0xBF, 0xC1, 0xC2, 0xDF, 0xED, 0xEF, 0xF4]
)
broken_tokens = st.one_of(
    st.lists(border_bytes, max_size=5).map(bytes),
    st.binary(max_size=5),
    st.characters(exclude_categories=["Cs"]).map(lambda character: character.encode()),
    st.just(b"twenty bytes of ASCII"),
    st.none(),
)


@given(
    table=st.lists(broken_tokens, max_size=8),
    texts=st.lists(st.tuples(st.lists(st.integers(-1, 9), max_size=12), st.integers(-1, 40)), max_size=5),
)
def test_many_texts_equal_bytes_decode(kind, table, texts):
    check_texts(kind, table, [ids for ids, _ in texts], [limit for _, limit in texts])


def test_every_beginning_of_a_character_equals_bytes_decode(kind):
    """All pairs of bytes, and all pairs behind the beginnings of longer characters."""
    heads = [b"", b"\xe0\xa0", b"\xed\x9f", b"\xef\xbf", b"\xf0\x90", b"\xf0\x90\x80", b"\xf4\x8f", b"\xf4\x8f\xbf"]
    table = [*BYTES[1:], *heads]
    texts = [[256 + head, a, b] for head in range(len(heads)) for a in range(256) for b in range(256)]
    check_texts(kind, table, texts, [-1] * len(texts))


@pytest.mark.parametrize("offsets", [[0, 1, 0], [0, 1, 5], [-1, 1, 2], [0, 1]])
def test_offsets_that_leave_the_tokens_are_refused(kind, offsets):
    with pytest.raises(ValueError, match="offsets: got"):
        new_detokenizer(kind, BYTES).utf8(np.array([1, 2]), np.array(offsets), np.array([-1, -1]))
