"""Predicted tokens/s of a steady job: every row's place is taken by a new prompt when its completion ends."""

from __future__ import annotations

from dataclasses import replace
from math import exp, factorial

from .cards import Card
from .predict import predict
from .steps import Step, record

COUNTS = (0, 1, 2, 4, 8, 16)
"""Numbers of prompts in a step that are predicted; a straight line joins them."""


def job_rate(step: Step, prompt: int, completion: int, card: Card, is_recorded: bool = True) -> float:
    """Sampled tokens/s, if the rows fit into the card's memory.

    A completion of n tokens takes n steps, the first of them with its prompt, so that of B rows B / n start in a step.
    Completions end independently of each other: the number of prompts in a step has a Poisson distribution.

    Args:
        step: its `decoding` is B.
        is_recorded: steps are replayed from recordings, also those with prompts; else the host launches those.
    """
    return step.decoding / mixed_seconds(step, prompt, step.decoding / completion, card, is_recorded)


def mixed_seconds(step: Step, prompt: int, mean: float, card: Card, is_recorded: bool = True) -> float:
    """The mean seconds of a step of B rows, of which a number with a Poisson distribution read their prompts.

    Args:
        step: its `decoding` is B.
        prompt: tokens of a prompt.
        mean: of the number of prompts.
        is_recorded: as for `job_rate`.
    """
    seconds = {}
    for count in (count for count in COUNTS if count < step.decoding or not count):
        mixed = replace(step, decoding=step.decoding - count, prompts=(prompt,) * count)
        found = predict(record(mixed), card)
        seconds[count] = found.recorded if is_recorded or not count else found.unrecorded
        if count > 2 * mean + 4:
            break
    return sum(_poisson(count, mean) * _between(seconds, count) for count in range(4 * round(mean) + 16))


def _poisson(count: int, mean: float) -> float:
    return exp(-mean) * mean**count / factorial(count)


def _between(known: dict[int, float], count: int) -> float:
    """The value at a count, on the straight line between the nearest known ones."""
    low = max((each for each in known if each <= count), default=0)
    high = min((each for each in known if each > count), default=None)
    if high is None:
        last, before = sorted(known)[-1], sorted(known)[-2]
        return known[last] + (count - last) * (known[last] - known[before]) / (last - before)
    return known[low] + (count - low) * (known[high] - known[low]) / (high - low)
