"""Structured output on the simulated device: a JSON schema over the World vocabulary, and texts that satisfy it."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkv_batch.text.constraint_compiler import ConstraintCompiler
from rwkv_batch.text.load_tokenizer import load_tokenizer

VOCAB_SIZE = 65536
NUM_TEXTS = 256
LENGTH = 320
"""Tokens of a text; the case with the longest completions takes fewer."""
_WORDS = ("north", "river", "stone", "amber", "quiet", "market", "copper", "harbor", "window", "garden", "signal")
_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "minimum": 0},
        "price": {"type": "number"},
        "in_stock": {"type": "boolean"},
        "kind": {"enum": ["tool", "part", "book"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "count", "price", "in_stock", "kind", "note"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "items": {"type": "array", "items": _RECORD},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["title", "items", "tags"],
    "additionalProperties": False,
}


@cache
def _tokenizer() -> Any:
    return load_tokenizer("world", vocab_size=VOCAB_SIZE, model_path=None)


@cache
def constraint() -> Any:
    """The compiled constraint of `SCHEMA`. Called, it begins a text."""
    found = ConstraintCompiler(_tokenizer().token_bytes, VOCAB_SIZE).start(json_schema=SCHEMA)
    found.compiled.result()
    return found


@cache
def texts() -> Tensor:
    """[NUM_TEXTS, LENGTH] int64: the first tokens of JSON texts of different words and numbers."""
    draw = random.Random(0)
    return torch.tensor([_tokenizer().encode(_text(draw))[:LENGTH] for _ in range(NUM_TEXTS)])


def _text(draw: random.Random) -> str:
    def words(most: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))

    records = [
        {
            "name": words(4),
            "count": draw.randrange(10 ** draw.randint(1, 5)),
            "price": draw.randrange(10**6) / 100,
            "in_stock": draw.random() < 0.5,
            "kind": draw.choice(("tool", "part", "book")),
            "note": draw.choice((None, words(12), f'say "{words(2)}"\n{words(3)}')),
        }
        for _ in range(30)
    ]
    return json.dumps({"title": words(8), "items": records, "tags": [words(1)]})
