"""Booking: takes in the results of steps, in arrays by slot, and decides which sequences have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np

from ..outputs import FinishReason
from .request import END_OF_TEXT, Completion, Request, StopMatcher
from .sequence import Sequence
from .token_scores import TokenScores
from .top_table import TopTable

_NO_PLACE = -1


class SampledTokens(NamedTuple):
    """One sampled token for each of n rows, on the host."""

    token_ids: np.ndarray
    """[n] int64."""
    logprobs: np.ndarray
    """[n] float64, natural logarithm."""
    top_rows: np.ndarray
    """[m] int64: those of the n rows whose requests ask for the most likely tokens."""
    top: TokenScores | None
    """The scores of those m tokens; None if m is 0."""


class SampledRows(NamedTuple):
    """The rows of a launched step that sample a token, and their owners.

    The owners are kept because a slot may belong to another sequence by the time the results are read.
    """

    slots: np.ndarray
    """[n] int64."""
    owners: np.ndarray
    """[n] int64: `Booking.owners` of the slots when the step was launched."""
    token_index: np.ndarray
    """[n] int64: index of each token in its completion."""


class Booking:
    """Collects the tokens and scores of the running sequences, one entry for each of P slots, and ends sequences.

    Results are read a step after they were launched, when a slot may have a new sequence. Each sequence therefore gets
    a new owner number when its entry is opened, and results with another owner number are dropped.

    Args:
        new_stop_matcher: makes a stop matcher for a number of slots; None where no request has stop strings.
    """

    def __init__(self, num_slots: int, new_stop_matcher: Callable[[int], StopMatcher] | None = None) -> None:
        self._new_stop_matcher = new_stop_matcher
        self._stop_matcher: StopMatcher | None = None
        self._requests: list[Request | None] = [None] * num_slots
        self._owner = np.zeros(num_slots, np.int64)
        self._is_open = np.zeros(num_slots, bool)
        self._max_tokens = np.zeros(num_slots, np.int64)
        self._stops_at_end_of_text = np.zeros(num_slots, bool)
        self._has_stop_strings = np.zeros(num_slots, bool)
        self._length = np.zeros(num_slots, np.int64)
        self._stops = np.full((num_slots, 0), -1)
        self._token_ids = np.zeros((num_slots, 64), np.int32)
        self._logprobs = np.zeros((num_slots, 64))
        self._tops: dict[int, TopTable] = {}  # K, the number of most likely tokens asked for → table
        self._top_place = np.full(num_slots, _NO_PLACE)  # each entry's place in its table
        self._num_top = np.zeros(num_slots, np.int64)  # K of each entry that has a place
        # Slot → parts of the prompt's scores, parts of the scores of `next_token_ids`.
        self._scores: dict[int, tuple[list[TokenScores], list[TokenScores]]] = {}
        self._failed: set[int] = set()  # slots of sequences that have scores that are not finite

    def open(self, sequences: Iterable[Sequence]) -> None:
        """Opens an entry for each of these sequences that has a request."""
        opened = [(sequence.slot, sequence.request) for sequence in sequences if sequence.request is not None]
        if not opened:
            return
        slots = np.array([slot for slot, _ in opened], np.int64)
        self._owner[slots] += 1
        self._is_open[slots] = True
        self._length[slots] = 0
        self._max_tokens[slots] = [request.params.token_limit for _, request in opened]
        # A constraint that allows the end of text allows nothing after it, so ignore_eos has no effect on it.
        self._stops_at_end_of_text[slots] = [
            request.new_constraint is not None or not request.params.ignore_eos for _, request in opened
        ]
        self._has_stop_strings[slots] = [request.stop_strings is not None for _, request in opened]
        self._stops[slots] = -1
        self._top_place[slots] = _NO_PLACE
        for slot, request in opened:
            self._requests[slot] = request
            if request.stop_strings is not None:
                self._matcher().start(slot, request.stop_strings)
            if request.params.stop_token_ids:
                self._set_stops(slot, request.params.stop_token_ids)
            if request.params.logprobs is not None and request.params.token_limit:
                self._top_place[slot] = self._tops.setdefault(request.params.logprobs, TopTable()).open()
                self._num_top[slot] = request.params.logprobs
            if request.score_start is not None or request.next_token_ids:
                self._scores[slot] = ([], [])

    def _set_stops(self, slot: int, token_ids: SequenceOf[int]) -> None:
        width = self._stops.shape[1]
        if len(token_ids) > width:
            self._stops = np.pad(self._stops, ((0, 0), (0, len(token_ids) - width)), constant_values=-1)
        self._stops[slot, : len(token_ids)] = token_ids

    def owners(self, slots: np.ndarray) -> np.ndarray:
        """The owner numbers of the sequences that have these slots' entries now, [n] int64."""
        return self._owner[slots]

    def owns(self, slot: int, owner: int) -> bool:
        """Whether the sequence with this owner number still has the slot's entry."""
        return bool(self._is_open[slot]) and int(self._owner[slot]) == owner

    def add_scores(self, slot: int, owner: int, scores: TokenScores, are_next: bool) -> None:
        """Takes in the scores of some prompt tokens, or of `next_token_ids`. Scores of a closed entry are dropped."""
        if self.owns(slot, owner):
            parts = self._scores[slot][are_next]
            # A part is a slice of the arrays of everything that its step has scored, and keeps them alive until it is
            # copied. The last part needs no copy, because the entry is closed soon after it.
            if parts:
                parts[-1] = parts[-1].copy()
            parts.append(scores)

    def fail(self, slot: int, owner: int) -> None:
        """Marks a sequence whose scores are not finite: its finish reason will be "error"."""
        if self.owns(slot, owner):
            self._failed.add(slot)

    def record(self, rows: SampledRows, tokens: SampledTokens) -> list[tuple[int, Completion]]:
        """Takes in one sampled token of each row. Rows whose entry is closed are dropped.

        The end rules are tested in arrays for all rows at once; Python touches only the rows that end.

        Returns:
            (slot, completion) of the sequences that end with their token. Their entries are closed.
        """
        slots, owners, token_index = rows
        token_ids, logprobs, top_rows, top = tokens
        is_open = (self._owner[slots] == owners) & self._is_open[slots]
        self._reserve(int(token_index.max()) + 1)
        if top is not None:
            self._record_top(rows, is_open, top_rows, top)
        if not is_open.all():
            columns = (slots, token_index, token_ids, logprobs)
            slots, token_index, token_ids, logprobs = (each[is_open] for each in columns)
        self._token_ids[slots, token_index] = token_ids
        self._logprobs[slots, token_index] = logprobs
        self._length[slots] = token_index + 1
        is_error = ~np.isfinite(logprobs)
        is_stop = (token_ids == END_OF_TEXT) & self._stops_at_end_of_text[slots]
        if self._stops.shape[1]:
            is_stop |= (self._stops[slots] == token_ids[:, None]).any(1)
        is_end = is_error | is_stop | (token_index + 1 >= self._max_tokens[slots])
        matches = self._stop_matches(slots, token_ids, ~(is_error | is_stop))
        is_end[list(matches)] = True
        ends = np.flatnonzero(is_end)
        ended = (each[ends].tolist() for each in (slots, token_ids, is_error, is_stop))
        completions = []
        for row, slot, token_id, failed, stopped in zip(ends.tolist(), *ended, strict=True):
            if failed:
                self._length[slot] -= 1  # a token whose log-probability is not finite is not part of the result
                completion = self.close(slot, "error")
            elif stopped:
                completion = self.close(slot, "stop", token_id)
                completion.text_tokens -= 1
            elif row in matches:
                stop_string, text_bytes = matches[row]
                completion = self.close(slot, "stop", stop_string)
                completion.text_bytes = text_bytes
            else:
                completion = self.close(slot, "length")
            completions.append((slot, completion))
        return completions

    def close(self, slot: int, finish_reason: FinishReason, stop_reason: str | int | None = None) -> Completion:
        """Closes a slot's entry, and returns its completion with the tokens and scores booked so far."""
        request, length = self._requests[slot], int(self._length[slot])
        assert request is not None
        if slot in self._failed:
            self._failed.remove(slot)
            finish_reason = "error"
        logprobs = self._logprobs[slot, :length].copy()
        completion = Completion(
            request, self._token_ids[slot, :length].copy(), logprobs, finish_reason, stop_reason, text_tokens=length
        )
        if self._top_place[slot] != _NO_PLACE:
            completion.logprobs = self._close_top(slot, logprobs)
        if slot in self._scores:
            prompt_scores, next_scores = self._scores.pop(slot)
            if request.score_start is not None:
                completion.prompt_scores = TokenScores.join(prompt_scores)
            if next_scores:
                completion.next_scores = TokenScores.join(next_scores)
        self._is_open[slot] = False
        self._requests[slot] = None
        return completion

    def close_all(self) -> None:
        """Closes all entries, and drops what they hold."""
        self._is_open[:] = False
        self._requests = [None] * len(self._requests)
        self._tops.clear()
        self._scores.clear()
        self._failed.clear()

    def _record_top(self, rows: SampledRows, is_open: np.ndarray, top_rows: np.ndarray, top: TokenScores) -> None:
        kept = is_open[top_rows]
        if not kept.all():
            top_rows, top = top_rows[kept], top.part(kept)
        assert top.top is not None
        slots, token_index = rows.slots[top_rows], rows.token_index[top_rows]
        for count, table in self._tops.items():
            own = np.flatnonzero(self._num_top[slots] == count)
            if len(own):
                table.write(self._top_place[slots[own]], token_index[own], top.top.part(own, count))

    def _close_top(self, slot: int, logprobs: np.ndarray) -> TokenScores:
        """Takes the most likely tokens at each position of a completion. A table that becomes empty is freed."""
        count = int(self._num_top[slot])
        scores = self._tops[count].close(int(self._top_place[slot]), logprobs)
        if self._tops[count].is_empty:
            del self._tops[count]
        return scores

    def _stop_matches(
        self, slots: np.ndarray, token_ids: np.ndarray, continues: np.ndarray
    ) -> dict[int, tuple[str, int]]:
        """Row → the stop string that its token completes, and how many bytes of the text remain."""
        rows = np.flatnonzero(self._has_stop_strings[slots] & continues)
        if not len(rows):
            return {}
        found = self._matcher().push(slots[rows], token_ids[rows])
        return {int(rows[match.row]): (match.stop_string, match.text_bytes) for match in found}

    def _matcher(self) -> StopMatcher:
        if self._stop_matcher is None:
            if self._new_stop_matcher is None:
                raise ValueError("a request has stop strings, but this engine was made without new_stop_matcher")
            self._stop_matcher = self._new_stop_matcher(len(self._is_open))
        return self._stop_matcher

    def _reserve(self, length: int) -> None:
        """Makes room for completions of this many tokens."""
        width = self._token_ids.shape[1]
        if length > width:
            extra = max(2 * width, length) - width
            self._token_ids = np.pad(self._token_ids, ((0, 0), (0, extra)))
            self._logprobs = np.pad(self._logprobs, ((0, 0), (0, extra)))
