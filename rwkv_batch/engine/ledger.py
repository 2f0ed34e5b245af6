"""What each running sequence has produced so far, kept by slot in arrays: taking in a step costs little per row."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from .logprobs import Logprobs
from .request import END_OF_TEXT, Completion
from .sequence import Sequence

_NO_STOP = -1


class Ledger:
    """Sampled tokens of P slots, and the rules by which their sequences end.

    A step's results may come in after a slot has passed to another sequence; `entries` tells whose they are.
    """

    def __init__(self, num_slots: int) -> None:
        self._open: list[Completion | None] = [None] * num_slots
        self._sequences: list[Sequence | None] = [None] * num_slots
        self._entry = np.zeros(num_slots, np.int64)
        self._is_open = np.zeros(num_slots, bool)
        self._length = np.zeros(num_slots, np.int64)
        self._max_tokens = np.zeros(num_slots, np.int64)
        self._ends_with_text = np.zeros(num_slots, bool)
        self._is_watched = np.zeros(num_slots, bool)
        self._stops = np.full((num_slots, 1), _NO_STOP)
        self._token_ids = np.zeros((num_slots, 64), np.int32)
        self._logprobs = np.zeros((num_slots, 64))

    def open(self, sequence: Sequence) -> None:
        """Start an entry for a request that has its slot."""
        request, slot = sequence.request, sequence.slot
        assert request is not None
        params = request.params
        completion = Completion(request, monitor=request.new_monitor() if request.new_monitor else None)
        self._open[slot], self._sequences[slot] = completion, sequence
        self._entry[slot] += 1
        self._is_open[slot] = True
        self._length[slot] = 0
        self._max_tokens[slot] = params.max_tokens
        # Nothing may follow the end of text where a constraint allowed it.
        self._ends_with_text[slot] = request.new_constraint is not None or not params.ignore_eos
        self._is_watched[slot] = completion.monitor is not None and completion.monitor.watches
        stops = params.stop_token_ids or ()
        if len(stops) > self._stops.shape[1]:
            self._stops = np.pad(
                self._stops, ((0, 0), (0, len(stops) - self._stops.shape[1])), constant_values=_NO_STOP
            )
        self._stops[slot] = _NO_STOP
        self._stops[slot, : len(stops)] = stops

    def entries(self, slots: np.ndarray) -> np.ndarray:
        """[n]: the entries that are open now in these slots."""
        return self._entry[slots]

    def completion(self, sequence: Sequence) -> Completion:
        """The unfinished result of a sequence that has an entry."""
        completion = self._open[sequence.slot]
        assert completion is not None
        return completion

    def record(
        self,
        slots: np.ndarray,
        entries: np.ndarray,
        token_ids: np.ndarray,
        logprobs: np.ndarray,
        alternatives: SequenceOf[tuple[int, Logprobs]] = (),
    ) -> list[Sequence]:
        """Take in one sampled token of each row, and say which sequences end with it.

        Args:
            slots, token_ids, logprobs: [n], of the rows.
            entries: what `entries` gave when the step was launched. Rows whose entry is closed are dropped.
            alternatives: of some rows, by their place among the n.
        """
        is_open = (self._entry[slots] == entries) & self._is_open[slots]
        is_broken = ~np.isfinite(logprobs)
        for row, found in alternatives:
            completion = self._open[slots[row]]
            if is_open[row] and not is_broken[row] and completion is not None:
                completion.logprobs.append(found)
        slots, token_ids, logprobs, is_broken = (each[is_open] for each in (slots, token_ids, logprobs, is_broken))
        length = self._length[slots]
        self._reserve(int(length.max(initial=0)) + 1)
        self._token_ids[slots, length] = token_ids
        self._logprobs[slots, length] = logprobs
        self._length[slots] = length + 1
        is_end = (token_ids == END_OF_TEXT) & self._ends_with_text[slots]
        is_stop = (self._stops[slots] == token_ids[:, None]).any(1)
        is_full = length + 1 >= self._max_tokens[slots]
        is_watched = self._is_watched[slots]
        flags = np.stack((is_broken, is_end | is_stop, is_watched, is_full))
        rows = np.flatnonzero(flags.any(0))
        finished = []
        # One pass over lists: reading single elements of arrays would cost more than all else here.
        for slot, token_id, (broken, stopped, watched, full) in zip(
            slots[rows].tolist(), token_ids[rows].tolist(), flags[:, rows].T.tolist(), strict=True
        ):
            completion = self._open[slot]
            assert completion is not None
            if broken:
                self._length[slot] -= 1
                completion.finish_reason = "error"
            elif stopped:
                completion.finish_reason, completion.stop_reason = "stop", token_id
            elif watched and (stop := completion.monitor.push(token_id)) is not None:
                completion.finish_reason, completion.stop_reason = "stop", stop
            elif not full:
                continue
            finished.append(self._sequences[slot])
        return [sequence for sequence in finished if sequence is not None]

    def close(self, sequence: Sequence) -> Completion:
        """End a sequence's entry and take its result."""
        completion, slot = self.completion(sequence), sequence.slot
        length = int(self._length[slot])
        completion.token_ids = self._token_ids[slot, :length].tolist()
        completion.token_logprobs = self._logprobs[slot, :length].tolist()
        if completion.monitor is not None and not self._is_watched[slot]:
            text_length = length - (completion.finish_reason == "stop")  # the token that ends the text is not of it
            completion.monitor.extend(completion.token_ids[:text_length])
        self.drop(sequence)
        return completion

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence's entry, if it has one."""
        self._is_open[sequence.slot] = False
        self._open[sequence.slot] = self._sequences[sequence.slot] = None

    def _reserve(self, length: int) -> None:
        extra = max(2 * self._token_ids.shape[1], length) - self._token_ids.shape[1]
        if length > self._token_ids.shape[1]:
            self._token_ids = np.pad(self._token_ids, ((0, 0), (0, extra)))
            self._logprobs = np.pad(self._logprobs, ((0, 0), (0, extra)))
