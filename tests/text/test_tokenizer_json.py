"""Tokenizers of `tokenizer.json` files: ids and texts are those of the package `tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizer_cases import DIFFICULT, comparable, each

from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.tokenizer import GreedyTokenizer
from rwkv_batch.text.tokenizer_json import _byte_level_alphabet
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY, read_vocabulary


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE such as RWKV-4's, trained on a few words."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, 世界 hello\n\n"] * 5, trainer)
    backend.add_tokens([AddedToken("    ")])
    backend.enable_truncation(3)
    backend.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return backend


def test_byte_level_tokenizer_json(tmp_path: Path, byte_level):
    path = tmp_path / "tokenizer.json"
    byte_level.save(str(path))
    byte_level.no_truncation()
    tokenizer = load_tokenizer("auto", vocab_size=500, model_path=tmp_path)
    assert tokenizer.name == "tokenizer.json"
    assert tokenizer.max_token_id == byte_level.get_vocab_size() - 1
    assert tokenizer.token_bytes[0] is None and None not in tokenizer.token_bytes[1:]
    assert tokenizer.token_bytes[-1] == b"    "
    assert comparable(tokenizer.encode_many([*DIFFICULT, "\ud800"])) == each(tokenizer, [*DIFFICULT, "\ud800"])
    assert comparable(tokenizer.encode_many_bytes([b"a\xff", b"hello"]))[1] == tokenizer.encode("hello")
    for text in [*DIFFICULT, "hello world, 世界    hello"]:
        assert tokenizer.encode(text) == byte_level.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    every_id = range(tokenizer.max_token_id + 1)
    assert [tokenizer.decode([i]) for i in every_id] == [byte_level.decode([i]) for i in every_id]
    with pytest.raises(RowError, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(RowError, match="not UTF-8"):
        tokenizer.encode_bytes(b"a\xff")


def test_sentencepiece_tokenizer_json(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>"])
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    tokenizer = load_tokenizer(str(path), vocab_size=300, model_path=None)
    assert tokenizer.decode_bytes(tokenizer.encode("a aé 漢")) == "a aé 漢".encode()
    assert tokenizer.token_bytes[: 1 + 0x0B] == [None, *(bytes([byte]) for byte in range(11))]


def test_tokenizer_json_without_bytes_is_refused(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    with pytest.raises(ConfigurationError, match="byte-level BPE"):
        load_tokenizer(str(path), vocab_size=300, model_path=None)
    for content in ("{", '{"model": 1}'):
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
            load_tokenizer(str(path), vocab_size=300, model_path=None)


# RWKV's vocabularies as tokenizer.json

PLACEHOLDER = "\ue000{}\ue001"


def greedy_json(path: Path, tokens: dict[int, bytes], size: int) -> Path:
    """Writes the file of a published RWKV-7 folder: greedy longest match as WordPiece over the whole text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = _byte_level_alphabet()
    spelling = {byte[0]: character for character, byte in alphabet.items()}
    vocabulary = {"<|endoftext|>": 0} | {"".join(spelling[b] for b in token): i for i, token in tokens.items()}
    vocabulary |= {PLACEHOLDER.format(i): i for i in range(1, size) if i not in tokens}
    backend = Backend(
        models.WordPiece(
            vocab=vocabulary,
            unk_token="<|endoftext|>",
            max_input_chars_per_word=2**31 - 1,
            continuing_subword_prefix="",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    description = json.loads(backend.to_str())
    path.write_text(json.dumps(description), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return greedy_json(tmp_path_factory.mktemp("world") / "tokenizer.json", read_vocabulary(WORLD_VOCABULARY), 65536)


def test_the_world_vocabulary_as_tokenizer_json_is_world(world_json: Path):
    tokenizer = load_tokenizer("auto", vocab_size=65536, model_path=world_json.parent)
    world = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert (tokenizer.name, tokenizer.max_token_id, tokenizer.fingerprint) == ("world", 65529, world.fingerprint)
    texts = [*DIFFICULT, "a <|endoftext|> b", PLACEHOLDER.format(65530)]
    assert comparable(tokenizer.encode_many(texts)) == comparable(world.encode_many(texts))
    assert 0 not in tokenizer.encode("a <|endoftext|> b")


def test_special_tokens_of_world_are_parsed_on_request(world_json: Path):
    world = load_tokenizer("world", vocab_size=65536, model_path=None)
    tokenizer = load_tokenizer(str(world_json), vocab_size=65536, model_path=None, parse_special_tokens=True)
    assert tokenizer.encode("a <|endoftext|>") == [*world.encode("a "), 0]
    assert tokenizer.encode("<|endoftext|><|endoftext|>x") == [0, 0, *world.encode("x")]
    assert tokenizer.encode("plain") == world.encode("plain")
    assert tokenizer.fingerprint != world.fingerprint
    assert tokenizer.token_bytes[0] is None


def trie_json(path: Path, tokens: dict[int, bytes], size: int, **changes: Any) -> Path:
    """Writes a file of the model type `RwkvTrie`. A change replaces a part of the file; "vocab", of its model."""
    description = json.loads(greedy_json(path, tokens, size).read_text(encoding="utf-8"))
    vocabulary = changes.pop("vocab", description["model"]["vocab"])
    description |= {"model": {"type": "RwkvTrie", "vocab": vocabulary}, "pre_tokenizer": None, **changes}
    path.write_text(json.dumps(description), encoding="utf-8")
    return path


def test_a_trie_of_world_s_vocabulary_is_world(tmp_path: Path):
    path = trie_json(tmp_path / "tokenizer.json", read_vocabulary(WORLD_VOCABULARY), 65536)
    tokenizer = load_tokenizer("auto", vocab_size=65536, model_path=tmp_path)
    world = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert (tokenizer.name, tokenizer.max_token_id, tokenizer.fingerprint) == ("world", 65529, world.fingerprint)
    parsed = load_tokenizer(str(path), vocab_size=65536, model_path=None, parse_special_tokens=True)
    assert parsed.encode("a<|endoftext|>") == [*world.encode("a"), 0]


def test_a_trie_of_another_vocabulary_is_not_world(tmp_path: Path):
    """Even where the ids are World's and the bytes of a single token differ."""
    tokens = read_vocabulary(WORLD_VOCABULARY)
    path = trie_json(tmp_path / "tokenizer.json", {**tokens, 40000: tokens[40001], 40001: tokens[40000]}, 65536)
    other = load_tokenizer("auto", vocab_size=65536, model_path=tmp_path)
    assert (other.name, other.max_token_id) == ("tokenizer.json", 65535)
    assert other.token_bytes[40000] == tokens[40001] and other.token_bytes[0] is None
    few = {byte + 1: bytes([byte]) for byte in range(256)} | {257: "é".encode()}
    trie_json(path, few, 300)
    tokenizer = load_tokenizer("auto", vocab_size=300, model_path=tmp_path)
    assert tokenizer.encode("né<|endoftext|>")[:3] == [111, 257, 61]
    assert (tokenizer.max_token_id, tokenizer.token_bytes[299]) == (299, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": None}, "without a vocabulary.*name the tokenizer: world"),
        ({"vocab": {"a": "1"}}, "without a vocabulary"),
        ({"vocab": {}}, "the vocabulary is empty"),
        ({"normalizer": {"type": "NFC"}}, "with a normalizer, a pre-tokenizer or added tokens"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "with a normalizer, a pre-tokenizer or added tokens"),
        ({"added_tokens": [{"content": "ab", "id": 9, "special": False}]}, "added tokens that are not special"),
        ({"added_tokens": [{"special": True}]}, "not a tokenizer.json: KeyError"),
        ({"added_tokens": [5]}, "not a tokenizer.json: AttributeError"),
        ({"added_tokens": [{"content": 5, "id": "x", "special": True}]}, "not a tokenizer.json"),
        ({"pre_tokenizer": 5}, "not a tokenizer.json: AttributeError"),
    ],
    ids=str,
)
def test_a_trie_that_is_more_than_a_vocabulary_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    path = trie_json(tmp_path / "tokenizer.json", {1: b"a"}, 2, **changes)
    with pytest.raises(ConfigurationError, match=message):
        load_tokenizer(str(path), vocab_size=300, model_path=None)


def test_another_greedy_vocabulary_is_not_world(tmp_path: Path):
    tokens = {byte + 1: bytes([byte]) for byte in range(255)} | {257: b"ab", 258: b"abc"}
    path = greedy_json(tmp_path / "tokenizer.json", tokens, 300)
    tokenizer = load_tokenizer(str(path), vocab_size=300, model_path=None)
    assert isinstance(tokenizer, GreedyTokenizer)
    assert (tokenizer.name, tokenizer.max_token_id) == ("tokenizer.json", 299)
    assert tokenizer.encode("abcab") == [258, 257]
    assert [tokenizer.token_bytes[i] for i in (0, 256, 258, 299)] == [None, None, b"abc", None]
    with pytest.raises(RowError, match="0xFF"):
        tokenizer.encode_bytes(b"a\xff")


def test_a_wordpiece_model_of_long_words_is_refused(tmp_path: Path):
    description = json.loads(greedy_json(tmp_path / "tokenizer.json", {1: b"a"}, 2).read_text(encoding="utf-8"))
    description["model"]["continuing_subword_prefix"] = "##"
    for longest, is_served in ((2**31 - 1, False), (201, False), (200, True)):
        description["model"]["max_input_chars_per_word"] = longest
        (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
        if is_served:
            assert load_tokenizer("auto", vocab_size=300, model_path=tmp_path) is not None
        else:
            with pytest.raises(ConfigurationError, match=r"grows faster than .* square; expected at most 200"):
                load_tokenizer("auto", vocab_size=300, model_path=tmp_path)


def test_special_tokens_in_a_text(tmp_path: Path, byte_level):
    path = tmp_path / "tokenizer.json"
    byte_level.save(str(path))
    as_text, parsed = (
        load_tokenizer(str(path), vocab_size=500, model_path=None, parse_special_tokens=parses)
        for parses in (False, True)
    )
    text = "hello <|endoftext|> hello"
    assert 0 not in as_text.encode(text)
    assert as_text.decode(as_text.encode(text)) == text
    assert parsed.encode(text).count(0) == 1
    assert as_text.fingerprint != parsed.fingerprint


@pytest.mark.parametrize(("size", "name"), [(50277, "20B"), (50304, "20B"), (50432, "20B"), (65536, "world")])
def test_a_pile_vocabulary_may_be_filled_up(tmp_path: Path, byte_level, size: int, name: str):
    byte_level.save(str(tmp_path / "20B_tokenizer.json"))
    tokenizer = load_tokenizer("auto", vocab_size=size, model_path=tmp_path / "model.pth")
    assert tokenizer.name.startswith(name)


def test_dropout_is_left_out(tmp_path: Path, byte_level, caplog: pytest.LogCaptureFixture):
    description = json.loads(byte_level.to_str())
    description["model"]["dropout"] = 0.5
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    tokenizer = load_tokenizer(str(path), vocab_size=500, model_path=None)
    assert "dropout" in caplog.text
    assert len({tuple(tokenizer.encode("hello world, hello world, hello")) for _ in range(20)}) == 1


class _Failing:
    """A backend that panics, as pyo3 does, at some texts."""

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[SimpleNamespace]:
        if any("bad" in text for text in texts):
            raise self.error("the backtracking limit is reached")
        return [SimpleNamespace(ids=[len(text)]) for text in texts]

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error


def test_a_text_at_which_the_package_fails_is_an_error_of_its_own(tmp_path, byte_level):
    class PanicException(BaseException):
        pass

    path = tmp_path / "tokenizer.json"
    byte_level.save(str(path))
    tokenizer: Any = load_tokenizer(str(path), vocab_size=500, model_path=None)
    tokenizer._backend = _Failing(PanicException)
    good, bad = tokenizer.encode_many(["good", "bad"])
    assert good.tolist() == [4]
    assert (bad.code, "backtracking limit" in bad.message) == ("unencodable_text", True)
    tokenizer._backend = _Failing(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode_many(["bad"])


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "{}", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}']
)
def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json: "):
        load_tokenizer("auto", vocab_size=300, model_path=tmp_path)
