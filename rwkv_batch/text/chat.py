"""Prompts from conversations: the settings of a chat, and the format that renders its messages."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from os import PathLike, fspath
from typing import Any, Protocol, TypeVar

from ..errors import ConfigurationError, RowError, did_you_mean, one_of
from .chat_files import TEMPLATE_FILE, TOKENIZER_FILE, ChatFiles, read_chat_files
from .chat_formats import CHAT_FORMATS, THOUGHTS, Draft, Ending, parsed_or_text
from .chat_template import (
    DEFAULTS,
    THINK_NAMES,
    ChatTemplate,
    Input,
    Shared,
    answer_conversations,
    checked_names,
    think_in,
)
from .chat_template import NAME as TEMPLATE_NAME
from .messages import Turn, as_lists, definitions_of, plain_messages, plain_tools, turns_of
from .rendered import Rendered
from .rendering import Renderer
from .templates import template_source

AUTO, TEMPLATE = "auto", "template"
FALLBACK, OFFICIAL = "rwkv", "bot"
"""What "auto" is without a chat template, and with the official one of RWKV models."""
NONE_BESIDE = "no chat template beside the model"

Made = TypeVar("Made")


def format_names() -> list[str]:
    """The names that `ChatSettings.format` takes."""
    return [AUTO, *CHAT_FORMATS, TEMPLATE]


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become prompts.

    Args:
        format: "auto", "rwkv", "bot", "function_calling" or "template". "auto" takes the chat template beside the
            model, else "rwkv"; RWKV's official template is "bot".
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
        template_kwargs: further names for a chat template, such as `enable_thinking`. The names of `THINK_NAMES` count
            in every format.
    """

    messages: Any
    tools: Any = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


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
        opens_thought: the model begins with a thought (`ChatSettings.think` is "open").
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
        opens_thought: bool = False,
    ) -> None:
        self.name = name
        self.stop = tuple(stop)
        self.stop_token_ids = tuple(stop_token_ids)
        self.origin = origin
        self.template = template
        self.opens_thought = opens_thought
        self._writer = writer
        self._opened_with: tuple[ChatSettings, str | PathLike[str] | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the format anew, by the settings that `open_chat` was given here."""
        if self._opened_with is None:
            raise TypeError(f"the chat format {self.name!r} was not made from settings")
        settings, model_path = self._opened_with
        if settings.template is not None:
            settings = replace(settings, template=self.template)  # the file may change
        return _opened, (settings, None if model_path is None else fspath(model_path))

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
        think = think_in(conversation.template_kwargs)
        thought = self._thought if think is None else THOUGHTS[think]
        return Rendered(*self._format.write(Draft(turns, tools, ending, thought)))


class _TemplateWriter:
    """Renders the conversations of a chat template, in another process.

    Args:
        names: what the template may read, unless a conversation brings other values.
        files: what stands beside the model.
    """

    def __init__(self, shared: Shared, names: Mapping[str, Any], files: ChatFiles) -> None:
        function = f"{answer_conversations.__module__}:{answer_conversations.__name__}"
        self._renderer = Renderer(function, shared, TEMPLATE_NAME)
        self._names = names
        self._files = files

    def write(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        inputs = [attempted(self._input, one) for one in conversations]
        texts = iter(self._renderer.render([one for one in inputs if not isinstance(one, RowError)]))
        prompts = [one if isinstance(one, RowError) else next(texts) for one in inputs]
        stops = self._files.stop, self._files.stop_token_ids
        return [one if isinstance(one, RowError) else Rendered(one, *stops) for one in prompts]

    def _input(self, conversation: Conversation) -> Input:
        messages = plain_messages(conversation.messages)
        turns = turns_of(messages)
        ending = ending_of(conversation, turns)
        if ending == "opened" and _is_blank(turns[-1]):
            messages.pop()
        for message, turn in zip(messages, turns, strict=False):
            message["role"] = turn.role
            if turn.role == "tool":
                message["rwkv_json_content"] = parsed_or_text(turn.content)
        names = {**self._names, **checked_names(conversation.template_kwargs)}
        return Input(messages, plain_tools(conversation.tools), ending == "opened", ending == "continued", names)


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


def attempted(make: Callable[[Conversation], Made], conversation: Conversation) -> Made | RowError:
    """What `make` returns for a conversation, or its error."""
    try:
        return make(conversation)
    except RowError as error:
        return error


def open_chat(settings: ChatSettings, model_path: str | PathLike[str] | None, *, has_clock: bool = True) -> ChatFormat:
    """The chat format that settings ask for.

    Args:
        model_path: the model's file or folder, where "auto" looks for a chat template; None for a model without files.
        has_clock: a chat template may call `strftime_now`.

    Raises:
        ConfigurationError: there is no template where one is asked for, or it cannot be used.
    """
    opened = _open_chat(settings, model_path, has_clock)
    opened._opened_with = settings, model_path
    return opened


def _open_chat(settings: ChatSettings, model_path: str | PathLike[str] | None, has_clock: bool) -> ChatFormat:
    name, origin = settings.format, ""
    if name == AUTO and settings.template is not None:
        name = TEMPLATE
    if name in (AUTO, TEMPLATE):
        files = read_chat_files(model_path)
        if name == TEMPLATE or (files.template is not None and not files.is_official):
            return _open_template(settings, files, model_path, has_clock)
        name = OFFICIAL if files.is_official else FALLBACK
        origin = f"{files.origin} is RWKV's official template" if files.is_official else NONE_BESIDE
    writer = _BuiltInWriter(name, THOUGHTS[settings.think])
    return ChatFormat(name, CHAT_FORMATS[name].stop, writer, origin=origin, opens_thought=settings.think == "open")


def _open_template(
    settings: ChatSettings, files: ChatFiles, model_path: str | PathLike[str] | None, has_clock: bool
) -> ChatFormat:
    source, origin = files.template, files.origin
    if settings.template is not None:
        source, origin = template_source(settings.template, "chat.template")
    if source is None:
        raise ConfigurationError(
            f"got {TEMPLATE!r}, but there is no {TEMPLATE_FILE}, and no chat_template in {TOKENIZER_FILE}, beside "
            f"{model_path}; name a file in chat.template, or choose one of {', '.join(CHAT_FORMATS)}",
            setting="chat.format",
        )
    where = "chat.template" if settings.template is not None else "chat.format"
    try:
        template = ChatTemplate(source, files.tokens, has_clock)
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: {error}" if origin else str(error), setting=where) from error
    readable = THINK_NAMES.keys() & template.names
    if settings.think != "none" and not readable:
        raise ConfigurationError(
            f"got {settings.think!r}, expected 'none': the chat template reads none of {', '.join(THINK_NAMES)}",
            setting="chat.think",
        )
    names = {name: value for name, value in DEFAULTS.items() if name in template.names}
    if settings.think != "none":
        names |= {name: THINK_NAMES[name][settings.think] for name in sorted(readable)}
    writer = _TemplateWriter(Shared(source, files.tokens, has_clock), names, files)
    return ChatFormat(
        TEMPLATE,
        files.stop,
        writer,
        stop_token_ids=files.stop_token_ids,
        origin=origin,
        template=source,
        opens_thought=settings.think == "open",
    )


def chosen_format(
    chat: ChatSettings | Mapping[str, Any] | None,
    template: str | PathLike[str] | None,
    model_path: str | PathLike[str] | None,
) -> ChatFormat | None:
    """The chat format that one call asks for; None where it asks for none. The latest ones are kept.

    Args:
        chat: the call's settings.
        template: a chat template, in place of that of `chat`.

    Raises:
        ConfigurationError: as `ChatSettings` and `open_chat`.
    """
    if chat is None and template is None:
        return None
    settings = ChatSettings.of(chat)
    if template is not None:
        settings = replace(settings, template=fspath(template))
    return _opened(settings, None if model_path is None else fspath(model_path))


@lru_cache(maxsize=16)
def _opened(settings: ChatSettings, model_path: str | None) -> ChatFormat:
    return open_chat(settings, model_path)


def chat_prompts(messages: Any, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompts of one conversation, or of a list of conversations, each with these options.

    Raises:
        ValueError: these are neither.
    """
    messages = as_lists(messages)
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages: got {reprlib.repr(messages)}, expected a list of messages, or of conversations")
    is_one = isinstance(messages[0], Mapping)
    conversations = [messages] if is_one else messages
    for number, conversation in enumerate(conversations):
        if not isinstance(conversation, list | tuple) or not all(isinstance(one, Mapping) for one in conversation):
            where = "messages" if is_one else f"conversation {number}"
            raise ValueError(f"{where}: got {reprlib.repr(conversation)}, expected a list of messages")
    return [{"messages": conversation, **options} for conversation in conversations]
