"""Prompts of harnesses in the chat formats of RWKV models, such as those of lm-eval's `--apply_chat_template`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, one_of
from ..text.chat import ChatSettings, open_chat
from .chat_arguments import argument_names

ASSISTANT = "Assistant:"
"""The end of a prompt in the format `rwkv`; the answer after it starts with a space."""
THOUGHT_END = "</think"
"""The end of a prompt whose thought is closed, without its last character: that may be one token with what follows."""
_PATTERN = [{"role": role, "content": f"{{{role}}}"} for role in ("system", "user", "assistant", "user")]


def without_thought_end(prompt: str, text: str) -> str:
    """A completion without the `>` of a thought that its prompt closes, and without the white space after it."""
    return text.removeprefix(">").lstrip() if prompt.endswith(THOUGHT_END) else text


class ChatPrompt(str):
    """A prompt that a chat format has written. The harness hands it back as it is, also from its cache of requests."""

    __slots__ = ()

    def answered(self, continuation: str) -> ChatAnswer:
        """An answer to be scored after this prompt, with what stands between the two.

        That is a space after `Assistant:`, the last character of a thought that the prompt closes, and nothing after
        other ends. An answer that begins with white space brings its own.
        """
        if isinstance(continuation, ChatAnswer):
            return continuation
        start = " " if self.endswith(ASSISTANT) else ">" if self.endswith(THOUGHT_END) else ""
        return ChatAnswer(start + continuation if continuation[:1].strip() else continuation)


class ChatAnswer(str):
    """An answer as it is scored after a `ChatPrompt`."""

    __slots__ = ()


class Chat:
    """The chat format of an evaluation.

    Args:
        settings: the format that the model arguments ask for.
        template_args: further names for a chat template.
        model_path: the model's file or folder, beside which "auto" looks for a chat template.

    Attributes:
        format: the format that is used now.

    Raises:
        ConfigurationError: the format cannot be opened, or has no template for `template_args`.
    """

    def __init__(self, settings: ChatSettings, template_args: Mapping[str, Any], model_path: str | Path) -> None:
        with argument_names():
            self.format = open_chat(settings, model_path)
        others = sorted(template_args.keys() - {"enable_thinking"})
        if others and self.format.template is None:
            raise ConfigurationError(
                f"chat_template_args: got {one_of(others)} for the format {self.format.name}, expected only "
                "enable_thinking; other names are for chat templates"
            )
        self._settings = settings
        self._template_args = dict(template_args)
        self._path = model_path

    def choose(self, name: str | None) -> None:
        """Takes the format of a name, or that of the settings where the name is None.

        Raises:
            ConfigurationError: there is no such format.
        """
        settings = self._settings
        if name not in (None, settings.format):
            with argument_names("--apply_chat_template"):
                settings = replace(settings, format=name, template=settings.template if name == "template" else None)
        with argument_names("--apply_chat_template"):
            self.format = open_chat(settings, self._path)

    @property
    def think(self) -> str:
        """The setting of the same name: "none", "open" or "fake"."""
        return self._settings.think

    @property
    def template(self) -> str:
        """The chat template's source; for a built-in format, a conversation with a placeholder for each message."""
        return self.format.template or self.format.render(_PATTERN)

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> ChatPrompt:
        """The prompt of a conversation. An assistant's message at the end is continued.

        Raises:
            RowError: code "bad_messages" or "template_error".
        """
        is_continued = bool(messages) and messages[-1].get("role") == "assistant"
        text = self.format.render(
            messages,
            add_generation_prompt=add_generation_prompt and not is_continued,
            continue_final_message=is_continued,
            template_kwargs=self._template_args,
        )
        return ChatPrompt(text)

    def describe(self) -> dict[str, Any]:
        """The format and what ends its turns, in plain JSON."""
        return {
            "chat_format": self.format.name,
            "think": self.think,
            "chat_template_args": self._template_args,
            "chat_stop": [*self.format.stop, *self.format.stop_token_ids],
        }

    def identity(self) -> dict[str, Any]:
        """Everything of the format that prompts and completions depend on, in plain JSON."""
        return {**self.describe(), "template": self.template}

    @property
    def think_end_token(self) -> str | None:
        """The text that ends the thinking which the format begins; None where it begins none."""
        return f"{THOUGHT_END}>" if self.think == "open" else None

    def answer(self, prompt: str, text: str) -> str:
        """A completion without the end of a thought that the prompt closes."""
        return without_thought_end(prompt, text) if isinstance(prompt, ChatPrompt) else text
