"""An estimate of the seconds until a run has finished its rows, with the time in which slots become empty at the end.

While rows wait, all slots are in use, and tokens are sampled at an even rate. When the last row has started, slots
become empty one after another, and the longest row decides when the run ends. How long that takes follows from the
lengths of the rows that are finished.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..output.length_counts import LengthCounts
from .run_status import RunStatus
from .wording import duration

LEAST_SECONDS = 3.0
LEAST_ROWS = 20
LEAST_SHARE = 0.1
"""There is an estimate after so many seconds, when so many rows, or such a share of all, are done. Error rows do not
count: they are finished when they are read."""
MEMORY_SECONDS = 10.0
MEMORY_SHARE = 0.05
"""Rates are means in which the weight of a moment falls by e in so many seconds, or in this share of the run."""
SHORTEST_TAIL = 0.1
"""Where rows run longer than all finished ones, they are expected to take so much of the longest one's time more."""
TRUSTED_LENGTHS = 3.0
"""Longer rows than the longest finished one are expected until so many times its duration are over."""
SLOWEST = 10.0
"""A recent rate that is so many times lower than that of the whole run is no rate to expect."""
POINTS = 64
"""Of a numerical integral."""


class TimeLeft:
    """Estimates the time that is left from the status of each moment. Call `update` about once a second."""

    def __init__(self) -> None:
        self._last = RunStatus()
        self._seconds = self._slot_seconds = self._tokens = self._rows = 0.0  # recent ones count more than old ones
        self._most_slots = 0
        self._draining_since: float | None = None
        self._has_queued = False

    def update(self, status: RunStatus, lengths: LengthCounts) -> float | None:
        """Returns the seconds left; None where there is no basis for an estimate yet.

        Args:
            lengths: of the completions that this run has finished.
        """
        self._take_in(status)
        left = status.rows_total - status.rows_done
        if left <= 0:
            return 0.0
        made = status.rows_done - status.rows_resumed
        least = min(LEAST_ROWS, max(1, math.ceil(LEAST_SHARE * (status.rows_total - status.rows_resumed))))
        if made - status.errors < least or status.seconds < LEAST_SECONDS or self._seconds <= 0:
            return None
        if status.completion_tokens and not lengths.count:
            return None
        if not lengths.total or self._tokens <= 0 or self._slot_seconds <= 0:
            return left * self._pace(self._rows, made)
        return self._of_completions(status, lengths, left, made)

    def _pace(self, recent: float, all_of_run: float) -> float:
        """The seconds that one row, or one token, takes at the recent rate.

        Args:
            recent: rows or tokens of `_seconds`.
            all_of_run: those since the start. A run that pauses is not expected to go on so for ever.
        """
        slowest = SLOWEST * self._last.seconds / all_of_run
        return min(self._seconds / recent, slowest) if recent > 0 else slowest

    def _take_in(self, status: RunStatus) -> None:
        """Adds what has happened since the last status to the recent seconds, slots, tokens and rows."""
        last, self._last = self._last, status
        passed = max(status.seconds - last.seconds, 0.0)
        kept = math.exp(-passed / max(MEMORY_SECONDS, MEMORY_SHARE * status.seconds))
        made = status.rows_done - status.rows_resumed - (last.rows_done - last.rows_resumed)
        self._seconds = self._seconds * kept + passed
        self._slot_seconds = self._slot_seconds * kept + passed * (status.slots_in_use + last.slots_in_use) / 2
        self._tokens = self._tokens * kept + status.completion_tokens - last.completion_tokens
        self._rows = self._rows * kept + made
        self._most_slots = max(self._most_slots, status.slots_in_use)

    def _of_completions(self, status: RunStatus, lengths: LengthCounts, left: int, made: int) -> float:
        """The seconds left of a job that samples."""
        sequences = lengths.count / made * left  # of the rows that are left
        running = min(max(status.slots_in_use, 1), max(sequences, 1.0))
        limit = math.inf if lengths.limit is None else lengths.limit
        in_flight = max(status.completion_tokens - lengths.total, 0)
        if lengths.count > made:  # tokens of samples that have ended are in it, whose rows have not
            in_flight = min(in_flight, round(running * lengths.total / lengths.count * (1 + lengths.variation) / 2))
        token_seconds = self._slot_seconds / self._tokens  # of a sequence
        if sequences <= self._most_slots:
            return token_seconds * self._longest_of_last(status.seconds / token_seconds, lengths, running, in_flight)
        self._has_queued, self._draining_since = True, None
        variation = _variation(lengths, running, in_flight)
        # Rows that are finished early are short ones. What renewal theory says of that: the tokens of rows in flight
        # belong to the finished rows with this weight. It is 0 for rows of one length.
        mean = min((lengths.total + in_flight * 2 * variation / (1 + variation)) / lengths.count, limit)
        # The tokens until the last row starts are those of the rows that wait: those that run then have, on average, as
        # many tokens before them as those that run now. Rows of one length are an exception, as they end together.
        evenness = max(1 - variation, 0.0)
        ahead = running * mean * (1 - (1 + variation) / 2) - in_flight
        work = max((sequences - running) * mean + evenness * ahead, 0.0)
        longest = max(longest_left(lengths, running), in_flight / running)
        if status.seconds < TRUSTED_LENGTHS * longest * token_seconds:
            longest += min(variation, 1.0) * max(mean * harmonic(running) - longest, 0.0)
        pace = self._pace(self._tokens, status.completion_tokens)
        return work * pace + token_seconds * min(longest, limit)

    def _longest_of_last(self, now: float, lengths: LengthCounts, running: float, in_flight: int) -> float:
        """The expected number of tokens until the last sequence ends, when all sequences have started.

        Args:
            now: the time since the start of the run, in tokens of a sequence.
            running: how many sequences run.
            in_flight: tokens that they have.
        """
        if self._draining_since is None:
            self._draining_since = now if self._has_queued else 0.0
        age = now - self._draining_since
        if self._has_queued:
            longest = longest_left(lengths, running, age)
            if now < TRUSTED_LENGTHS * lengths.largest:
                mean = lengths.total / lengths.count
                longest += min(lengths.variation, 1.0) * max(mean * harmonic(running) - longest, 0.0)
        else:  # all have started together; nothing is known of lengths beyond their age but how many have ended
            raggedness = min(3 * lengths.variation, 1.0)  # the first third of any smooth distribution has 1/3 or more
            longest = (lengths.total + in_flight) / lengths.count * harmonic(running)
            longest = raggedness * longest + (1 - raggedness) * SHORTEST_TAIL * lengths.largest
        return longest if lengths.limit is None else min(longest, max(lengths.limit - age, 1.0))


def in_words(seconds: float | None) -> str:
    """An estimate in words, in whole seconds: "4 min 12 s"; "measuring" where there is none yet."""
    return "measuring" if seconds is None else duration(math.ceil(seconds))


def _variation(lengths: LengthCounts, running: float, in_flight: int) -> float:
    """The squared coefficient of variation of all lengths. Early, long sequences have not ended: those in flight have
    more tokens than the finished ones explain."""
    mean = lengths.total / lengths.count
    of_running = 2 * in_flight / (running * mean) - 1
    return max(lengths.variation, of_running if of_running > 1 else 0.0)  # up to 1 for sequences of one length


def harmonic(count: float) -> float:
    """1 + 1/2 + … + 1/count, about."""
    return math.log(count) + 0.5772 + 1 / (2 * count) if count > 1 else 1.0


def longest_left(lengths: LengthCounts, running: float, age: float = 0.0) -> float:
    """Returns the expected number of tokens until the last of some sequences ends, which started one after another.

    Args:
        lengths: of sequences that have ended.
        running: how many sequences run.
        age: tokens of a sequence since the last one has started.
    """
    edges, shares = lengths.survival()
    areas = _areas_above(edges, shares)
    now = _at(edges, areas, age)
    if now <= 0 or age >= edges[-1]:
        return SHORTEST_TAIL * edges[-1]
    step = (edges[-1] - age) / POINTS
    ends = (_at(edges, areas, age + (index + 0.5) * step) / now for index in range(POINTS))
    return max(step * sum(1 - (1 - min(share, 1.0)) ** running for share in ends), 1.0)


def _areas_above(edges: list[float], shares: list[float]) -> list[float]:
    """Returns for each edge the area under the shares from there on: the survival of a sequence that runs already, up
    to a factor."""
    areas = [0.0]
    for (low, high), (before, after) in zip(pairwise(edges[::-1]), pairwise(shares[::-1]), strict=True):
        areas.append(areas[-1] + (low - high) * (before + after) / 2)
    return areas[::-1]


def _at(edges: list[float], values: list[float], position: float) -> float:
    """The value at a position, between those at the edges on both sides of it."""
    for (low, high), (before, after) in zip(pairwise(edges), pairwise(values), strict=True):
        if position < high:  # so high > low
            return before + (after - before) * (position - low) / (high - low)
    return values[-1]
