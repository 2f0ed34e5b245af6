"""The base of classes that stand in for others: the type checker takes their objects for anything."""

from __future__ import annotations

from typing import Any

StandIn: Any = object
