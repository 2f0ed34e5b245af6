"""Prompt prefixes that several requests share: found in a window of requests, each computed once.

A prefix is computed as a sequence of its own; a snapshot of its state is then copied into the slot of each child.
Children follow their parent at once (depth first), and a prefix starts only when steps have tokens to spare, so that
few snapshots live at a time: those on the way from a root to where the walk is, and those just computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .request import Request

MIN_SHARED_TOKENS = 8
"""Below this, computing the tokens again is cheaper than copying a state."""


@dataclass(eq=False)
class Prefix:
    """Prompt tokens that all children start with.

    Args:
        token_ids: from the beginning of the prompt, the parent's tokens included.
        num_steps: the most that any request below has.
        request: one whose prompt is these tokens and that only scores: computing the prefix serves it.
    """

    token_ids: list[int]
    parent: Prefix | None
    num_steps: int
    request: Request | None = None
    children: list[Request | Prefix] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)


def plan_prefixes(window: SequenceOf[Request], share_between_rows: bool = True) -> list[Request | Prefix]:
    """The window's work: prefixes with their children below them, and the requests that share nothing.

    Among the children of a prefix, what may take most steps comes first.

    Args:
        share_between_rows: False shares only between the samples of one row.
    """
    groups: dict[Hashable, list[Request]] = {}
    for request in window:
        groups.setdefault(None if share_between_rows else request.row, []).append(request)
    return [root for group in groups.values() for root in (_plan_group(group) if len(group) > 1 else group)]


def _plan_group(group: list[Request]) -> list[Request | Prefix]:
    arrays = [np.asarray(request.prompt_token_ids, dtype=">u4") for request in group]
    order = sorted(range(len(group)), key=lambda i: arrays[i].tobytes())
    requests = [group[i] for i in order]
    shared = _shared_lengths([arrays[i] for i in order], _shareable(requests))
    steps = [request.num_steps for request in requests]
    roots: list[Request | Prefix] = []
    prefixes: list[Prefix] = []
    pending: list[tuple[int, int, Prefix | None]] = [(0, len(requests), None)]
    while pending:
        start, end, parent = pending.pop()
        siblings = parent.children if parent else roots
        if end - start == 1:
            siblings.append(requests[start])
            continue
        common = int(shared[start + 1 : end].min())
        if common - (parent.length if parent else 0) >= MIN_SHARED_TOKENS:
            first = requests[start]
            parent = Prefix(first.prompt_token_ids[:common], parent, max(steps[start:end]))
            prefixes.append(parent)
            siblings.append(parent)
            if len(first.prompt_token_ids) == common:
                parent.request = first
                start += 1
        cuts = start + 1 + np.flatnonzero(shared[start + 1 : end] == common)
        bounds = [start, *cuts.tolist(), end]
        pending += [(a, b, parent) for a, b in reversed(list(pairwise(bounds)))]
    for prefix in prefixes:
        prefix.children.sort(key=lambda work: -work.num_steps)
    return roots


def _shareable(requests: list[Request]) -> list[int]:
    """For each of the sorted requests: how many of its first tokens a prefix may compute.

    That is those whose hidden states it does not need: all but the last, and none from which a score is taken. A prefix
    may be the whole prompt of one request that only scores what follows; of a second one like it only what is before
    the last token, as each sequence has at least one.
    """
    limits = []
    before: list[int] = []
    for request in requests:
        prompt = request.prompt_token_ids
        if request.score_start is not None:
            limits.append(max(min(len(prompt), request.score_start) - 1, 0))
        else:
            limits.append(len(prompt) - (request.params.max_tokens > 0 or prompt == before))
        before = prompt
    return limits


def _shared_lengths(arrays: list[np.ndarray], limits: list[int]) -> np.ndarray:
    """[n]: how many leading tokens each prompt shares with the one before it, within both limits."""
    lengths = np.zeros(len(arrays), dtype=np.int64)
    for i in range(1, len(arrays)):
        limit = min(limits[i - 1], limits[i])
        differs = np.flatnonzero(arrays[i - 1][:limit] != arrays[i][:limit])
        lengths[i] = differs[0] if len(differs) else limit
    return lengths
