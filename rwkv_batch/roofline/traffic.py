"""Bytes that the launches of a step move between the card's memory and its cache.

The cache keeps what was used last (LRU). A launch's reads come from the cache where they are there; a tensor that is
larger than the cache pushes its own beginning out, and is read from memory. What a launch writes stays in the cache,
and goes to memory when other data push it out, unless nobody reads it any more: the next tensor takes that memory.

The step is run twice, and the second one is counted, so that the cache starts as a step leaves it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from .launches import Launch, Piece

Memory = tuple[int, int]


@dataclass
class Moved:
    """Bytes of one launch that are read from the card's memory, or written there sooner or later."""

    memory: float = 0.0


@dataclass
class _Kept:
    """Data in the cache: bytes, those of them that memory does not have yet, and when they were written."""

    num_bytes: float = 0.0
    dirty: float = 0.0
    written: int = 0


def traffic(launches: Sequence[Launch], l2: float) -> list[Moved]:
    """The bytes that each launch moves, for a cache of `l2` bytes."""
    last = {piece.memory: i for i, launch in enumerate(launches) for piece in (*launch.reads, *launch.writes)}
    first_is_read: dict[Memory, bool] = {}
    for launch in launches:
        for pieces, is_read in ((launch.reads, True), (launch.writes, False)):
            for piece in pieces:
                first_is_read.setdefault(piece.memory, is_read)
    cache: OrderedDict[Memory, _Kept] = OrderedDict()
    count = len(launches)
    moved = [Moved() for _ in range(count)]

    def push_out(memory: Memory, kept: _Kept, dirty: float, now: int) -> None:
        """Writes bytes to memory, unless their tensor was made inside a step and is not read any more."""
        is_over = kept.written // count < now // count or last[memory] <= now % count
        if now >= count and (first_is_read[memory] or not is_over):
            moved[kept.written % count].memory += dirty
        kept.dirty -= dirty

    def make_room(now: int) -> None:
        total = sum(kept.num_bytes for kept in cache.values())
        while total > l2:
            memory, kept = next(iter(cache.items()))
            excess = min(total - l2, kept.num_bytes)
            push_out(memory, kept, max(kept.dirty - (kept.num_bytes - excess), 0.0), now)
            kept.num_bytes -= excess
            total -= excess
            if kept.num_bytes <= 0:
                del cache[memory]

    def use(piece: Piece, now: int) -> _Kept:
        kept = cache.setdefault(piece.memory, _Kept())
        cache.move_to_end(piece.memory)
        if piece.num_bytes > l2:
            push_out(piece.memory, kept, kept.dirty, now)
            kept.num_bytes = 0.0
        return kept

    for now in range(2 * count):
        launch = launches[now % count]
        for piece in launch.reads:
            kept = use(piece, now)
            moved[now % count].memory += max(piece.num_bytes - kept.num_bytes, 0.0) * (now >= count)
            kept.num_bytes = max(kept.num_bytes, float(piece.num_bytes))
            make_room(now)
        for piece in launch.writes:
            kept = use(piece, now)
            kept.num_bytes = max(kept.num_bytes, float(piece.num_bytes))
            kept.dirty, kept.written = float(piece.num_bytes), now
            make_room(now)
    return moved
