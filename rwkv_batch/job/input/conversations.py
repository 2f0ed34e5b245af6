"""Conversations of rows: from the cells of a row to its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RowError
from ...rows import ErrorRow, GenerateRow, ScoreRow
from ...text.chat import Conversation
from ...text.messages import ROLE_NAMES, plain_messages
from ...text.rendered import Joined, Rendered
from ..chat import JobChat

OLDER_ROLES = ("system", "user", "assistant", "developer")
"""What a version without tools knew."""

Row = GenerateRow | ScoreRow | ErrorRow


class Conversations:
    """Makes prompts of the conversations of rows.

    Args:
        chat: of the job.
        columns: role → its column, of `CHAT_KINDS` in roles.py.
    """

    def __init__(self, chat: JobChat, columns: Mapping[str, str]) -> None:
        self._chat = chat
        self._columns = columns
        self._joined = Joined()

    def of(self, messages: Any, record: Mapping[str, Any]) -> Any:
        """The conversation of one row.

        Raises:
            RowError: code "bad_messages", or "invalid_text".
        """
        if self._chat.is_older:
            return Conversation(_without_tools(messages))
        given = {role: record[column] for role, column in self._columns.items()}
        return Conversation(messages, given.get("tools"), template_kwargs=_names(given.get("chat_template_kwargs")))

    def rendered(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with a text, or an error, in place of each conversation."""
        given: list[Any] = [row.prompt if isinstance(row, GenerateRow) else None for row in rows]
        conversations = [one for one in given if isinstance(one, Conversation)]
        prompts = iter(self._chat.format.render_many(conversations))
        return [
            self._row(row, next(prompts)) if isinstance(row, GenerateRow) and isinstance(one, Conversation) else row
            for row, one in zip(rows, given, strict=True)
        ]

    def _row(self, row: GenerateRow, prompt: Rendered | RowError) -> GenerateRow | ErrorRow:
        if isinstance(prompt, Rendered) and self._chat.is_older:
            return GenerateRow(row.key, row.row, prompt.text, row.params)
        joined = self._joined(prompt, row.params)
        if isinstance(joined, RowError):
            return ErrorRow(row.key, row.row, joined)
        return GenerateRow(row.key, row.row, *joined)


def _without_tools(messages: Any) -> list[dict[str, Any]]:
    """The messages as a version without tools read them."""
    found = []
    for number, message in enumerate(plain_messages(messages, only_texts=True)):
        if message["role"] in ROLE_NAMES and message["role"] not in OLDER_ROLES:
            expected = ", ".join(OLDER_ROLES)
            raise RowError("bad_messages", f"message {number} has role {message['role']!r}; expected one of {expected}")
        found.append({"role": message["role"], "content": message["content"]})
    return found


def _names(value: Any) -> Mapping[str, Any]:
    """The names for a chat template that a cell holds, perhaps as JSON text."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("bad_messages", f"the chat_template_kwargs are text that is not JSON: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise RowError("bad_messages", f"the chat_template_kwargs are of type {kind}; expected an object")
    return {name: item for name, item in value.items() if item is not None}
