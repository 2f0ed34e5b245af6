"""Chat templates in the Jinja of Hugging Face: compiled in the parent, run in Jinja's sandbox in another process.

A template sees `messages`, `tools`, `add_generation_prompt`, `bos_token` and `eos_token`, and what a caller adds. It
may call `raise_exception` and, outside of jobs, `strftime_now`; `tojson` writes plain JSON, without escapes for HTML.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError, meta, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import ConfigurationError, RowError, one_of
from .rendering import Answer, answering
from .templates import PROGRAM_ERRORS, compiling

NAME = "chat template"
CLOCK = "strftime_now"
THINK_NAMES: dict[str, dict[str, Any]] = {
    "enable_thinking": {"open": True, "fake": False},
    "rwkv_generation_prompt": {"open": "open_think", "fake": "fake_think"},
}
"""Name that a template may read → value of `ChatSettings.think` → its value. With "none" the template decides."""
DEFAULTS = {"rwkv_prompt_template": "bot"}
"""Name that a template may read → its value, where the caller gives none: what the official tokenizer passes."""


def checked_names(given: Any) -> Mapping[str, Any]:
    """The further names for a chat template that a caller gives.

    Raises:
        RowError: code "bad_messages": this is no mapping of names.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        shown = reprlib.repr(given)
        raise RowError("bad_messages", f"chat_template_kwargs: got {shown}, expected a mapping of names")
    return given


def think_in(names: Any) -> str | None:
    """The value of `ChatSettings.think` that names for a chat template mean, for a format without a template.

    Returns:
        None where no name of `THINK_NAMES` is among them.

    Raises:
        RowError: code "bad_messages": a value means nothing, or this is no mapping of names.
    """
    found = None
    for name, value in checked_names(names).items():
        if value is None or name not in THINK_NAMES:
            continue
        known = THINK_NAMES[name]
        found = next((think for think, meant in known.items() if type(meant) is type(value) and meant == value), None)
        if found is None:
            expected = one_of([repr(meant) for meant in known.values()])
            raise RowError("bad_messages", f"chat_template_kwargs.{name}: got {value!r}, expected {expected}")
    return found


class SpecialTokens(NamedTuple):
    """What the files beside a model say of its special tokens.

    Args:
        bos_token, eos_token: their texts; "" where there is none.
        others: the texts of all special tokens.
    """

    bos_token: str = ""
    eos_token: str = ""
    others: tuple[str, ...] = ()


class Input(NamedTuple):
    """What a template renders.

    Args:
        messages: as `plain_messages` returns them, with the roles system, user, assistant and tool.
        tools: as `plain_tools` returns them.
        is_open: the prompt ends with the beginning of the assistant's turn.
        is_continued: it ends inside the last message.
        names: further names that the template may read.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    is_open: bool
    is_continued: bool
    names: Mapping[str, Any]


class Shared(NamedTuple):
    """What the process that renders is given."""

    source: str
    tokens: SpecialTokens
    has_clock: bool


class _Refused(Exception):
    """The template has called `raise_exception`."""


class ChatTemplate:
    """A chat template, compiled.

    Args:
        tokens: of the model.
        has_clock: it may call `strftime_now`. A job that is started again must give the same prompts, so it may not.

    Attributes:
        names: the names that it reads and does not set.

    Raises:
        ConfigurationError: a syntax error, or a filter or function that draws at random or reads the clock.
    """

    def __init__(self, source: str, tokens: SpecialTokens = SpecialTokens(), has_clock: bool = True) -> None:  # noqa: B008
        environment = _environment(has_clock)
        self._tokens = tokens
        with compiling(NAME):
            tree = environment.parse(source)
            self.names = meta.find_undeclared_variables(tree)
            if not has_clock and _calls_clock(tree):
                raise ConfigurationError(
                    f"{NAME}: {CLOCK} reads the clock, and a job that is started again would give other prompts; call "
                    f"it only where '{CLOCK} is defined'"
                )
            self._template = environment.from_string(tree)

    def render(self, given: Input) -> str:
        """The prompt of a conversation.

        Raises:
            RowError: code "bad_messages": the template refuses the messages, or a message could begin a turn;
                "template_error": an operation fails, or the sandbox forbids it.
        """
        for number, message in enumerate(given.messages):
            self._refuse_marks(message, f"message {number}", "message")
        for number, tool in enumerate(given.tools):
            self._refuse_marks(tool, f"tool {number}", "tool")
        if given.is_continued:
            *others, last = given.messages
            marked = {**last, "content": f"{last['content'].rstrip()}{_END}"}
            text, found, _ = self._rendered(given._replace(messages=[*others, marked])).rpartition(_END)
            if not found:
                reason = "changes the last message, so that it cannot be continued; leave it out"
                raise RowError("bad_messages", f"the {NAME} {reason}")
        else:
            text = self._rendered(given)
        return text.removeprefix(self._tokens.bos_token)

    def _refuse_marks(self, value: Any, where: str, what: str) -> None:
        """Raises RowError where a text in a message, or in a tool, could begin a turn."""
        for text in _texts_in(value):
            for mark in self._marks:
                if mark in text:
                    raise RowError(
                        "bad_messages",
                        f"{where} has the text {mark!r} in it, with which the {NAME} divides turns; take it out, so "
                        f"that the {what} cannot begin a turn",
                    )

    def _rendered(self, given: Input) -> str:
        names = {"bos_token": self._tokens.bos_token, "eos_token": self._tokens.eos_token, **given.names}
        try:
            return self._template.render(
                {
                    **names,
                    "messages": given.messages,
                    "tools": given.tools or None,
                    "add_generation_prompt": given.is_open,
                }
            )
        except _Refused as error:
            raise RowError("bad_messages", f"the {NAME} refuses the messages: {error}") from None
        except (TemplateError, *PROGRAM_ERRORS) as error:
            raise RowError("template_error", f"{NAME}: {type(error).__name__}: {error}") from error

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """The texts with which a message could begin a turn: special tokens, and what divides two messages."""
        dividers = [text for pair in _PAIRS if (text := self._divider(*pair)).strip()]
        ends = {text.partition("\n")[0].strip() for text in dividers}  # such as "<|im_end|>", whoever speaks next
        tokens = [token for token in self._tokens.others if any(token in text for text in dividers)]
        tokens += [token for text in dividers for token in _TAG.findall(text)]
        found = [*tokens, *(ends if len(ends) == 1 else ()), *(text.strip(" ") for text in dividers)]
        return tuple(dict.fromkeys(text for text in found if text and text not in _THOUGHT_TAGS))

    def _divider(self, first: str, second: str) -> str:
        """What the template writes between the contents of two messages; "" where it refuses them."""
        messages = [{"role": first, "content": _SAMPLES[0]}, {"role": second, "content": _SAMPLES[1]}]
        try:
            text = self._rendered(Input(messages, [], is_open=False, is_continued=False, names=dict(DEFAULTS)))
        except RowError:
            return ""
        divider, found, _ = text.partition(_SAMPLES[0])[2].partition(_SAMPLES[1])
        return divider if found else ""


_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z]+\]")
"""What is a token of its own in the dividers of many templates, such as <|im_start|>, </s> and [INST]."""
_THOUGHT_TAGS = ("<think>", "</think>")
"""What some templates write between turns too, but what begins none: answers of earlier turns may have thoughts."""
_ROLES = ("system", "user", "assistant")
_PAIRS = [(first, second) for first in _ROLES for second in _ROLES if first != second]
_SAMPLES = ("Wpe7Kq", "Zjd4Xu")
"""Two contents that no template has in itself."""
_END = "Qxv8Rh"
"""What stands for the end of a message that is continued."""


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            rest += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            rest += one


def answer_conversations(shared: Shared) -> Callable[[list[Input]], list[Answer]]:
    """What the process calls that renders: see `answering`."""
    return answering(ChatTemplate(*shared).render, NAME)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training: what is inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment(has_clock: bool) -> ImmutableSandboxedEnvironment:
    # Without the optimizer, expressions of constants are computed for each prompt, within the limits of a prompt.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _Generation],
        finalize=_finalized,
        optimized=False,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    if has_clock:
        environment.globals[CLOCK] = _strftime_now
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


@pass_eval_context  # so that Jinja does not print constants when it compiles
def _finalized(_: nodes.EvalContext, value: Any) -> Any:
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _calls_clock(tree: nodes.Template) -> bool:
    """Whether a template calls `strftime_now` without asking whether it is defined."""
    asks = any(
        isinstance(test.node, nodes.Name) and test.node.name == CLOCK
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined")
    )
    calls = any(isinstance(call.node, nodes.Name) and call.node.name == CLOCK for call in tree.find_all(nodes.Call))
    return calls and not asks
