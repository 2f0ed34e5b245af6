"""The prompt that a chat format has rendered, and the sampling parameters with which it is completed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import RowError
from ..sampling_params import SamplingParams, sampling_error
from .thoughts import constrained_prompt


class Rendered(NamedTuple):
    """The prompt of a conversation, and what ends the model's turn after it."""

    text: str
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...] = ()


class _LatestStops(NamedTuple):
    """The latest sampling parameters with a prompt's stops. Fields of `given` may have been set since."""

    given: SamplingParams
    copy: SamplingParams
    """Made when the stops were added."""
    stops: Sequence[Any]
    found: SamplingParams


class Joined:
    """Joins prompts and sampling parameters.

    Prompts in a row with the same parameters and the same stops get one object of parameters.
    """

    def __init__(self) -> None:
        self._last: _LatestStops | None = None

    def __call__(self, prompt: Rendered | RowError, params: SamplingParams) -> tuple[str, SamplingParams] | RowError:
        """The text to complete, and the parameters of its completion; or the error of either."""
        if isinstance(prompt, RowError):
            return prompt
        try:
            return constrained_prompt(prompt.text, params), self.with_stops(params, prompt)
        except RowError as error:
            return error
        except ValueError as error:
            return sampling_error(error)

    def with_stops(self, params: SamplingParams, prompt: Rendered) -> SamplingParams:
        """The parameters with the stops of a prompt, unless they have a `stop` of their own; an empty list is one."""
        _, *stops = prompt
        if params.stop is not None or not any(stops):
            return params
        last = self._last  # another thread may replace it
        if last is not None and last.given is params and last.stops == stops and vars(last.copy) == vars(params):
            return last.found
        ids = [*(params.stop_token_ids or ()), *prompt.stop_token_ids]
        found = replace(params, stop=list(prompt.stop), stop_token_ids=ids or params.stop_token_ids)
        self._last = _LatestStops(params, params.clone(), stops, found)
        return found
