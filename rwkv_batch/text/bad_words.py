"""Words that are never sampled, as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import RowError
from .tokenizer import Tokenizer


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> list[int]:
    """Returns the token ids of words: of each word, and of the word after a space.

    As in vLLM, the form with a space counts only where it is a single token too.

    Raises:
        RowError: code "bad_sampling": a word is more than one token. The engine bans tokens, not sequences of them.
    """
    found = []
    for word in words:
        stem = word.lstrip()
        ids = tokenizer.encode(stem)
        if len(ids) != 1:
            raise RowError(
                "bad_sampling",
                f"bad_words holds {word!r}, which is {len(ids)} tokens, {ids}; expected words of one token each. "
                "bad_token_ids bans tokens",
            )
        after_a_space = tokenizer.encode(f" {stem}")
        found += ids + (after_a_space if len(after_a_space) == 1 else [])
    return list(dict.fromkeys(found))
