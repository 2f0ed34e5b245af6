"""Tokenizers: ids of any text and bytes, texts of any ids, errors in their places."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import DIFFICULT, comparable, each, write

from rwkv_batch.errors import RowError
from rwkv_batch.text import tokenizer as tokenizer_module
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.tokenizer import RwkvTokenizer, Tokenizer
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY, ByteTrie


@pytest.fixture(scope="module")
def world() -> Tokenizer:
    tokenizer = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def official():
    module = pytest.importorskip("rwkv.rwkv_tokenizer", reason="the rwkv package defines the ids")
    return module.TRIE_TOKENIZER(str(Path(module.__file__).parent / "rwkv_vocab_v20230424.txt"))


@pytest.fixture(scope="module")
def pyrwkv():
    module = pytest.importorskip("pyrwkv_tokenizer", reason="no wheel for this Python")
    return module.RWKVTokenizer(vocab_filepath=str(WORLD_VOCABULARY))


def random_bytes(seed: int) -> bytes:
    """Bytes of every kind: uniform noise, ASCII, whitespace, and pieces of UTF-8."""
    rng = random.Random(seed)
    alphabets = [range(256), range(32, 127), b" \n\t", b"\xe4\xb8\xad\xf0\x9f\x98\x80 e"]
    return b"".join(bytes(rng.choices(rng.choice(alphabets), k=rng.randrange(60))) for _ in range(20))


def test_ids_equal_the_official_tokenizers_on_any_bytes(world: Tokenizer, official):
    samples = [random_bytes(seed) for seed in range(100)] + [text.encode() for text in DIFFICULT]
    for token_id in (1, 256, 257, 65529, 65528, 40000):  # a token, and all but its last byte, which is no such token
        samples += [official.idx2token[token_id], official.idx2token[token_id][:-1]]
    for data in samples:
        assert world.encode_bytes(data) == official.encodeBytes(data), data


def test_text_has_the_ids_of_its_bytes(world: Tokenizer):
    for text in [*DIFFICULT, "".join(DIFFICULT)]:
        assert world.encode(text) == world.encode_bytes(text.encode())


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_survives_the_round_trip(world: Tokenizer, text: str):
    ids = world.encode(text)
    assert ids == world.encode_bytes(text.encode())
    assert world.decode(ids) == text


def test_any_bytes_survive_the_round_trip(world: Tokenizer):
    for seed in range(50):
        data = random_bytes(seed)
        assert world.decode_bytes(world.encode_bytes(data)) == data


@given(texts=st.lists(st.one_of(st.text(), st.sampled_from(DIFFICULT)), max_size=8))
def test_world_has_the_ids_of_pyrwkv_tokenizer(world: Tokenizer, pyrwkv, texts: list[str]):
    encoded: list[Any] = world.encode_many(texts)
    assert [ids.tolist() for ids in encoded] == [pyrwkv.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in encoded)


def test_every_token_of_world_has_its_id(world: Tokenizer):
    tokens = {token: token_id for token_id, token in world._tokens.items()}
    encoded: list[Any] = world.encode_many_bytes(list(tokens))
    assert np.concatenate(encoded).tolist() == list(tokens.values())


def test_without_a_compiler_ids_and_errors_are_the_same(world: Tokenizer, tmp_path, monkeypatch: pytest.MonkeyPatch):
    small = write(tmp_path / "small.txt", "1 'a' 1", "2 'ab' 2")
    texts = ["aab", "", "abz", "\ud800", "ba"]
    native = [world.encode_many(DIFFICULT), RwkvTokenizer(small).encode_many(texts)]
    monkeypatch.setattr(tokenizer_module, "unavailable", lambda: "no compiler")
    plain = RwkvTokenizer(WORLD_VOCABULARY)
    assert isinstance(plain._trie, ByteTrie)
    python = [plain.encode_many(DIFFICULT), RwkvTokenizer(small).encode_many(texts)]
    assert list(map(comparable, python)) == list(map(comparable, native))
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 for ids in python[0])


def test_bad_texts_among_many_are_errors_in_their_places(world: Tokenizer, tmp_path: Path):
    path = write(tmp_path / "small.txt", "1 'a' 1", "2 'ab' 2", "7 'é' 2")
    texts = ["aabé", "a\ud800", "", "abz", "aaa"]
    tokenizer = RwkvTokenizer(path)
    assert comparable(tokenizer.encode_many(texts)) == each(tokenizer, texts)
    codes = [one.code for one in tokenizer.encode_many(texts) if isinstance(one, RowError)]
    assert codes == ["invalid_text", "unencodable_text"]
    assert comparable(tokenizer.encode_many(["abz", "ab"])) == each(tokenizer, ["abz", "ab"])
    bytes_tokenizer = load_tokenizer("bytes", vocab_size=257, model_path=None)
    for other in (world, bytes_tokenizer):
        assert comparable(other.encode_many(texts)) == each(other, texts)
        assert other.encode_many([]) == []
        assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 for ids in other.encode_many(DIFFICULT))


def test_decode_tolerates_every_id(world: Tokenizer):
    assert world.decode([0, 65530, 65535, 70000, -1]) == ""
    hello = world.encode("é")
    assert world.decode([*hello, 0, *hello, 65535]) == "éé"
    assert world.decode([0xE2 + 1, 0x82 + 1]) == "\ufffd"
    assert world.decode([0x61 + 1, 0xFF + 1, 0x62 + 1]) == "a\ufffdb"


def test_table_of_bytes(world: Tokenizer):
    table = world.token_bytes
    assert (len(table), world.max_token_id) == (65530, 65529)
    assert table[0] is None and None not in table[1:]
    assert table[1 + 0x41] == b"A"


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_lone_surrogates_are_row_errors(world: Tokenizer, text: str):
    for tokenizer in (world, load_tokenizer("bytes", vocab_size=257, model_path=None)):
        with pytest.raises(RowError, match="surrogate, U\\+D") as caught:
            tokenizer.encode(text)
        assert caught.value.code == "invalid_text"


def test_bytes_tokenizer():
    tokenizer = load_tokenizer("bytes", vocab_size=257, model_path=None)
    assert tokenizer.encode("aé\0") == [0x62, 0xC4, 0xAA, 1]
    assert tokenizer.encode_bytes(bytes(range(256))) == list(range(1, 257))
    assert tokenizer.decode([0, 0x62, 0xC4, 0xAA, 257]) == "aé"
    assert (tokenizer.max_token_id, tokenizer.name, tokenizer.token_bytes[:2]) == (256, "bytes", [None, b"\0"])


def test_fingerprint_is_of_the_ids_not_of_the_file(world: Tokenizer, tmp_path: Path):
    first = RwkvTokenizer(write(tmp_path / "a.txt", "1 'a' 1", "2 'b' 1"))
    same = RwkvTokenizer(write(tmp_path / "b.txt", '2 "b" 1', "", "1 b'a' 1"))
    other = RwkvTokenizer(write(tmp_path / "c.txt", "1 'b' 1", "2 'a' 1"))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert world.fingerprint not in (first.fingerprint, other.fingerprint)
