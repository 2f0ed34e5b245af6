"""The files beside a model that say how its conversations look: chat template, special tokens, stops."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..user_files import read_json, read_text, reason_of
from .chat_template import SpecialTokens

TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
OFFICIAL_NAMES = ("rwkv_prompt_template", "rwkv_generation_prompt")
"""Names that the official chat template of RWKV models reads, and no other one."""


class ChatFiles(NamedTuple):
    """What the files beside a model say.

    Args:
        template: the source of the chat template; None where there is none.
        origin: the file that it comes from.
        stop: stop strings of generation_config.json.
        stop_token_ids: ids of tokens that end a text, besides 0.
    """

    template: str | None = None
    origin: str = ""
    tokens: SpecialTokens = SpecialTokens()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @property
    def is_official(self) -> bool:
        """Whether the template is the official one of RWKV models."""
        return self.template is not None and all(name in self.template for name in OFFICIAL_NAMES)


def read_chat_files(model_path: str | PathLike[str] | None) -> ChatFiles:
    """Reads the files beside a model.

    Args:
        model_path: the model's file or folder; None for a model without files.

    Raises:
        ConfigurationError: a file cannot be read, or holds something else than it should.
    """
    if model_path is None:
        return ChatFiles()
    path = Path(model_path)
    folder = path if path.is_dir() else path.parent
    tokenizer, generation = (_mapping(folder / name) for name in (TOKENIZER_FILE, GENERATION_FILE))
    template, origin = _named_template(folder, tokenizer), str(folder / TOKENIZER_FILE)
    if (folder / TEMPLATE_FILE).is_file():
        template, origin = _read(folder / TEMPLATE_FILE), str(folder / TEMPLATE_FILE)
    bos, eos = (_token(tokenizer.get(name)) for name in ("bos_token", "eos_token"))
    stop, ends = generation.get("stop_strings"), generation.get("eos_token_id")
    return ChatFiles(
        template,
        origin if template is not None else "",
        SpecialTokens(bos, eos, _special_tokens(tokenizer)),
        tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if isinstance(text, str) and text),
        tuple(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i > 0),
    )


def _named_template(folder: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """The template in tokenizer_config.json; of several the one that is called "default"."""
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default", next(iter(named.values()), None))
    if not isinstance(found, str | None):
        raise _bad(folder / TOKENIZER_FILE, f"chat_template is of type {type(found).__name__}, expected text")
    return found


def _token(value: Any) -> str:
    """The text of a special token, which may be an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def _special_tokens(tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    added = tokenizer.get("added_tokens_decoder")
    tokens = added.values() if isinstance(added, Mapping) else ()
    return tuple(text for one in tokens if isinstance(one, Mapping) and one.get("special") and (text := _token(one)))


def _mapping(path: Path) -> Mapping[str, Any]:
    """The content of a JSON file; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise _bad(path, f"{reason_of(error)}; expected JSON") from error
    return found if isinstance(found, Mapping) else {}


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise _bad(path, f"{reason_of(error)}; expected a Jinja template") from error


def _bad(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {reason}; repair it, or name a format", setting="chat.format")
