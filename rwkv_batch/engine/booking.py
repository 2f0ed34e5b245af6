"""What each running sequence has produced so far, in arrays by slot, and the rules by which sequences end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np

from ..outputs import FinishReason
from .logprobs import TokenScores
from .request import END_OF_TEXT, Completion, Request, StopMatcher
from .sequence import Sequence
from .top_table import TopTable

_NO_PLACE = -1


class SampledTokens(NamedTuple):
    """One sampled token for each of n rows, on the host."""

    token_ids: np.ndarray
    """[n] int64."""
    logprobs: np.ndarray
    """[n] float64, under the model's own distribution, natural logarithm."""
    top_rows: np.ndarray
    """[m] int64: those of the n rows that ask for the most likely tokens."""
    top: TokenScores | None
    """Of the m rows; None where no row asks."""


class BookedRows(NamedTuple):
    """Whose tokens a launched step samples. By the time of its results a slot may belong to another sequence."""

    slots: np.ndarray
    """[n] int64."""
    owners: np.ndarray
    """[n] int64: `Booking.owners` of the slots when the step was launched."""
    numbers: np.ndarray
    """[n] int64: index of each token in its completion."""


class Booking:
    """Takes in the results of steps for P slots.

    Every sequence that opens a slot's entry gets a new owner number, by which late results are recognised.

    Args:
        new_stop_matcher: makes what looks for stop strings, for a number of slots; None where no request has any.
    """

    def __init__(self, num_slots: int, new_stop_matcher: Callable[[int], StopMatcher] | None = None) -> None:
        self._new_stop_matcher = new_stop_matcher
        self._stop_matcher: StopMatcher | None = None
        self._requests: list[Request | None] = [None] * num_slots
        self._owner = np.zeros(num_slots, np.int64)
        self._is_open = np.zeros(num_slots, bool)
        self._max_tokens = np.zeros(num_slots, np.int64)
        self._ends_with_text = np.zeros(num_slots, bool)
        self._is_watched = np.zeros(num_slots, bool)
        self._length = np.zeros(num_slots, np.int64)
        self._stops = np.full((num_slots, 0), -1)
        self._token_ids = np.zeros((num_slots, 64), np.int32)
        self._logprobs = np.zeros((num_slots, 64))
        self._tops: dict[int, TopTable] = {}  # by how many most likely tokens are asked for
        self._top_place = np.full(num_slots, _NO_PLACE)
        self._num_top = np.zeros(num_slots, np.int64)  # most likely tokens that an entry with a place asks for
        self._scores: dict[int, tuple[list[TokenScores], list[TokenScores]]] = {}
        self._broken: set[int] = set()

    def open(self, sequences: Iterable[Sequence]) -> None:
        """Start an entry for each of these sequences that has a request."""
        opened = [(sequence.slot, sequence.request) for sequence in sequences if sequence.request is not None]
        if not opened:
            return
        slots = np.array([slot for slot, _ in opened], np.int64)
        self._owner[slots] += 1
        self._is_open[slots] = True
        self._length[slots] = 0
        self._max_tokens[slots] = [request.params.max_tokens for _, request in opened]
        # A constraint that allows the end of text allows nothing after it.
        self._ends_with_text[slots] = [
            request.new_constraint is not None or not request.params.ignore_eos for _, request in opened
        ]
        self._is_watched[slots] = [request.stop_strings is not None for _, request in opened]
        self._stops[slots] = -1
        self._top_place[slots] = _NO_PLACE
        for slot, request in opened:
            self._requests[slot] = request
            if request.stop_strings is not None:
                self._matcher().start(slot, request.stop_strings)
            if request.params.stop_token_ids:
                self._set_stops(slot, request.params.stop_token_ids)
            if request.params.logprobs is not None and request.params.max_tokens:
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
        """[n] int64: numbers of the sequences that have these slots' entries now."""
        return self._owner[slots]

    def owns(self, slot: int, owner: int) -> bool:
        """A sequence still has its entry."""
        return bool(self._is_open[slot]) and int(self._owner[slot]) == owner

    def add_scores(self, slot: int, owner: int, scores: TokenScores, are_next: bool) -> None:
        """Take in scores of the next prompt tokens, or of `next_token_ids`. Scores of a closed entry are dropped."""
        if self.owns(slot, owner):
            parts = self._scores[slot][are_next]
            if parts:  # it is a slice of arrays of all that its step has scored, which are not to be kept for it
                parts[-1] = parts[-1].copy()
            parts.append(scores)

    def break_off(self, slot: int, owner: int) -> None:
        """Scores of this sequence are not finite: it ends with an error."""
        if self.owns(slot, owner):
            self._broken.add(slot)

    def record(self, rows: BookedRows, tokens: SampledTokens) -> list[tuple[int, Completion]]:
        """Take in one sampled token of each row. Rows whose entry is closed are dropped.

        Returns:
            The completions that end with their token, each with its slot. Their entries are closed.
        """
        slots, owners, numbers = rows
        token_ids, logprobs, top_rows, top = tokens
        is_open = (self._owner[slots] == owners) & self._is_open[slots]
        self._reserve(int(numbers.max()) + 1)
        if top is not None:
            self._record_top(rows, is_open, top_rows, top)
        if not is_open.all():
            slots, numbers, token_ids, logprobs = (each[is_open] for each in (slots, numbers, token_ids, logprobs))
        self._token_ids[slots, numbers] = token_ids
        self._logprobs[slots, numbers] = logprobs
        self._length[slots] = numbers + 1
        is_broken = ~np.isfinite(logprobs)
        is_stop = (token_ids == END_OF_TEXT) & self._ends_with_text[slots]
        if self._stops.shape[1]:
            is_stop |= (self._stops[slots] == token_ids[:, None]).any(1)
        is_end = is_broken | is_stop | (numbers + 1 >= self._max_tokens[slots])
        matches = self._stop_matches(slots, token_ids, ~(is_broken | is_stop))
        is_end[list(matches)] = True
        ends = np.flatnonzero(is_end)
        columns = (each[ends].tolist() for each in (slots, token_ids, is_broken, is_stop))
        completions = []
        for row, slot, token_id, broken, stopped in zip(ends.tolist(), *columns, strict=True):
            if broken:
                self._length[slot] -= 1  # a token whose probability is no number is not a result
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
        """End a slot's entry and take what there is."""
        request, length = self._requests[slot], int(self._length[slot])
        assert request is not None
        if slot in self._broken:
            self._broken.remove(slot)
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
        """End all entries, and drop what they hold."""
        self._is_open[:] = False
        self._requests = [None] * len(self._requests)
        self._tops.clear()
        self._scores.clear()
        self._broken.clear()

    def _record_top(self, rows: BookedRows, is_open: np.ndarray, top_rows: np.ndarray, top: TokenScores) -> None:
        kept = is_open[top_rows]
        if not kept.all():
            top_rows, top = top_rows[kept], top.part(kept)
        assert top.top is not None
        slots, numbers = rows.slots[top_rows], rows.numbers[top_rows]
        for count, table in self._tops.items():
            own = np.flatnonzero(self._num_top[slots] == count)
            if len(own):
                table.write(self._top_place[slots[own]], numbers[own], top.top.part(own, count))

    def _close_top(self, slot: int, logprobs: np.ndarray) -> TokenScores:
        """The most likely tokens beside those of a completion. What no other completion needs is given back."""
        count = int(self._num_top[slot])
        scores = self._tops[count].close(int(self._top_place[slot]), logprobs)
        if self._tops[count].is_empty:
            del self._tops[count]
        return scores

    def _stop_matches(
        self, slots: np.ndarray, token_ids: np.ndarray, goes_on: np.ndarray
    ) -> dict[int, tuple[str, int]]:
        """Row → the stop string that its token completes, and the bytes of the text that remain."""
        watched = np.flatnonzero(self._is_watched[slots] & goes_on)
        if not len(watched):
            return {}
        found = self._matcher().push(slots[watched], token_ids[watched])
        return {int(watched[match.row]): (match.stop_string, match.text_bytes) for match in found}

    def _matcher(self) -> StopMatcher:
        if self._stop_matcher is None:
            if self._new_stop_matcher is None:
                raise ValueError("a request has stop strings, but this engine was made without new_stop_matcher")
            self._stop_matcher = self._new_stop_matcher(len(self._is_open))
        return self._stop_matcher

    def _reserve(self, length: int) -> None:
        width = self._token_ids.shape[1]
        if length > width:
            extra = max(2 * width, length) - width
            self._token_ids = np.pad(self._token_ids, ((0, 0), (0, extra)))
            self._logprobs = np.pad(self._logprobs, ((0, 0), (0, extra)))
