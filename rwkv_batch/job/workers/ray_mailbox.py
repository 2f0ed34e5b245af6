"""The actor through which the workers of a cluster of Ray report to the coordinator. It runs on its node."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple


class Mail(NamedTuple):
    """A message of a worker.

    Args:
        key: of the worker.
        node: the id of its node of Ray; "" in a message of the coordinator.
    """

    key: int
    node: str
    message: Any


class Mailbox:
    """Keeps messages in the order in which they come, until the coordinator takes them."""

    def __init__(self) -> None:
        self._mail: list[Mail] = []
        self._has_mail = asyncio.Event()

    async def put(self, key: int, node: str, messages: list[Any]) -> None:
        """Adds messages of one worker."""
        self._mail += [Mail(key, node, message) for message in messages]
        self._has_mail.set()

    async def take(self) -> list[Mail]:
        """Waits until there is mail, and returns all of it."""
        await self._has_mail.wait()
        self._has_mail.clear()
        mail, self._mail = self._mail, []
        return mail
