from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.greedy_encode import GreedyTrie
from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.text import tokenizer as tokenizer_module
from rwkv_batch.text.load_tokenizer import WORLD_VOCABULARY, load_tokenizer
from rwkv_batch.text.tokenizer import RwkvTokenizer, Tokenizer
from rwkv_batch.text.vocabulary import ByteTrie, read_vocabulary

DIFFICULT = [
    "",
    "\0",
    "\ufeffBOM",
    "\ufffd",
    "\U0010ffff",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🏳️‍🌈 flag",
    "漢字かな交じり文、한국어, 中文。",
    "e\u0301 n\u0303 a\u0308\u0328 Z̷̢a̴l̶g̸o̶",
    "שלום עולם مرحبا بالعالم नमस्ते",
    " " * 1000,
    "\n" * 1000,
    "\n \n\t\t \r\n" * 50,
    "-" * 79,
    "#",
    "def f(x):\n    return x ** 2\n\n\nclass A:\n",
]


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
    encoded = world.encode_many(texts)
    assert [ids.tolist() for ids in encoded] == [pyrwkv.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in encoded)


def test_every_token_of_world_has_its_id(world: Tokenizer):
    tokens = {token: token_id for token_id, token in world._tokens.items()}
    encoded = world.encode_many_bytes(list(tokens))
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
    assert all(ids.dtype == np.int32 for ids in python[0])


def comparable(encoded: list[np.ndarray | RowError]) -> list[list[int] | tuple[str, str]]:
    return [(one.code, one.message) if isinstance(one, RowError) else one.tolist() for one in encoded]


def each(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | tuple[str, str]]:
    """What `encode` makes of each text."""
    found: list[list[int] | tuple[str, str]] = []
    for text in texts:
        try:
            found.append(tokenizer.encode(text))
        except RowError as error:
            found.append((error.code, error.message))
    return found


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
        assert all(ids.dtype == np.int32 for ids in other.encode_many(DIFFICULT))


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


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


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


def test_custom_vocabulary_with_missing_bytes(tmp_path: Path):
    path = write(tmp_path / "small.txt", "1 'a' 1", "2 'ab' 2", "5 b'\\xff' 1", "7 'é' 2")
    tokenizer = load_tokenizer(str(path), vocab_size=8, model_path=None)
    assert tokenizer.encode("aabé") == [1, 2, 7]
    assert tokenizer.token_bytes == [None, b"a", b"ab", None, None, b"\xff", None, "é".encode()]
    with pytest.raises(RowError, match="byte 2, which is 0x7A") as caught:
        tokenizer.encode("abz")
    assert caught.value.code == "unencodable_text"


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


def test_fingerprint_is_of_the_ids_not_of_the_file(world: Tokenizer, tmp_path: Path):
    first = RwkvTokenizer(write(tmp_path / "a.txt", "1 'a' 1", "2 'b' 1"))
    same = RwkvTokenizer(write(tmp_path / "b.txt", '2 "b" 1', "", "1 b'a' 1"))
    other = RwkvTokenizer(write(tmp_path / "c.txt", "1 'b' 1", "2 'a' 1"))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert world.fingerprint not in (first.fingerprint, other.fingerprint)


def test_auto_from_the_vocabulary_size(tmp_path: Path):
    for size, name in ((65530, "world"), (65536, "world"), (257, "bytes")):
        assert load_tokenizer("auto", vocab_size=size, model_path=tmp_path / "model.pth").name == name
    assert load_tokenizer(None, vocab_size=1, model_path=None) is None
    with pytest.raises(ConfigurationError, match=r"50277.*'world'.*'bytes'.*tokenizer\.json.*null"):
        load_tokenizer("auto", vocab_size=50277, model_path=None)


@pytest.mark.parametrize("name", ["rwkv_vocab_mine.txt", "vocab.txt"])
def test_auto_prefers_a_file_beside_the_model_that_fits(tmp_path: Path, name: str):
    write(tmp_path / name, "1 'a' 1", "300 'b' 1")
    for model in (tmp_path, tmp_path / "model.pth"):
        assert load_tokenizer("auto", vocab_size=301, model_path=model).name == name
        assert load_tokenizer("auto", vocab_size=257, model_path=model).name == "bytes"
    with pytest.raises(ConfigurationError, match=f"{name} has ids up to 300"):
        load_tokenizer("auto", vocab_size=300, model_path=tmp_path)


def test_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"65529.*50277"):
        load_tokenizer("world", vocab_size=50277, model_path=None)
    with pytest.raises(ConfigurationError, match=r"256.*256"):
        load_tokenizer("bytes", vocab_size=256, model_path=None)
    with pytest.raises(ConfigurationError, match=r"65529.*65529"):
        load_tokenizer("auto", vocab_size=65529, model_path=None)


@pytest.mark.parametrize("spec", ["wrold", "missing.json", "/"])
def test_unknown_tokenizer_lists_the_choices(spec: str):
    with pytest.raises(ConfigurationError, match="'world', 'bytes', a vocabulary file"):
        load_tokenizer(spec, vocab_size=65536, model_path=None)


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
