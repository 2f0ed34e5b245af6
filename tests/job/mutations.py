"""Random changes of the files that a user names: of the values in a job file, and of the bytes of any file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

HUGE = 10**100
NESTED = "<nested>"
"""In a document that `as_json` writes: lists in lists, deeper than a parser may recurse."""
DEPTH = 1_200

INTEGERS = (0, -1, 1, 3, 2**31, 2**63, -(2**63) - 1, HUGE, -HUGE)
FLOATS = (0.0, 0.5, -0.5, 1e308, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", " ", "\0", "a\0b", "\ud800", "é\u2028", "x" * 300, "x" * 70_000, "auto", "none", "null", "demo", "1")
PLACES = ("hf://", "hf:///", "file://", "file://\0", "://", "zip://x", "memory://", "a::b://c", "/dev/null")
GLOBS = ("[!]", "**[", "[a-", "[z-a]", "[\\]")
FILES = ("missing/x.txt", ".", "job.yaml", "fifo", "folder", "loop")
TEMPLATES = ("{{", "{{ x }}", "{% for %}")
LISTS = ([], [None], [[]], [HUGE], ["\ud800"], [1, "a", None])
MAPPINGS = ({}, {"": ""}, {"a": {"b": HUGE}}, {"\ud800": 1}, {"5": HUGE}, {"9" * 100: 1})
VALUES: tuple[Any, ...] = (
    *(None, True, False, NESTED, *INTEGERS, *FLOATS, *TEXTS, *PLACES, *GLOBS, *FILES, *TEMPLATES, *LISTS, *MAPPINGS),
)
"""Values that take the place of any setting. None of them reads from a network, from / or from another job."""

DRAWN_FAR = ("n", "regex", "grammar", "json_schema")
"""Settings whose right values may ask for endless work. They get values that are short and of another type."""
SAFE = (None, True, -1, 0, HUGE, 0.5, float("nan"), "", "\0", "\ud800", [], {}, [HUGE], NESTED)

PIECES = (b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\n", b"\r", b'"', b"{", b"[" * 3000)
YAML_PIECES = (b"!!int ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"&a ", b"*a ", b"<<: ", b"9" * 5000, b"${", b"- ")
TEMPLATE_PIECES = (b"{% if x %}" * 200, b"{{ 1" + b"+1" * 5000, b"{{ (" + b"(" * 300, b"{%", b"}}", b"{{ x.y.z() }}")
BYTES = (*PIECES, *YAML_PIECES, *TEMPLATE_PIECES)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in mappings and lists."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(document[key], (*path, key))


def mutated(dice: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """A copy in which one to three values are replaced, removed or renamed."""
    changed = copy.deepcopy(document)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        *path, key = dice.choice(list(places(changed)) or [("new",)])
        holder = changed
        for step in path:
            holder = holder[step]
        action = dice.choice(("replace", "replace", "replace", "remove", "rename"))
        value = copy.deepcopy(dice.choice(SAFE if key in DRAWN_FAR else VALUES))
        if action == "replace" or isinstance(holder, list):
            holder[key] = value
        else:
            old = holder.pop(key, None)
            if action == "rename":
                holder[str(dice.choice(("nope", "\ud800", "", f"{key}s")))] = old
    return changed


def as_json(document: Any, dice: random.Random) -> bytes:
    """The document in JSON, which is YAML too. A key may be there twice."""
    text = json.dumps(document)
    if dice.random() < 0.05:
        text = text.replace('{"', '{"task": 1, "', 1)
    return text.replace(json.dumps(NESTED), "[" * DEPTH + "]" * DEPTH).encode()


def mutated_bytes(dice: random.Random, data: bytes) -> bytes:
    """The bytes with one to four changes: some replaced, inserted, removed, repeated, or the end cut off."""
    for _ in range(dice.randint(1, 4)):
        data = dice.choice(_CHANGES)(dice, data, dice.randint(0, len(data)))
    return data


def _replace(dice: random.Random, data: bytes, at: int) -> bytes:
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def _insert(dice: random.Random, data: bytes, at: int) -> bytes:
    return data[:at] + dice.choice(BYTES) + data[at:]


def _remove(dice: random.Random, data: bytes, at: int) -> bytes:
    return data[:at] + data[at + dice.choice((1, 2, 10, 1000)) :]


def _repeat(dice: random.Random, data: bytes, at: int) -> bytes:
    start = dice.randint(0, at)
    return data[:at] + data[start : start + 2000] + data[at:]


def _cut(dice: random.Random, data: bytes, at: int) -> bytes:
    return data[:at]


_CHANGES: tuple[Callable[[random.Random, bytes, int], bytes], ...] = (
    _replace,
    _replace,
    _insert,
    _insert,
    _remove,
    _repeat,
    _cut,
)
