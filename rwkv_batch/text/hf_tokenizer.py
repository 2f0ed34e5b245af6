"""A tokenizer with the methods of Hugging Face's tokenizers, for programs and tasks that are written for those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..engine.request import END_OF_TEXT
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .chat import ChatFormat

END_OF_TEXT_NAME = "<|endoftext|>"
"""The name of token 0. `encode` reads it as text, as the model does."""

WITHOUT_EFFECT = {
    "add_special_tokens",
    "clean_up_tokenization_spaces",
    "return_token_type_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "split_special_tokens",
    "stride",
    "verbose",
}
"""Arguments of Hugging Face's methods that change nothing here: no token is added, and special tokens have no text."""

OPTIONS = {"padding", "truncation", "max_length", "padding_side", "return_tensors", "return_attention_mask"}
"""Arguments of a call beside the text."""


class Encoding(dict[str, Any]):
    """What a call of the tokenizer returns: a dict whose values are attributes too.

    Keys:
        input_ids: token ids, a list for one text, a list of lists for several, or a tensor.
        attention_mask: 1 for a token, 0 for padding, in the same shape.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"Encoding has no attribute {name!r}, expected one of {', '.join(self)}")

    def to(self, device: Any) -> Encoding:
        """Returns the encoding with its tensors on a device."""
        return Encoding({name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()})


class HfTokenizer:
    """Converts texts to token ids and back, with the methods and attributes of Hugging Face's tokenizers.

    The ids are those that the model reads for the same text. Nothing is added to a text: `add_special_tokens` has no
    effect. Token 0 is the end of text, the beginning of a document, and the padding; it has no text.

    Args:
        tokenizer: converts text.
        chat_format: writes the prompt of a conversation; None: `apply_chat_template` raises.
        chat_template: the Jinja template of the chat format; None takes its `template`.

    Attributes:
        chat_template: the argument of the same name; None where there is none, as in the built-in formats.
        name_or_path: the name of the tokenizer, "world" or "bytes", or of its file.
        vocab_size: the number of token ids, those without text included.
        eos_token_id, bos_token_id, pad_token_id: 0. A program may set another `pad_token_id`.
        model_max_length: the largest length, in tokens, of a text that the model reads. RWKV has no such length.
        padding_side, truncation_side: "left" or "right": where padding is put, and where a long text is cut.
    """

    eos_token = bos_token = END_OF_TEXT_NAME
    eos_token_id = bos_token_id = END_OF_TEXT
    unk_token = unk_token_id = None
    all_special_tokens = (END_OF_TEXT_NAME,)
    all_special_ids = (END_OF_TEXT,)
    is_fast = False
    model_max_length = 10**30

    def __init__(
        self, tokenizer: Tokenizer, chat_format: ChatFormat | None = None, chat_template: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self.chat_template = chat_template or (chat_format and chat_format.template)
        self.name_or_path = tokenizer.name
        self.vocab_size = tokenizer.max_token_id + 1
        self.pad_token: str | None = END_OF_TEXT_NAME
        self.pad_token_id: int | None = END_OF_TEXT
        self.padding_side: Literal["left", "right"] = "right"
        self.truncation_side: Literal["left", "right"] = "right"

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"HfTokenizer({self.name_or_path!r}, vocab_size={self.vocab_size})"

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        padding_side: Literal["left", "right"] | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        **others: Any,
    ) -> Encoding:
        """Converts one text or several to token ids.

        Args:
            text: a text, or a list of texts.
            padding: True or "longest" makes all lists as long as the longest; "max_length" as long as `max_length`.
            truncation: cut each list to `max_length` tokens.
            max_length: a number of tokens.
            padding_side: "left" or "right"; None takes the attribute.
            return_tensors: "pt" returns PyTorch's tensors, "np" NumPy's arrays, [texts, tokens] int64; None lists.
            return_attention_mask: False leaves the mask out.
            others: arguments of Hugging Face's method that change nothing here.

        Raises:
            ValueError: this tokenizer cannot express a text, or lists of several lengths cannot be a tensor.
            TypeError: an argument is not known.
        """
        _refuse(others)
        is_one = isinstance(text, str)
        rows = [self._tokenizer.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if truncation and truncation != "do_not_truncate" and max_length is not None:
            rows = [
                row[len(row) - max_length :] if self._cuts_left(row, max_length) else row[:max_length] for row in rows
            ]
        masks = [[1] * len(row) for row in rows]
        if padding and padding != "do_not_pad":
            rows, masks = self._padded(rows, masks, max_length if padding == "max_length" else None, padding_side)
        found: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_attention_mask is False:
            del found["attention_mask"]
        if return_tensors is not None:
            return Encoding({name: _tensor(value, return_tensors) for name, value in found.items()})
        return Encoding({name: value[0] if is_one else value for name, value in found.items()})

    def encode(self, text: str, **options: Any) -> Any:
        """Returns the token ids of a text. The options are those of a call."""
        return self(text, **options)["input_ids"]

    def batch_encode_plus(self, texts: Sequence[str], **options: Any) -> Encoding:
        """The same as a call with a list of texts."""
        return self(texts, **options)

    def decode(self, token_ids: Any, **others: Any) -> Any:
        """Returns the text of token ids: an integer, a list, an array or a tensor. Lists of ids give a list of texts.

        Bytes that are not UTF-8 become U+FFFD. Token 0 has no text.
        """
        _refuse(others)
        ids: Any = _plain(token_ids)
        if isinstance(ids, int):
            return self._tokenizer.decode([ids])
        if ids and isinstance(ids[0], list):
            return [self._tokenizer.decode(one) for one in ids]
        return self._tokenizer.decode(ids)

    def batch_decode(self, sequences: Any, **others: Any) -> list[str]:
        """Returns the text of each list of token ids."""
        return [self.decode(ids, **others) for ids in sequences]

    def tokenize(self, text: str, **others: Any) -> list[str]:
        """Returns the tokens of a text, each in the form that `convert_ids_to_tokens` gives."""
        return self.convert_ids_to_tokens(self.encode(text, **others))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or the list of the tokens of several.

        A token is its text. One whose bytes are not UTF-8 is written byte by byte: <0xE4><0xBD>. An id without bytes is
        <|endoftext|> (0) or <|N|>.
        """
        found: Any = _plain(ids)
        if isinstance(found, int):
            return self._token(found)
        return [self._token(i) for i in found if not (skip_special_tokens and i == END_OF_TEXT)]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Returns the id of a token, or the list of the ids of several; None where there is no such token."""
        if isinstance(tokens, str):
            return self._vocabulary.get(tokens)
        return [self._vocabulary.get(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens.

        Raises:
            ValueError: there is no such token.
        """
        ids = self.convert_tokens_to_ids(list(tokens))
        if None in ids:
            raise ValueError(f"{tokens[ids.index(None)]!r} is no token of {self.name_or_path}")
        return self._tokenizer.decode(ids)

    def get_vocab(self) -> dict[str, int]:
        """Returns token → id, of all ids."""
        return dict(self._vocabulary)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role."""
        return {
            "bos_token": END_OF_TEXT_NAME,
            "eos_token": END_OF_TEXT_NAME,
            **({"pad_token": self.pad_token} if self.pad_token else {}),
        }

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """The number of tokens that `encode` adds to a text: 0."""
        return 0

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Writes the prompt of a conversation in the model's chat format.

        Args:
            conversation: a list of messages, mappings with role and content; or a list of such lists.
            tools: descriptions of functions that the model may call.
            tokenize: return token ids; False returns the text.
            add_generation_prompt: end with what begins the assistant's turn.
            continue_final_message: the model continues the last message, which is the assistant's.
            return_dict: return what a call of the tokenizer returns.
            options: those of a call, such as `return_tensors`. All others are names for the chat template.

        Raises:
            ValueError: there is no chat format, the messages do not fit it, or both a generation prompt and a
                continuation are asked for.
        """
        if self._chat_format is None:
            raise ValueError("this tokenizer has no chat format; llm.get_tokenizer() returns one that has")
        if add_generation_prompt and continue_final_message:
            raise ValueError("expected add_generation_prompt or continue_final_message, got both")
        if options.pop("chat_template", None) is not None:
            raise ValueError("chat_template: name it where the model is opened: LLM(..., chat={'template': file})")
        names = {name: value for name, value in options.items() if name not in OPTIONS | WITHOUT_EFFECT}
        several = bool(conversation) and isinstance(conversation[0], (list, tuple))
        texts = [
            self._chat_format.render(
                one,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=names,
            )
            for one in (conversation if several else [conversation])
        ]
        if not tokenize:
            return texts if several else texts[0]
        of_call = {name: value for name, value in options.items() if name not in names}
        encoded = self(texts if several else texts[0], **of_call)
        return encoded if return_dict else encoded["input_ids"]

    def pad(self, encoded: Mapping[str, Any] | Iterable[Mapping[str, Any]], **options: Any) -> Encoding:
        """Makes the lists of `input_ids` equally long.

        Args:
            encoded: a mapping with `input_ids`, a list of lists; or several mappings with one list each.
            options: `padding`, `max_length` and `return_tensors`, as in a call.
        """
        if isinstance(encoded, Mapping):
            rows = [list(row) for row in encoded["input_ids"]]
        else:
            rows = [list(one["input_ids"]) for one in encoded]
        padding, tensors = options.pop("padding", True), options.pop("return_tensors", None)
        max_length = options.pop("max_length", None)
        _refuse(options)
        rows, masks = self._padded(
            rows, [[1] * len(row) for row in rows], max_length if padding == "max_length" else None
        )
        found: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        return Encoding({name: _tensor(value, tensors) if tensors else value for name, value in found.items()})

    def _cuts_left(self, row: list[int], max_length: int) -> bool:
        return self.truncation_side == "left" and len(row) > max_length

    def _padded(
        self, rows: list[list[int]], masks: list[list[int]], length: int | None, side: str | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        if self.pad_token_id is None:
            raise ValueError("padding needs a pad_token_id; set tokenizer.pad_token_id = 0")
        longest = max([len(row) for row in rows] + ([] if length is None else [length]), default=0)
        pad_id = self.pad_token_id

        def filled(row: list[int], value: int) -> list[int]:
            fill = [value] * (longest - len(row))
            return fill + row if (side or self.padding_side) == "left" else row + fill

        return [filled(row, pad_id) for row in rows], [filled(mask, 0) for mask in masks]

    def _token(self, token_id: int) -> str:
        data = self._tokenizer.decode_bytes([token_id])
        if not data:
            return END_OF_TEXT_NAME if token_id == END_OF_TEXT else f"<|{token_id}|>"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        """Token → id. Of ids with the same bytes the smallest counts."""
        found: dict[str, int] = {}
        for token_id in range(self.vocab_size):
            found.setdefault(self._token(token_id), token_id)
        return found


def _refuse(others: Mapping[str, Any]) -> None:
    """Raises TypeError for arguments that would change a result and are not known."""
    unknown = [name for name in others if name not in WITHOUT_EFFECT and others[name] not in (None, False)]
    if unknown:
        raise TypeError(f"this tokenizer has no argument {unknown[0]!r}")


def _plain(ids: Any) -> Any:
    """Ids of any kind as an integer, or as a list of integers or of lists."""
    to_list: Callable[[], Any] | None = getattr(ids, "tolist", None)
    if to_list is not None:
        return to_list()
    return ids if isinstance(ids, int) else [_plain(one) for one in ids]


def _tensor(rows: list[list[int]], kind: str) -> Any:
    """Lists of integers as a tensor, [rows, columns] int64."""
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors: got {kind!r}, expected 'pt', 'np' or None")
    if len(set(map(len, rows))) > 1:
        raise ValueError("texts with several numbers of tokens are no tensor; pass padding=True")
    array = np.array(rows, np.int64).reshape(len(rows), -1)
    if kind == "np":
        return array
    import torch

    return torch.from_numpy(array)
