"""The shapes of prompts, with the names of vLLM's module `inputs`."""

from __future__ import annotations

from typing import TypedDict


class TextPrompt(TypedDict):
    """A prompt that is text. `TextPrompt(prompt="...")` is the dict {"prompt": "..."}.

    Keys:
        prompt: the text.
    """

    prompt: str


class _OptionalText(TypedDict, total=False):
    prompt: str


class TokensPrompt(_OptionalText):
    """A prompt that is token ids. `TokensPrompt(prompt_token_ids=[...])` is the dict {"prompt_token_ids": [...]}.

    Keys:
        prompt_token_ids: the ids.
        prompt: the text, for the caller; the model reads the ids.
    """

    prompt_token_ids: list[int]
