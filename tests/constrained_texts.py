"""Whether texts match a constraint, byte by byte."""

from __future__ import annotations

from rwkv_batch.text.constraint import Vocabulary
from rwkv_batch.text.constraint_grammar import grammar_of

BYTES = Vocabulary.of([None, *(bytes([byte]) for byte in range(256))], 257, 0)


def accepts(field: str, constraint: str, texts: list[str]) -> list[bool]:
    """Whether each text matches. `field` is "json_schema", "regex" or "grammar"."""
    matcher = BYTES.compile(grammar_of(field, constraint))
    assert not matcher.is_error(), matcher.get_error()
    found = []
    for text in texts:
        state, ids = matcher.deep_copy(), [byte + 1 for byte in text.encode()]
        found.append(state.try_consume_tokens(ids) == len(ids) and state.is_accepting())
    return found
