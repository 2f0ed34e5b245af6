"""Messages between `oracle.Worker` and `oracle_worker.py`: dictionaries with tensors, by value."""

from __future__ import annotations

import io
from multiprocessing.connection import Connection
from typing import Any

import torch


def send(connection: Connection, message: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    connection.send_bytes(buffer.getvalue())


def receive(connection: Connection) -> dict[str, Any]:
    message: dict[str, Any] = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=True)
    return message
