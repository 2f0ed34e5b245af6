"""Loads a tokenizer by its name, from a file, or from the files beside a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigurationError, looked_up
from .tokenizer import BytesTokenizer, RwkvTokenizer, Tokenizer
from .tokenizer_json import open_tokenizer_json
from .vocabulary import WORLD_VOCABULARY


class _BuiltIn(NamedTuple):
    """A tokenizer that has a name and needs no file."""

    make: Callable[[], Tokenizer]
    vocab_sizes: range
    """Sizes of a model's vocabulary for which "auto" chooses this tokenizer."""


_BUILT_IN = {
    "world": _BuiltIn(lambda: RwkvTokenizer(WORLD_VOCABULARY, name="world"), range(65529, 65537)),
    "bytes": _BuiltIn(BytesTokenizer, range(257, 258)),
}
_PILE_SIZES = range(50277, 50277 + 512)
"""Sizes of the vocabulary of models with the tokenizer 20B_tokenizer.json: its ids, and rows that fill up the head."""

_CHOICES = (
    f"choose {', '.join(map(repr, _BUILT_IN))}, a vocabulary file in RWKV's format, a tokenizer.json, "
    "or null for token ids in, token ids out"
)


def load_tokenizer(
    spec: str | None, *, vocab_size: int, model_path: Path | None, parse_special_tokens: bool = False
) -> Tokenizer | None:
    """The tokenizer that `spec` names.

    Args:
        spec: "auto", "world", "bytes", the path of a vocabulary file in RWKV's format or of a tokenizer.json, a folder
            that has one, or None.
            "auto" takes the first vocabulary file beside the model whose ids are below `vocab_size`. Where there is
            no such file, a `vocab_size` of 65529 to 65536 selects "world", and 257 selects "bytes".
        vocab_size: rows of the model's head; every id of the tokenizer must be below it.
        model_path: the model's file or folder; None for a model without files.
        parse_special_tokens: a special token of a tokenizer.json that is spelled out in a text becomes its id.

    Returns:
        None where `spec` is None: token ids in, token ids out.

    Raises:
        ConfigurationError: no such tokenizer, a malformed file, or ids that the model does not have.
    """
    if spec is None:
        return None
    if spec == "auto":
        tokenizer = _choose(vocab_size, model_path, parse_special_tokens)
    elif os.path.isdir(spec):
        path = next(_files_beside(Path(spec), vocab_size), None)
        if path is None:
            raise ConfigurationError(f"tokenizer {spec!r}: the folder has no vocabulary file; {_CHOICES}")
        tokenizer = _open(str(path), parse_special_tokens)
    else:
        tokenizer = _open(spec, parse_special_tokens)
    if tokenizer.max_token_id >= vocab_size:
        raise ConfigurationError(
            f"tokenizer {tokenizer.name!r}: its largest id is {tokenizer.max_token_id}, but the model's vocabulary has "
            f"{vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer that the model was trained with"
        )
    return tokenizer


def _choose(vocab_size: int, model_path: Path | None, parse_special_tokens: bool) -> Tokenizer:
    """The tokenizer that "auto" stands for."""
    passed_over = []
    for path in _files_beside(model_path, vocab_size):
        tokenizer = _open(str(path), parse_special_tokens)
        if tokenizer.max_token_id < vocab_size:
            return tokenizer
        passed_over.append(f"{path} has ids up to {tokenizer.max_token_id}")
    for built_in in _BUILT_IN.values():
        if vocab_size in built_in.vocab_sizes:
            return built_in.make()
    found = "; ".join(passed_over) or "no vocabulary file beside the model"
    raise ConfigurationError(
        f"tokenizer 'auto': cannot tell from the model's vocabulary of {vocab_size} ids ({found}); {_CHOICES}"
    )


def _files_beside(model_path: Path | None, vocab_size: int) -> Iterator[Path]:
    """The tokenizer files beside a model, in the order in which they are tried."""
    if model_path is None:
        return
    folder = model_path if model_path.is_dir() else model_path.parent
    yield from sorted(folder.glob("rwkv_vocab*.txt"))
    names = ["vocab.txt", "tokenizer.json"]
    if vocab_size in _PILE_SIZES:
        names.append("20B_tokenizer.json")
    yield from (folder / name for name in names if (folder / name).is_file())


def _open(spec: str, parse_special_tokens: bool) -> Tokenizer:
    """The tokenizer of a built-in name or of a file."""
    if spec in _BUILT_IN:
        return _BUILT_IN[spec].make()
    path = Path(spec)
    if not os.path.isfile(path):
        raise ConfigurationError(f"tokenizer {spec!r}: no such file{looked_up(spec)}; {_CHOICES}, or 'auto'")
    return open_tokenizer_json(path, parse_special_tokens) if path.suffix == ".json" else RwkvTokenizer(path)
