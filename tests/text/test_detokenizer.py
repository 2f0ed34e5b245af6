"""The detokenizer against `bytes.decode`, in native code and in Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.text import detokenizer as module
from rwkv_batch.text.detokenizer import Detokenizer

BYTES = [None, *(bytes([byte]) for byte in range(256))]


# A small alphabet makes matches, overlaps and broken UTF-8 common.
pieces = st.lists(st.sampled_from([0x61, 0x62, 0x0A, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80]), max_size=4).map(bytes)
stop_texts = st.text("ab\né😀", min_size=1, max_size=4)


@pytest.fixture(params=["native", "python"], scope="module")
def kind(request) -> str:
    if request.param == "native" and (reason := unavailable()):
        pytest.skip(reason)
    return request.param


def new_detokenizer(kind: str, token_bytes: list[bytes | None]) -> Detokenizer:
    with pytest.MonkeyPatch.context() as patch:
        if kind == "python":
            patch.setattr(module, "unavailable", lambda: "no compiler")
        made = Detokenizer(token_bytes)
    assert (made._table is None) == (kind == "python")
    return made


def check_texts(kind: str, table: list[bytes | None], texts: list[list[int]], limits: list[int]) -> None:
    """`texts` and `utf8` equal `bytes.decode` of each text's bytes."""
    made = new_detokenizer(kind, table)
    token_ids = np.array([i for ids in texts for i in ids], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, texts)])
    expected = []
    for ids, limit in zip(texts, limits, strict=True):
        data = b"".join(table[i] or b"" for i in ids if 0 <= i < len(table))
        expected.append((data if limit < 0 else data[:limit]).decode("utf-8", errors="replace"))
    assert made.texts(token_ids, offsets, np.array(limits, dtype=np.int64)) == expected
    utf8, ends = made.utf8(token_ids, offsets, np.array(limits, dtype=np.int64))
    assert (utf8.dtype, ends.dtype, len(utf8)) == (np.uint8, np.int64, ends[-1])
    assert [utf8[a:b].tobytes() for a, b in pairwise(ends)] == [text.encode() for text in expected]


# Bytes at the limits of UTF-8, and whole characters of every length.
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
    """All pairs of bytes, alone and after the first bytes of longer characters."""
    heads = [b"", b"\xe0\xa0", b"\xed\x9f", b"\xef\xbf", b"\xf0\x90", b"\xf0\x90\x80", b"\xf4\x8f", b"\xf4\x8f\xbf"]
    table = [*BYTES[1:], *heads]
    texts = [[256 + head, a, b] for head in range(len(heads)) for a in range(256) for b in range(256)]
    check_texts(kind, table, texts, [-1] * len(texts))


@pytest.mark.parametrize("offsets", [[0, 1, 0], [0, 1, 5], [-1, 1, 2], [0, 1]])
def test_offsets_that_leave_the_tokens_are_refused(kind, offsets):
    with pytest.raises(ValueError, match="offsets: got"):
        new_detokenizer(kind, BYTES).utf8(np.array([1, 2]), np.array(offsets), np.array([-1, -1]))
