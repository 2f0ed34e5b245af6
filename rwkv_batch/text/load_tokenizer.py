"""Finds the tokenizer that a name, a file, or the files beside a model stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigurationError
from .tokenizer import BytesTokenizer, RwkvTokenizer, Tokenizer
from .tokenizer_json import JsonTokenizer

# The vocabulary of RWKV's World and G1 models, by BlinkDL (github.com/BlinkDL/ChatRWKV), Apache License 2.0.
WORLD_VOCABULARY = Path(__file__).parents[1] / "data_files" / "rwkv_vocab_v20230424.txt"

_CHOICES = (
    "choose 'world', 'bytes', a vocabulary file in RWKV's format, a tokenizer.json, "
    "or null for token ids in, token ids out"
)


def load_tokenizer(spec: str | None, *, vocab_size: int, model_path: Path | None) -> Tokenizer | None:
    """The tokenizer that `spec` names.

    Args:
        spec: "auto", "world", "bytes", the path of a vocabulary file in RWKV's format or of a tokenizer.json, or None.
            "auto" takes the first vocabulary file beside the model whose ids fit; where there is none, a
            vocabulary of 65529 to 65536 ids is World's and one of 257 is "bytes".
        vocab_size: rows of the model's head; every id must be below it.
        model_path: the model's file or folder; None where it has none.

    Returns:
        None where `spec` is None: token ids in, token ids out.

    Raises:
        ConfigurationError: no such tokenizer, a malformed file, or ids that the model does not have.
    """
    if spec is None:
        return None
    tokenizer = _choose(vocab_size, model_path) if spec == "auto" else _open(spec)
    if tokenizer.max_token_id >= vocab_size:
        raise ConfigurationError(
            f"tokenizer {tokenizer.name!r}: its largest id is {tokenizer.max_token_id}, but the model's vocabulary has "
            f"{vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer that the model was trained with"
        )
    return tokenizer


def _choose(vocab_size: int, model_path: Path | None) -> Tokenizer:
    passed_over = []
    for path in _files_beside(model_path, vocab_size):
        tokenizer = _open(str(path))
        if tokenizer.max_token_id < vocab_size:
            return tokenizer
        passed_over.append(f"{path} has ids up to {tokenizer.max_token_id}")
    if 65529 <= vocab_size <= 65536:
        return _open("world")
    if vocab_size == 257:
        return _open("bytes")
    found = "; ".join(passed_over) or "no vocabulary file beside the model"
    raise ConfigurationError(
        f"tokenizer 'auto': cannot tell from the model's vocabulary of {vocab_size} ids ({found}); {_CHOICES}"
    )


def _files_beside(model_path: Path | None, vocab_size: int) -> Iterator[Path]:
    if model_path is None:
        return
    folder = model_path if model_path.is_dir() else model_path.parent
    yield from sorted(folder.glob("rwkv_vocab*.txt"))
    names = ["vocab.txt", "tokenizer.json"]
    if vocab_size == 50277:  # RWKV-4 "Pile" models
        names.append("20B_tokenizer.json")
    yield from (folder / name for name in names if (folder / name).is_file())


def _open(spec: str) -> Tokenizer:
    if spec == "world":
        return RwkvTokenizer(WORLD_VOCABULARY, name="world")
    if spec == "bytes":
        return BytesTokenizer()
    path = Path(spec)
    if not path.is_file():
        raise ConfigurationError(f"tokenizer {spec!r}: no such file; {_CHOICES}, or 'auto'")
    if path.suffix == ".json":
        return JsonTokenizer(path)
    return RwkvTokenizer(path)
