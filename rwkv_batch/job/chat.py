"""The conversations of a job: the format that its prompts are rendered with, and what a started job began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..text.chat import ChatFormat, ChatSettings, open_chat
from ..text.thoughts import constraint_of, no_thought
from .config import ChatSection, JobConfig

OLDER = (
    "this job was begun by a version without the section chat: it goes on as it began, with format rwkv, without "
    "default stops and without tools"
)


@dataclass(frozen=True)
class JobChat:
    """How the conversations of a job become prompts.

    Args:
        settings: of the job file.
        format: renders them.
        is_older: the job was begun by a version without the section `chat`. Its prompts stay as they were: rendered
            without tools, and without default stops.
    """

    settings: ChatSettings
    format: ChatFormat
    is_older: bool = False

    @property
    def stops(self) -> list[str]:
        """The default stop strings."""
        return [] if self.is_older else list(self.format.stop)

    def recorded(self) -> dict[str, Any]:
        """What job.json records in place of the section, by dotted name. All of it changes results."""
        if self.is_older:
            return {}
        return {
            "chat.format": self.format.name,
            "chat.think": self.settings.think,
            "chat.template": self.format.template,
            "chat.stop": self.stops,
            "chat.stop_token_ids": list(self.format.stop_token_ids),
        }

    def describe(self) -> dict[str, Any]:
        """The format in plain JSON, for the report."""
        return {
            "format": self.format.name,
            "found": self.format.origin or None,
            "think": self.settings.think,
            "stop": self.stops,
        }

    def lines(self) -> Iterator[str]:
        """The format in words, for --dry-run."""
        origin = f" ({self.format.origin})" if self.format.origin else ""
        yield f"chat      {self.format.name}{origin}, think {self.settings.think}"
        if self.is_older:
            yield f"          {OLDER}"
            return
        ids = f", token ids {list(self.format.stop_token_ids)}" if self.format.stop_token_ids else ""
        yield f"          a turn ends at {', '.join(map(repr, self.stops)) or 'the end of text'}{ids}"


def is_older_job(started: Mapping[str, Any] | None) -> bool:
    """Whether the job was begun by a version without the section `chat`.

    Args:
        started: the settings that job.json records; None where the job has not been started.
    """
    return started is not None and "chat.format" not in started


def open_job_chat(job: JobConfig, has_messages: bool, model_path: Any, is_older: bool) -> JobChat | None:
    """The format of a job's conversations; None where no prompt is one.

    Args:
        has_messages: prompts come from a column of messages.
        model_path: the model's file or folder.
        is_older: `is_older_job` of its settings.

    Raises:
        ConfigurationError: the format or the template cannot be used, or settings have no conversations to apply to.
    """
    if not has_messages:
        if job.chat != ChatSection():
            source = "input.template" if job.input.template is not None else "a column of another role than messages"
            raise ConfigurationError(f"chat: got settings, expected none: prompts come from {source}")
        return None
    settings = ChatSettings(**job.chat.model_dump())
    constraint = constraint_of(job.sampling)
    if settings.think == "open" and constraint is not None:
        raise ConfigurationError(no_thought(f"sampling.{constraint}"), setting="chat.think")
    if is_older and job.chat == ChatSection():
        return JobChat(settings, open_chat(ChatSettings("rwkv"), None), is_older=True)
    return JobChat(settings, open_chat(settings, model_path, has_clock=False))
