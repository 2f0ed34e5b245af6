"""Prompts of the lm-evaluation-harness's option `--apply_chat_template`, in the chat formats of RWKV models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..text.chat import ChatFormat, ChatSettings, open_chat
from .harness_requests import ASSISTANT

THOUGHT_END = "</think"
"""The end of a prompt whose thought is closed, without its last character: that may be one token with what follows."""
_PATTERN = [
    {"role": role, "content": f"{{{role}}}"} for role in ("system", "user", "assistant", "user")
]


class ChatPrompt(str):
    """A prompt that a chat format has written. The harness hands it back as it is, also from its cache of requests."""

    __slots__ = ()

    @property
    def answer_start(self) -> str:
        """What stands between this prompt and an answer that is scored.

        A space after `Assistant:`; the last character of a thought that the prompt closes; nothing after other ends.
        """
        if self.endswith(ASSISTANT):
            return " "
        return ">" if self.endswith(THOUGHT_END) else ""


class Chat:
    """The chat format of an evaluation.

    Args:
        settings: the format that the model arguments ask for.
        model_path: the model's file or folder, beside which "auto" looks for a chat template.

    Raises:
        ConfigurationError: the format cannot be opened.
    """

    def __init__(self, settings: ChatSettings, model_path: str | Path) -> None:
        self._settings = settings
        self._path = model_path
        self.format: ChatFormat = open_chat(settings, model_path)

    def choose(self, name: str | None) -> None:
        """Takes the format of a name, or that of the settings where the name is None.

        Raises:
            ConfigurationError: there is no such format.
        """
        settings = self._settings if name is None else replace(self._settings, format=name, template=None)
        self.format = open_chat(settings, self._path)

    @property
    def think(self) -> str:
        """The setting of the same name: "none", "open" or "fake"."""
        return self._settings.think

    @property
    def template(self) -> str:
        """The chat template's source; for a built-in format, a conversation with a placeholder for each message."""
        return self.format.template or self.format.render(_PATTERN)

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> ChatPrompt:
        """The prompt of a conversation. An assistant's message at the end is continued.

        Raises:
            RowError: code "bad_messages".
        """
        return ChatPrompt(self.format.render(messages, add_generation_prompt=add_generation_prompt))

    def describe(self) -> dict[str, Any]:
        """Everything of the format that prompts and completions depend on, in plain JSON."""
        return {"chat_format": self.format.name, "think": self.think, "chat_stop": list(self.format.stop)}

    def identity(self) -> dict[str, Any]:
        """`describe`, and the chat template."""
        return {**self.describe(), "template": self.template}

    def answer(self, prompt: str, text: str) -> str:
        """A completion without the end of a thought that the prompt closes."""
        is_closed = isinstance(prompt, ChatPrompt) and prompt.endswith(THOUGHT_END)
        return text.removeprefix(">").lstrip() if is_closed else text
