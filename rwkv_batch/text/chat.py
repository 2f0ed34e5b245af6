"""Prompts from conversations: the settings of a chat, and the format that renders its messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Any, NamedTuple, Protocol

from ..errors import ConfigurationError, RowError, did_you_mean, one_of
from ..sampling_params import SamplingParams
from .chat_formats import CHAT_FORMATS, THOUGHTS, Draft, Ending
from .messages import Turn, definitions_of, plain_messages, plain_tools, turns_of

AUTO, TEMPLATE, FALLBACK = "auto", "template", "rwkv"


def format_names() -> list[str]:
    """The names that `ChatSettings.format` takes."""
    return [AUTO, *CHAT_FORMATS, TEMPLATE]


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become prompts.

    Args:
        format: "auto", "rwkv", "bot", "function_calling" or "template". "auto" takes what stands beside the model, a
            chat template, else "rwkv".
        think: how the prompt ends. "none": the model may begin as it likes. "open": the model begins with a thought.
            "fake": the thought is closed before it begins.
        template: a Jinja chat template, or a file that holds one; None takes the one beside the model.

    Raises:
        ConfigurationError: an unknown name, or settings that contradict each other.
    """

    format: str = AUTO
    think: str = "none"
    template: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("format", format_names()), ("think", list(THOUGHTS))):
            value = getattr(self, name)
            if value not in known:
                guess = did_you_mean(str(value), known)
                raise ConfigurationError(f"got {value!r}, expected {one_of(known)}{guess}", setting=f"chat.{name}")
        if self.template is not None and not isinstance(self.template, str | PathLike):
            raise ConfigurationError(
                f"got {self.template!r}, expected a Jinja template, or a file that holds one", setting="chat.template"
            )
        if self.template is not None and self.format not in (AUTO, TEMPLATE):
            raise ConfigurationError(
                f"got a template, expected none beside chat.format {self.format!r}", setting="chat.template"
            )

    @classmethod
    def of(cls, given: ChatSettings | Mapping[str, Any] | None) -> ChatSettings:
        """The settings that a caller gives, perhaps as a mapping.

        Raises:
            ConfigurationError: this is something else, or a setting is wrong.
        """
        if given is None or isinstance(given, ChatSettings):
            return given or cls()
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"got {given!r}, expected a mapping or ChatSettings(...)", setting="chat")
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                guess = did_you_mean(str(name), known) or f" (known: {', '.join(known)})"
                raise ConfigurationError(f"unknown setting{guess}", setting=f"chat.{name}")
        return cls(**given)


@dataclass(frozen=True)
class Conversation:
    """A conversation to render.

    Args:
        messages: role and content of each message, in any form that `plain_messages` takes.
        tools: definitions of tools that the model may call, in any form that `plain_tools` takes.
        add_generation_prompt: the prompt ends with the beginning of the assistant's turn. An assistant's message at
            the end is continued instead.
        continue_final_message: the last message, which must be the assistant's, is continued.
        template_kwargs: further names for a chat template, such as `enable_thinking`.
    """

    messages: Any
    tools: Any = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


class Rendered(NamedTuple):
    """The prompt of a conversation, and what ends the model's turn after it."""

    text: str
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...] = ()


class WithStops:
    """Gives sampling parameters the stops of prompts. What prompts share, they share afterwards too."""

    def __init__(self) -> None:
        self._last: tuple[SamplingParams, Sequence[Any], SamplingParams] | None = None

    def __call__(self, params: SamplingParams, prompt: Rendered) -> SamplingParams:
        """The parameters with the stops of a prompt, unless they have a `stop` of their own; an empty list is one."""
        _, *stops = prompt
        if params.stop is not None or not any(stops):
            return params
        last = self._last  # another thread may replace it
        if last is not None and last[0] is params and last[1] == stops:
            return last[2]
        ids = [*(params.stop_token_ids or ()), *prompt.stop_token_ids]
        found = replace(params, stop=list(prompt.stop), stop_token_ids=ids or params.stop_token_ids)
        self._last = params, stops, found
        return found


class Writer(Protocol):
    """What renders the conversations of a chat format."""

    def write(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]: ...


class ChatFormat:
    """A chat format with its settings, ready to render.

    Attributes:
        name: a name of `format_names()`, but not "auto".
        stop: the stop strings that end the model's turn. `SamplingParams.stop` replaces them.
        stop_token_ids: the token ids that end it too.
        origin: why it is this format, in words, such as "beside the model"; "" where a setting names it.
        template: the source of the chat template; None for a built-in format.
    """

    def __init__(
        self,
        name: str,
        stop: Sequence[str],
        writer: Writer,
        *,
        stop_token_ids: Sequence[int] = (),
        origin: str = "",
        template: str | None = None,
    ) -> None:
        self.name = name
        self.stop = tuple(stop)
        self.stop_token_ids = tuple(stop_token_ids)
        self.origin = origin
        self.template = template
        self._writer = writer

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation. The arguments are those of `Conversation`.

        Raises:
            RowError: code "bad_messages", "template_error", or "invalid_text" for bytes that are not UTF-8.
        """
        conversation = Conversation(
            messages, tools, add_generation_prompt, continue_final_message, template_kwargs or {}
        )
        (found,) = self.render_many([conversation])
        if isinstance(found, RowError):
            raise found
        return found.text

    def render_many(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        """The prompt of each conversation with its stops, or its error."""
        return self._writer.write(conversations)


class _BuiltInWriter:
    """Renders the conversations of a built-in format."""

    def __init__(self, name: str, thought: str) -> None:
        self._format = CHAT_FORMATS[name]
        self._thought = thought

    def write(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        return [attempted(self._written, one) for one in conversations]

    def _written(self, conversation: Conversation) -> Rendered:
        turns = turns_of(plain_messages(conversation.messages))
        tools = definitions_of(plain_tools(conversation.tools))
        ending = ending_of(conversation, turns)
        if ending == "opened" and _is_blank(turns[-1]):
            turns.pop()
        return Rendered(*self._format.write(Draft(turns, tools, ending, self._thought)))


def ending_of(conversation: Conversation, turns: Sequence[Turn]) -> Ending:
    """How the prompt of a conversation ends.

    Raises:
        RowError: code "bad_messages": the last message cannot be continued.
    """
    last = turns[-1]
    can_go_on = last.role == "assistant" and not last.tool_calls
    if conversation.continue_final_message and not can_go_on:
        what = "calls a tool" if last.tool_calls else f"has role {last.role!r}"
        raise RowError(
            "bad_messages", f"continue_final_message: the last message {what}; expected the assistant's text"
        )
    if conversation.continue_final_message or (conversation.add_generation_prompt and can_go_on):
        return "opened" if _is_blank(last) else "continued"
    return "opened" if conversation.add_generation_prompt else "closed"


def _is_blank(turn: Turn) -> bool:
    """Whether this is the assistant's turn, with nothing in it yet."""
    return turn.role == "assistant" and not turn.tool_calls and not turn.content.strip()


def attempted(render: Callable[[Conversation], Rendered], conversation: Conversation) -> Rendered | RowError:
    """What `render` returns for a conversation, or its error."""
    try:
        return render(conversation)
    except RowError as error:
        return error


def open_chat(settings: ChatSettings, model_path: str | PathLike[str] | None) -> ChatFormat:
    """The chat format that settings ask for.

    Args:
        model_path: the model's file or folder, where "auto" looks for a chat template; None for a model without files.

    Raises:
        ConfigurationError: there is no template where one is asked for, or it cannot be used.
    """
    name = FALLBACK if settings.format == AUTO else settings.format
    return ChatFormat(name, CHAT_FORMATS[name].stop, _BuiltInWriter(name, THOUGHTS[settings.think]))


def render_messages(messages: Any) -> str:
    """The prompt of a conversation in the format `rwkv`. Raises RowError as `ChatFormat.render` does."""
    return open_chat(ChatSettings("rwkv"), None).render(messages)
