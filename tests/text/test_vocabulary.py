"""Vocabulary files, and the greedy longest match over their tokens."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_cases import write

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.greedy_encode import GreedyTrie
from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.text.vocabulary import ByteTrie, read_vocabulary

short_bytes = st.lists(st.sampled_from(b"abc\xff"), min_size=1, max_size=4).map(bytes)


@given(tokens=st.lists(short_bytes, max_size=12), pieces=st.lists(short_bytes, max_size=8))
def test_trie_equals_the_naive_longest_match(tokens: list[bytes], pieces: list[bytes]):
    vocabulary, data = dict(enumerate(tokens, start=1)), b"".join(pieces)
    naive, position = [], 0
    while position < len(data):
        matches = [(len(t), i) for i, t in vocabulary.items() if data.startswith(t, position)]
        if not matches:
            with pytest.raises(RowError, match=f"byte {position}, which is 0x{data[position]:02X}"):
                ByteTrie(vocabulary).encode(data)
            return
        length, token_id = max(matches)
        naive.append(token_id)
        position += length
    assert ByteTrie(vocabulary).encode(data) == naive


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@given(
    tokens=st.lists(st.tuples(st.integers(1, 20), st.one_of(short_bytes, st.binary(min_size=1, max_size=12)))),
    texts=st.lists(st.one_of(st.lists(short_bytes, max_size=8).map(b"".join), st.binary(max_size=20)), max_size=5),
)
@example(tokens=[(1, b"a" * 12), (2, b"a" * 9), (3, b"a\0"), (4, b"a"), (5, b"a")], texts=[b"a" * 40 + b"\0a"])
def test_native_trie_equals_the_trie_in_python(tokens: list[tuple[int, bytes]], texts: list[bytes]):
    vocabulary = dict(tokens)
    texts = [*texts, *vocabulary.values(), b"".join(vocabulary.values()), bytes(range(256))]
    ids, offsets, positions = GreedyTrie(vocabulary).encode(texts)
    for text, start, end, position in zip(texts, offsets, offsets[1:], positions, strict=False):
        try:
            expected = ByteTrie(vocabulary).encode(text)
        except RowError as error:
            assert f"at byte {position}," in error.message
            expected = ByteTrie(vocabulary).encode(text[:position])
        else:
            assert position == -1
        assert ids[start:end].tolist() == expected


@pytest.mark.filterwarnings("ignore:.*invalid escape")
@given(
    tokens=st.lists(
        st.text(
            st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("'\"\\\n\0 \x0c\u2028")), min_size=1
        ),
        min_size=1,
        max_size=6,
    ),
    forms=st.lists(st.sampled_from(["repr", "single", "double", "bytes"]), min_size=6, max_size=6),
)
def test_a_line_has_the_bytes_of_its_literal(tmp_path_factory, tokens: list[str], forms: list[str]):
    literals = []
    for token, form in zip(tokens, forms, strict=False):
        quote = {"single": "'", "double": '"'}.get(form)
        literal = f"{quote}{token}{quote}" if quote else repr(token.encode() if form == "bytes" else token)
        try:
            value = ast.literal_eval(literal)
        except (ValueError, SyntaxError):
            value = None
        # A line break ends a line, also inside a literal.
        valid = isinstance(value, (str, bytes)) and value and "\n" not in literal and "\r" not in literal
        literals.append((literal, value) if valid else (repr(token), token))
    values = [value.encode() if isinstance(value, str) else value for _, value in literals]
    lines = [
        f"{i} {literal} {len(v)}" for i, ((literal, _), v) in enumerate(zip(literals, values, strict=True), start=1)
    ]
    path = tmp_path_factory.mktemp("vocabulary") / "any.txt"
    assert read_vocabulary(write(path, *lines)) == dict(enumerate(values, start=1))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x 'b' 1", "id field is 'x'"),
        ("-3 'b' 1", "id field is '-3'"),
        ("2 'b' y", "length field is 'y'"),
        ("2", "length field is ''"),
        ("2 'b 1", "not a Python string"),
        ("2 ['b'] 1", "not a Python string"),
        ("2 __import__('os').getpid() 1", "not a Python string"),
        ("2 " + "(" * 5000 + " 1", "not a Python string"),
        ("2 'bc' 1", "has 2 bytes"),
        ("2 'é' 1", "has 2 bytes"),
        ("2 '' 0", "empty token"),
        ("0 'b' 1", "id 0"),
        ("1 'b' 1", "already taken by b'a'"),
    ],
)
def test_malformed_vocabulary_names_file_line_and_reason(tmp_path: Path, line: str, reason: str):
    path = write(tmp_path / "broken.txt", "1 'a' 1", line)
    with pytest.raises(ConfigurationError, match=f"broken.txt, line 2: .*{reason}"):
        read_vocabulary(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe1"])
def test_vocabulary_that_is_none_names_the_file(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"broken\.txt"):
        read_vocabulary(path)
