"""Measures how fast each kind of tokenizer encodes, and how its time grows with the length of the text.

    python -m benchmarks.tokenizers --out benchmarks/results/NAME.json

Runs from the repository root. Each length is twice the one before. The time of a text is t = c · length^exponent; the
exponent is the slope of log t over log length, by least squares over all lengths. It is 1 where the time is linear.

    code        Python's standard library
    languages   a few sentences in ten writing systems, repeated
    letter      one letter, repeated
    spaces      spaces only
    one word    the code without white space and punctuation
    random      random characters of Latin-1
    emoji       random emoji, with modifiers and joiners
    marks       a letter with combining marks

The files of vocabularies are made here. The BPE and WordPiece models of words are trained on the standard library, and
have fewer tokens than published ones.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from rwkv_batch.demo.corpus import stdlib_documents
from rwkv_batch.measure.bench import positive_int
from rwkv_batch.measure.table import format_table
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.tokenizer import GreedyTokenizer, Tokenizer
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY, ByteTrie, read_vocabulary

from .timing import interleave, machine
from .workloads import Point

MEGABYTE = 1_000_000
NUM_LENGTHS = 5
END_OF_TEXT = "<|endoftext|>"
SENTENCES = (
    "All human beings are born free and equal in dignity and rights. Tous les êtres humains naissent libres. "
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Все люди рождаются свободными. "
    "人人生而自由,在尊严和权利上一律平等。すべての人間は、生まれながらにして自由である。모든 인간은 태어날 때부터 "
    "יולדו כל בני האדם בני חורין. يولد جميع الناس أحرارًا متساوين. सभी मनुष्यों को गौरव प्राप्त है। มนุษย์ทั้งหลายเกิดมามีอิสระ "
)
EMOJI = ("👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "😀", "🇩🇪", "❤️")


def texts(code: str, seed: int = 0) -> dict[str, Callable[[int], str]]:
    """Name → a function from a number of characters to a text of at least so many."""
    chosen = random.Random(seed)
    word = "".join(character for character in code if character.isalnum())
    return {
        "code": partial(_repeated, code),
        "languages": partial(_repeated, SENTENCES),
        "letter": partial(_repeated, "a"),
        "spaces": partial(_repeated, " "),
        "one word": partial(_repeated, word),
        "random": lambda count: "".join(map(chr, chosen.choices(range(1, 256), k=count))),
        "emoji": lambda count: "".join(chosen.choices(EMOJI, k=count)),
        "marks": partial(_repeated, "e\u0301\u0323"),
    }


def _repeated(text: str, count: int) -> str:
    return (text * (count // len(text) + 1))[:count]


def utf8_of(make: Callable[[int], str], num_bytes: int) -> bytes:
    """A text of `num_bytes` bytes in UTF-8, or a few fewer, where a character would be cut."""
    return make(num_bytes).encode()[:num_bytes].decode("utf-8", "ignore").encode()


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """The slope of log seconds over log length, by least squares."""
    return float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])


class Encoding:
    """A contender that encodes the texts. Its rates are bytes/s.

    Args:
        shortest: seconds of a measurement, at least; a short text is encoded several times.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, inputs: dict[Point, bytes], shortest: float) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.points = list(inputs)
        self.num_tokens: dict[Point, int] = {}
        self._inputs, self._shortest = inputs, shortest
        tokenizer.encode("a")  # builds its trie

    def measure(self, point: Point) -> float:
        """Returns the bytes per second of a text."""
        text = [self._inputs[point]]
        count, start, seconds = 0, perf_counter(), 0.0
        while not count or seconds < self._shortest:
            (ids,) = self.tokenizer.encode_many_bytes(text)
            count += 1
            seconds = perf_counter() - start
        self.num_tokens[point] = len(ids) if isinstance(ids, np.ndarray) else 0
        return count * len(text[0]) / seconds


def tokenizers(folder: Path, code: str, vocab_size: int) -> Iterator[tuple[str, Tokenizer]]:
    """(name, tokenizer) of each kind.

    Args:
        folder: is given the files of vocabularies.
        code: the text on which models are trained.
        vocab_size: tokens of the models that are trained.
    """
    world = read_vocabulary(WORLD_VOCABULARY)
    yield "world", _load("world")
    in_python = GreedyTokenizer(world, "world")
    in_python.__dict__["_trie"] = ByteTrie(world)  # what it has on a machine without a compiler
    yield "world, in Python", in_python
    yield "bytes", _load("bytes")
    few = {i: token for i, token in world.items() if i < 20_000}
    path = folder / "rwkv_vocab_few.txt"
    path.write_text("".join(f"{i} {token!r} {len(token)}\n" for i, token in few.items()))
    yield "vocabulary file", _load(str(path))
    for name, description in _descriptions(world, few, code, vocab_size):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(description), encoding="utf-8")
        yield f"json: {name}", _load(str(path))


def _load(spec: str) -> Tokenizer:
    tokenizer = load_tokenizer(spec, vocab_size=2**31, model_path=None)
    assert tokenizer is not None
    return tokenizer


def _descriptions(
    world: dict[int, bytes], few: dict[int, bytes], code: str, vocab_size: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, content) of a tokenizer.json of each kind."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    yield "WordPiece, World", _greedy(world)
    yield "WordPiece, not World", _greedy(few)
    trie = _greedy(few)
    yield "RwkvTrie", {**trie, "model": {"type": "RwkvTrie", "vocab": trie["model"]["vocab"]}, "pre_tokenizer": None}
    common: dict[str, Any] = dict(vocab_size=vocab_size, show_progress=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()

    bpe = Backend(models.BPE())  # of the kind of 20B_tokenizer.json
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], **common)
    bpe.train_from_iterator([code], trainer)
    yield "BPE of bytes", json.loads(bpe.to_str())

    pieces = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    pieces.normalizer = normalizers.Replace(" ", "▁")
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces.train_from_iterator([code], trainers.BpeTrainer(special_tokens=["<unk>", *byte_tokens], **common))
    # Published files have no pre-tokenizer: the whole text is one word.
    yield "BPE, SentencePiece", {**json.loads(pieces.to_str()), "pre_tokenizer": None}

    words = Backend(models.WordPiece(unk_token=END_OF_TEXT, max_input_chars_per_word=100))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    for_words = trainers.WordPieceTrainer(initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], **common)
    words.train_from_iterator([code], for_words)
    yield "WordPiece of words", json.loads(words.to_str())


def _greedy(tokens: dict[int, bytes]) -> dict[str, Any]:
    """A tokenizer.json that describes greedy longest match over bytes as WordPiece."""
    alphabet = _alphabet()
    vocabulary = {END_OF_TEXT: 0} | {"".join(alphabet[byte] for byte in token): i for i, token in tokens.items()}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": END_OF_TEXT, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ],
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": step,
        "model": {
            "type": "WordPiece",
            "unk_token": END_OF_TEXT,
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 2**31 - 1,
            "vocab": vocabulary,
        },
    }


def _alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def lengths_up_to(largest: int) -> list[int]:
    """Lengths in bytes, each twice the one before."""
    return [largest >> shift for shift in range(NUM_LENGTHS - 1, -1, -1)]


def inputs_of(makers: dict[str, Callable[[int], str]], lengths: list[int]) -> dict[Point, bytes]:
    """The texts. Those of one name are beginnings of the longest one, so that they are of one kind."""
    whole = {name: utf8_of(make, lengths[-1]) for name, make in makers.items()}
    cut = {Point(name, length): text[:length] for name, text in whole.items() for length in lengths}
    return {point: text.decode("utf-8", "ignore").encode() for point, text in cut.items()}


class Result(NamedTuple):
    """What was measured of one tokenizer and one kind of text."""

    seconds: dict[int, list[float]]
    """Bytes of the text → the seconds of each round."""
    num_tokens: int
    """Of the longest text."""

    @property
    def exponent(self) -> float:
        return exponent(list(self.seconds), [median(each) for each in self.seconds.values()])

    @property
    def seconds_per_megabyte(self) -> list[float]:
        """Of the longest text, in each round."""
        length, seconds = list(self.seconds.items())[-1]
        return [each / length * MEGABYTE for each in seconds]

    @property
    def tokens_per_second(self) -> float:
        """Of the longest text."""
        return self.num_tokens / median(list(self.seconds.values())[-1])

    def in_json(self) -> dict[str, Any]:
        return {"seconds_by_bytes": self.seconds, "tokens": self.num_tokens, "exponent": round(self.exponent, 3)}


def measure(
    contenders: list[Encoding], inputs: dict[Point, bytes], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, Result]]:
    """Tokenizer → kind of text → result. Every round measures everything once."""
    rates = interleave(contenders, rounds, say)
    found: dict[str, dict[str, Result]] = {}
    for contender in contenders:
        for point, text in inputs.items():
            result = found.setdefault(contender.name, {}).setdefault(point.kind, Result({}, 0))
            result.seconds[len(text)] = [len(text) / rate for rate in rates[contender.name][point]]
            found[contender.name][point.kind] = result._replace(num_tokens=contender.num_tokens[point])
    return found


def tables(found: dict[str, dict[str, Result]]) -> str:
    """The results for a terminal: a row for each tokenizer, a column for each kind of text."""
    kinds = list(next(iter(found.values())))
    parts = {
        "seconds per MB of the longest text: median": lambda one: f"{median(one.seconds_per_megabyte):.4f}",
        "million tokens per second, of the same": lambda one: f"{one.tokens_per_second / 1e6:.2f}",
        "exponent: how the time grows with the length (1: linear)": lambda one: f"{one.exponent:.2f}",
    }
    blocks = []
    for title, shown in parts.items():
        rows = [[name, *(shown(results[kind]) for kind in kinds)] for name, results in found.items()]
        blocks.append(f"{title}\n\n{format_table(['', *kinds], rows)}")
    return "\n\n".join(blocks)


def main() -> None:
    options = _parser().parse_args()
    about = machine()
    lengths = lengths_up_to(2**12 if options.quick else options.largest)
    rounds = 1 if options.quick else options.rounds
    code = "\n".join(document.text for document in stdlib_documents())
    inputs = inputs_of(texts(code[: 2 * lengths[-1]]), lengths)
    with TemporaryDirectory() as folder:
        trained_on = code[: 100_000 if options.quick else 5 * MEGABYTE]
        made = tokenizers(Path(folder), trained_on, 400 if options.quick else options.vocab)
        contenders = [Encoding(name, tokenizer, inputs, options.seconds) for name, tokenizer in made]
        found = measure(contenders, inputs, rounds, partial(print, file=sys.stderr, flush=True))
    print(f"texts of {lengths[0]} to {lengths[-1]} bytes, {rounds} rounds\n\n{tables(found)}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        workload = {"lengths": lengths, "rounds": rounds, "seconds": options.seconds, "vocab": options.vocab}
        results = {name: {kind: one.in_json() for kind, one in by.items()} for name, by in found.items()}
        result = {"machine": about, "workload": workload, "tokenizers": results}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizers", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--largest", type=positive_int, default=2**20, metavar="N", help="bytes of the longest text (1048576)"
    )
    parser.add_argument("--vocab", type=positive_int, default=16000, metavar="V", help="of trained models (16000)")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="each measures everything once (3)")
    parser.add_argument("--seconds", type=float, default=0.02, metavar="S", help="of one measurement, at least (0.02)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, whose figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


if __name__ == "__main__":
    main()
