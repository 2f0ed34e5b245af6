"""Compares engines that constrain texts to JSON schemas, on World's vocabulary of 65,536 tokens.

    python -m benchmarks.constraints --out benchmarks/results/NAME.json

Runs from the repository root. Contenders: `rwkv_batch` (the rewritten schema in llguidance, as jobs use it), and
`llguidance` and `xgrammar` with their own readers of schemas, as far as they are installed (`pip install
'xgrammar>=0.2.8,<0.3'`). Three tables:

    schemas   of `benchmarks/schema_shapes.py`: how many are refused; processor time of compiling one, median and 99th
              percentile; how many make texts (of random allowed tokens) that the package `jsonschema` refuses; how many
              refuse a value of theirs as `json.dumps` writes it
    masks     milliseconds of processor time of one step of --rows texts, by the limits of their strings; the texts are
              values of the schema, each at another place
    memory    MiB that the process has grown by after all schemas are compiled and kept

The values have the keys in the schema's order and no others.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any, Protocol

import numpy as np

from rwkv_batch.measure.table import format_table
from rwkv_batch.text.constraint import Vocabulary
from rwkv_batch.text.constraint_grammar import check, grammar_of
from rwkv_batch.text.load_tokenizer import load_tokenizer

from .schema_shapes import WORDS, Maker
from .timing import machine

V, STEPS = 65536, 60
LIMITS: dict[str, dict[str, int]] = {
    "no limit": {},
    "minLength 1": {"minLength": 1},
    "maxLength 200": {"maxLength": 200},
    "maxLength 2000": {"maxLength": 2000},
}


class Engine(Protocol):
    """A contender."""

    def compile(self, schema: Any) -> Any:
        """What begins texts. Raises ValueError or RuntimeError where the engine refuses the schema."""

    def begin(self, compiled: Any) -> Any:
        """The state of an empty text."""

    def fill(self, states: Sequence[Any], masks: np.ndarray) -> None:
        """Writes the masks [n, V / 32] int32, on one thread."""

    def accept(self, state: Any, token_id: int) -> bool:
        """Advances a text. Returns whether the token was allowed."""


class Llguidance:
    """llguidance, with its own reader of schemas, or with the rewritten schema."""

    def __init__(self, vocabulary: Vocabulary, is_rewritten: bool) -> None:
        from llguidance import LLExecutor

        self._vocabulary, self._is_rewritten, self._executor = vocabulary, is_rewritten, LLExecutor(1)

    def compile(self, schema: Any) -> Any:
        if self._is_rewritten:
            grammar = grammar_of("json_schema", json.dumps(schema))
        else:
            form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            form["json_allow_general_unicode_escapes"] = True
            grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps({**schema, "x-guidance": form})}'
        check(self._vocabulary, grammar)
        return self._vocabulary.compile(grammar)

    def begin(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, states: Sequence[Any], masks: np.ndarray) -> None:
        rows = [(state, row) for row, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], len(masks))

    def accept(self, state: Any, token_id: int) -> bool:
        return bool(state.try_consume_tokens([token_id]))


class Xgrammar:
    """xgrammar, with its own reader of schemas."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        info = xgrammar.TokenizerInfo(vocabulary.tokens, vocab_size=V, stop_token_ids=[vocabulary.eos_token_id])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._batch = xgrammar.BatchGrammarMatcher(max_threads=1)

    def compile(self, schema: Any) -> Any:
        return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)

    def begin(self, compiled: Any) -> Any:
        return self._xgrammar.GrammarMatcher(compiled)

    def fill(self, states: Sequence[Any], masks: np.ndarray) -> None:
        import torch

        self._batch.batch_fill_next_token_bitmask(list(states), torch.from_numpy(masks))

    def accept(self, state: Any, token_id: int) -> bool:
        return bool(state.accept_token(token_id))


def engines(vocabulary: Vocabulary) -> dict[str, Engine]:
    """The contenders that are installed."""
    found: dict[str, Engine] = {
        "rwkv_batch": Llguidance(vocabulary, is_rewritten=True),
        "llguidance": Llguidance(vocabulary, is_rewritten=False),
    }
    if find_spec("xgrammar"):
        found["xgrammar"] = Xgrammar(vocabulary)
    return found


def random_text(engine: Engine, state: Any, vocabulary: Vocabulary, dice: random.Random) -> bytes | None:
    """A text of random allowed tokens, half of them closing ones; None where it has not ended after some tokens."""
    masks, text = np.zeros((1, V // 32), np.int32), b""
    for _ in range(150):
        engine.fill([state], masks)
        ids = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
        if not len(ids):
            return None
        closing = [i for i in ids[:300] if i == vocabulary.eos_token_id or vocabulary.tokens[i][-1:] in b'"}]']
        token_id = int(dice.choice(closing if closing and dice.random() < 0.6 else ids))
        if token_id == vocabulary.eos_token_id:
            return text
        engine.accept(state, token_id)
        text += vocabulary.tokens[token_id]
    return None


def measure_schemas(
    engine: Engine, vocabulary: Vocabulary, encode: Callable[[str], list[int]], number: int, texts: int
) -> dict[str, Any]:
    """One row of the first table, and the memory."""
    import jsonschema

    maker, dice = Maker(seed=1), random.Random(0)
    seconds, kept = [], []
    refused = wrong_accepts = wrong_rejects = 0
    before = _resident_mib()
    for shape in maker.schemas(number):
        values = [shape.value() for _ in range(4)]
        validator = jsonschema.Draft202012Validator(shape.schema)
        start = process_time()
        try:
            compiled = engine.compile(shape.schema)
        except (ValueError, RuntimeError):
            refused += 1
            continue
        seconds.append(process_time() - start)
        kept.append(compiled)
        made = [random_text(engine, engine.begin(compiled), vocabulary, dice) for _ in range(texts)]
        wrong_accepts += not all(_is_valid(text, validator) for text in made if text is not None)
        written = [json.dumps(value, ensure_ascii=False) for value in values]
        wrong_rejects += not all(_accepts(engine, compiled, encode(text), vocabulary.eos_token_id) for text in written)
    slowest = quantiles(seconds, n=100)[98]
    return {
        "schemas": number,
        "refused": refused,
        "compile_ms": [round(1000 * median(seconds), 2), round(1000 * slowest, 1)],
        "wrong_accepts": wrong_accepts,
        "wrong_rejects": wrong_rejects,
        "mib": round(_resident_mib() - before),
    }


def measure_masks(engine: Engine, encode: Callable[[str], list[int]], rows: int) -> dict[str, float | None]:
    """Limit of the strings → milliseconds of processor time of the masks of one step."""
    found: dict[str, float | None] = {}
    for name, limit in LIMITS.items():
        text, dice = {"type": "string", **limit}, random.Random(0)
        properties = {"title": text, "count": {"type": "integer"}, "tags": {"type": "array", "items": text}}
        compiled = engine.compile(
            {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        )
        plain = [word for word in WORDS if word.isalpha()]  # xgrammar allows no escapes under limits

        def words(most: int, dice: random.Random = dice, plain: list[str] = plain) -> str:
            return " ".join(dice.choice(plain) for _ in range(dice.randint(1, most)))

        values = [{"title": words(20), "count": i, "tags": [words(4) for _ in range(i % 5)]} for i in range(64)]
        texts = [encode(json.dumps(value, ensure_ascii=False)) for value in values]
        found[name] = _step_milliseconds(engine, compiled, texts, rows)
    return found


def _step_milliseconds(engine: Engine, compiled: Any, texts: list[list[int]], rows: int) -> float | None:
    """The median over some steps; None where the engine refuses a token of a text."""
    masks, seconds = np.zeros((rows, V // 32), np.int32), []
    states = [engine.begin(compiled) for _ in range(rows)]
    places = [(row * 7) % len(texts[row % len(texts)]) for row in range(rows)]
    for row, place in enumerate(places):
        if not all(engine.accept(states[row], token_id) for token_id in texts[row % len(texts)][:place]):
            return None
    for _ in range(STEPS):
        start = process_time()
        engine.fill(states, masks)
        seconds.append(process_time() - start)
        for row in range(rows):
            text = texts[row % len(texts)]
            if places[row] == len(text):
                states[row], places[row] = engine.begin(compiled), 0
            engine.accept(states[row], text[places[row]])
            places[row] += 1
    return round(1000 * median(seconds), 2)


def _is_valid(text: bytes, validator: Any) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text.decode("utf-8"))))
    except ValueError:
        return False


def _accepts(engine: Engine, compiled: Any, token_ids: list[int], eos_token_id: int) -> bool:
    state = engine.begin(compiled)
    masks = np.zeros((1, V // 32), np.int32)
    if not all(engine.accept(state, token_id) for token_id in token_ids):
        return False
    engine.fill([state], masks)
    word, bit = divmod(eos_token_id, 32)
    return bool(masks[0, word] >> bit & 1)


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    options = _parser().parse_args()
    tokenizer = load_tokenizer("world", vocab_size=V, model_path=None)
    assert tokenizer is not None
    vocabulary = Vocabulary.of(tokenizer.token_bytes, V, 0)
    installed = engines(vocabulary)
    contenders = {name: engine for name, engine in installed.items() if name in (options.engines or installed)}
    masks = {name: measure_masks(engine, tokenizer.encode, options.rows) for name, engine in contenders.items()}
    schemas = {
        name: measure_schemas(engine, vocabulary, tokenizer.encode, options.schemas, options.texts)
        for name, engine in contenders.items()
    }
    columns = ["schemas", "refused", "compile_ms", "wrong_accepts", "wrong_rejects", "mib"]
    print(format_table(["", *columns], [[name, *(str(row[c]) for c in columns)] for name, row in schemas.items()]))
    print(f"\nmasks of one step of {options.rows} rows, ms of processor time")
    print(format_table(["", *LIMITS], [[name, *map(str, row.values())] for name, row in masks.items()]))
    if options.out:
        result = {"machine": machine(), "rows": options.rows, "schemas": schemas, "masks_ms": masks}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=["rwkv_batch", "llguidance", "xgrammar"], help="default: all")
    parser.add_argument("--schemas", type=int, default=240, help="schemas to compile (default: 240)")
    parser.add_argument("--texts", type=int, default=4, help="random texts of each schema (default: 4)")
    parser.add_argument("--rows", type=int, default=256, help="rows of a step (default: 256)")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    return parser


if __name__ == "__main__":
    main()
