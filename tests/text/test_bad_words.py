"""Words that are never sampled: the ids are those that vLLM would ban."""

from __future__ import annotations

import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.text.bad_words import bad_word_ids
from rwkv_batch.text.tokenizer import BytesTokenizer, GreedyTokenizer

WORDS = GreedyTokenizer({1: b"a", 2: b"b", 3: b" ", 4: b" a", 5: b"bad", 6: b" bad", 7: b"c"}, "words")


def test_a_word_is_banned_at_the_beginning_and_after_a_space() -> None:
    assert bad_word_ids(WORDS, ["a"]) == [1, 4]
    assert bad_word_ids(WORDS, [" bad", "a", "bad"]) == [5, 6, 1, 4]
    assert bad_word_ids(WORDS, []) == []


def test_a_form_of_several_tokens_after_a_space_does_not_count() -> None:
    assert bad_word_ids(WORDS, ["c"]) == [7]
    assert bad_word_ids(BytesTokenizer(), ["a"]) == [98]


@pytest.mark.parametrize(("word", "ids"), [("ab", r"\[1, 2\]"), ("bad a", r"\[5, 4\]"), ("  ", r"\[\]")])
def test_a_word_of_several_tokens_is_refused(word: str, ids: str) -> None:
    with pytest.raises(RowError, match=rf"bad_words holds '{word}', which is \d tokens, {ids}; expected") as caught:
        bad_word_ids(WORDS, ["a", word])
    assert caught.value.code == "bad_sampling"
