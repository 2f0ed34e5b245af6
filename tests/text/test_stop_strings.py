"""Stop strings against their definition, and native code against Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.engine.request import StopMatch
from rwkv_batch.text import stop_strings
from rwkv_batch.text.stop_strings import StopMatcher, StopStrings

BYTES = [None, *(bytes([byte]) for byte in range(256))]


def new_matcher(kind: str, token_bytes: list[bytes | None], num_slots: int) -> StopMatcher:
    with pytest.MonkeyPatch.context() as patch:
        if kind == "python":
            patch.setattr(stop_strings, "unavailable", lambda: "no compiler")
        matcher = StopMatcher(token_bytes, num_slots)
    assert (matcher._native is None) == (kind == "python")
    return matcher


@pytest.fixture(params=["native", "python"], scope="module")
def kind(request) -> str:
    if request.param == "native" and (reason := unavailable()):
        pytest.skip(reason)
    return request.param


def push(matcher: StopMatcher, slots: list[int], token_ids: list[int]) -> list[StopMatch]:
    return matcher.push(np.array(slots, dtype=np.int64), np.array(token_ids, dtype=np.int64))


def feed(matcher: StopMatcher, slot: int, token_ids: range | list[int]) -> tuple[int, str, int] | None:
    """Pushes ids until a stop string ends the text. Returns the number of ids, the stop string and the bytes left."""
    for count, token_id in enumerate(token_ids, start=1):
        if found := push(matcher, [slot], [token_id]):
            (match,) = found
            assert match.row == 0
            return count, match.stop_string, match.text_bytes
    return None


def naive(tokens: list[bytes], stop: StopStrings) -> tuple[int, str, int] | None:
    """The definition: the first match to end after the first `min_tokens` tokens; of those, the longest."""
    data, ignored = b"".join(tokens), len(b"".join(tokens[: stop.min_tokens]))
    matches = [
        (start + len(string.encode()), start, string)
        for string in stop.strings
        for start in range(len(data))
        if data.startswith(string.encode(), start) and start + len(string.encode()) > ignored
    ]
    if not matches:
        return None
    end, start, string = min(matches)
    count = next(n for n in range(1, len(tokens) + 1) if len(b"".join(tokens[:n])) >= end)
    return count, string, end if stop.include_in_output else start


# Few bytes, so that matches, overlaps and divided characters are common.
pieces = st.sampled_from(
    [b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9", b"\xa9a", b"b\xc3", b"\xf0\x9f", b"\x98\x80"]
)
settings_of_stops = st.builds(
    StopStrings,
    st.lists(st.text("abé😀", min_size=1, max_size=3), max_size=3).map(tuple),
    st.booleans(),
    st.integers(0, 5),
)


@given(tokens=st.lists(pieces, max_size=24), stop=settings_of_stops)
def test_equals_the_definition_however_tokens_divide_the_bytes(kind, tokens, stop):
    matcher = new_matcher(kind, [token or None for token in tokens], 1)
    matcher.start(0, stop)
    assert feed(matcher, 0, range(len(tokens))) == naive(tokens, stop)


@given(
    tokens=st.lists(pieces, min_size=1, max_size=8),
    stops=st.lists(settings_of_stops, min_size=1, max_size=4),
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 3), st.integers(0, 9)), st.dictionaries(st.integers(0, 3), st.just(0))
        ),
        max_size=30,
    ),
    data=st.data(),
)
def test_interleaved_and_restarted_slots_equal_texts_on_their_own(kind, tokens, stops, steps, data):
    """Each step starts new texts in some slots, and pushes tokens to some slots."""
    matcher = new_matcher(kind, list(tokens), 4)
    running: dict[int, tuple[StopStrings, list[bytes]]] = {}
    for pushed, begun in steps:
        for slot in begun:
            stop = data.draw(st.sampled_from(stops))
            matcher.start(slot, stop)
            running[slot] = (stop, [])
        expected = []
        for index, (slot, token_id) in enumerate(pushed.items()):
            if slot not in running:
                continue
            stop, text = running[slot]
            text.append(tokens[token_id] if token_id < len(tokens) else b"")
            match = naive(text, stop)
            if match is not None:
                expected.append(StopMatch(index, *match[1:]))
                del running[slot]
        assert push(matcher, list(pushed), list(pushed.values())) == expected


@given(
    data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=10), string=st.text(min_size=1, max_size=3)
)
def test_one_stop_string_cuts_where_find_does(kind, data: bytes, cuts: list[int], string: str):
    data += string.encode() + data
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    tokens = [data[a:b] for a, b in pairwise(bounds)]
    matcher = new_matcher(kind, list(tokens), 1)
    matcher.start(0, StopStrings((string,)))
    _, found, text_bytes = feed(matcher, 0, range(len(tokens)))
    assert (found, text_bytes) == (string, data.find(string.encode()))


def one_token(kind: str, token: bytes, stop: StopStrings) -> tuple[int, str, int] | None:
    matcher = new_matcher(kind, [token], 1)
    matcher.start(0, stop)
    return feed(matcher, 0, [0])


def test_stop_string_is_found_across_tokens_with_its_last_byte(kind):
    matcher = new_matcher(kind, BYTES, 1)
    matcher.start(0, StopStrings(("\n\nUser:",)))
    assert feed(matcher, 0, [byte + 1 for byte in b"yes\n\nUser: x"]) == (10, "\n\nUser:", 3)


def test_match_that_ends_in_the_middle_of_a_token_leaves_out_what_follows(kind):
    for include, expected in ((False, 3), (True, 6)):
        matcher = new_matcher(kind, [None, b"yes#", b"##no"], 1)
        matcher.start(0, StopStrings(("###",), include))
        assert feed(matcher, 0, [1, 2]) == (2, "###", expected)


def test_the_match_that_ends_first_counts_then_the_longest(kind):
    assert one_token(kind, b"abcd", StopStrings(("abcd", "bc"))) == (1, "bc", 1)
    assert one_token(kind, b"abcd", StopStrings(("bc", "abc"))) == (1, "abc", 0)
    assert one_token(kind, b"abab", StopStrings(("ab",))) == (1, "ab", 0)


def test_within_the_first_tokens_only_the_end_of_a_match_is_ignored(kind):
    matcher = new_matcher(kind, [b"a.", b".", b"b", b"<", b">"], 2)
    matcher.start(0, StopStrings((".", "!!!!"), min_tokens=2))
    assert feed(matcher, 0, [0, 1, 2, 1]) == (4, ".", 4)
    matcher.start(1, StopStrings(("<>",), min_tokens=1))
    assert feed(matcher, 1, [3, 4]) == (2, "<>", 0)


def test_tokens_without_bytes_add_nothing_and_count(kind):
    matcher = new_matcher(kind, [None, b"a"], 1)
    matcher.start(0, StopStrings(("a",), min_tokens=3))
    assert feed(matcher, 0, [0, 99, -1, 1]) == (4, "a", 0)


def test_a_text_that_has_ended_and_a_slot_without_text_take_no_tokens(kind):
    matcher = new_matcher(kind, [b"a"], 2)
    matcher.start(1, StopStrings(("a",)))
    assert push(matcher, [0, 1], [0, 0]) == [StopMatch(1, "a", 0)]
    assert push(matcher, [0, 1], [0, 0]) == []


def test_a_slot_that_does_not_exist_is_refused_and_nothing_changes(kind):
    matcher = new_matcher(kind, [b"a"], 2)
    matcher.start(0, StopStrings(("aa",)))
    for slot in (2, -1):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            push(matcher, [0, slot], [0, 0])
    assert feed(matcher, 0, [0, 0]) == (2, "aa", 0)


def test_long_stop_string_with_many_different_bytes(kind):
    string = "".join(map(chr, range(1, 3000)))
    matcher = new_matcher(kind, BYTES, 1)
    matcher.start(0, StopStrings((string,)))
    text = string[:2000].encode() + string.encode()
    assert feed(matcher, 0, [byte + 1 for byte in text]) == (len(text), string, len(string[:2000].encode()))


def test_the_matcher_keeps_what_it_looks_for(kind):
    """The matcher keeps the automaton alive, whose address native code has."""
    matcher = new_matcher(kind, BYTES, 1)
    for string in ("one", "two", "three"):
        matcher.start(0, StopStrings((string,)))
        for other in ("four", "five"):
            new_matcher(kind, BYTES, 1).start(0, StopStrings((other,)))
        assert feed(matcher, 0, [byte + 1 for byte in string.encode()]) == (len(string), string, 0)


def test_strings_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="surrogates"):
        StopStrings(("\ud800",))
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(("a", ""))


def test_equal_settings_are_equal():
    settings = [StopStrings(("a",)), StopStrings(("a",), True), StopStrings(("a",), False, 1), StopStrings(("a", "b"))]
    assert len({*settings, *settings, StopStrings(("a",))}) == 4
