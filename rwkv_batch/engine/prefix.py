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
from .shared_lengths import sorted_with_shared_lengths

MIN_SHARED_TOKENS = 8
"""Below this, computing the tokens again is cheaper than copying a state."""


@dataclass(eq=False)
class Prefix:
    """Prompt tokens that all children start with.

    Args:
        token_ids: [T] int32, from the beginning of the prompt, the parent's tokens included.
        num_steps: the most that any request below has.
        request: one whose prompt is these tokens and that only scores: computing the prefix serves it.
    """

    token_ids: np.ndarray
    parent: Prefix | None
    num_steps: int
    request: Request | None = None
    children: list[Request | Prefix] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def is_wanted(self) -> bool:
        """There is a request that this prefix, or one below it, serves."""
        return self.request is not None or bool(self.children)

    def remove(self, keys: set[object]) -> list[Request]:
        """Take out the requests with these keys, here and below."""
        removed = self.remove_children(keys)
        if self.request is not None and self.request.key in keys:
            removed.append(self.request)
            self.request = None
        return removed

    def remove_children(self, keys: set[object]) -> list[Request]:
        """Take out the requests with these keys below, and the prefixes that then serve nothing."""
        removed: list[Request] = []
        prefixes = [self]
        for prefix in prefixes:  # grows: those below follow
            prefixes += [child for child in prefix.children if isinstance(child, Prefix)]
        for prefix in reversed(prefixes):  # those below are done before it
            kept: list[Request | Prefix] = []
            for child in prefix.children:
                if isinstance(child, Prefix):
                    if child.request is not None and child.request.key in keys:
                        removed.append(child.request)
                        child.request = None
                    if child.is_wanted:
                        kept.append(child)
                elif child.key in keys:
                    removed.append(child)
                else:
                    kept.append(child)
            prefix.children = kept
        return removed


def plan_prefixes(window: SequenceOf[Request], share_between_rows: bool = True) -> list[Request | Prefix]:
    """The window's work: prefixes with their children below them, and the requests that share nothing.

    Among the children of a prefix, what may take most steps comes first.

    Args:
        share_between_rows: False shares only between the samples of one row.
    """
    if share_between_rows:
        return _plan_group(window)
    groups: dict[Hashable, list[Request]] = {}
    for request in window:
        groups.setdefault(request.row, []).append(request)
    return [root for group in groups.values() for root in _plan_group(group)]


def _plan_group(group: SequenceOf[Request]) -> list[Request | Prefix]:
    if len(group) < 2:
        return list(group)
    prompts = [np.asarray(request.prompt_token_ids, np.int32) for request in group]
    order, shared = sorted_with_shared_lengths(prompts)
    if not (shared >= MIN_SHARED_TOKENS).any():
        return list(group)
    places = order.tolist()
    requests = [group[i] for i in places]
    prompts = [prompts[i] for i in places]
    limits = _shareable(requests, shared)
    shared[1:] = np.minimum(shared[1:], np.minimum(limits[:-1], limits[1:]))
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
            first = prompts[start]
            parent = Prefix(first[:common], parent, max(steps[start:end]))
            prefixes.append(parent)
            siblings.append(parent)
            if len(first) == common:
                parent.request = requests[start]
                start += 1
        cuts = start + 1 + np.flatnonzero(shared[start + 1 : end] == common)
        bounds = [start, *cuts.tolist(), end]
        pending += [(a, b, parent) for a, b in reversed(list(pairwise(bounds)))]
    for prefix in prefixes:
        prefix.children.sort(key=lambda work: -work.num_steps)
    return roots


def _shareable(requests: list[Request], shared: np.ndarray) -> np.ndarray:
    """For each of the sorted requests: how many of its first tokens a prefix may compute.

    That is those whose hidden states it does not need: all but the last, and none from which a score is taken. A prefix
    may be the whole prompt of one request that only scores what follows; of a second one like it only what is before
    the last token, as each sequence has at least one.

    Args:
        shared: [n], how many leading tokens each prompt shares with the one before it.
    """
    limits = np.zeros(len(requests), np.int64)
    length_before = -1
    for i, request in enumerate(requests):
        length = len(request.prompt_token_ids)
        if request.score_start is not None:
            limits[i] = max(min(length, request.score_start) - 1, 0)
        else:
            is_repeated = length == length_before and int(shared[i]) == length
            limits[i] = length - (request.params.max_tokens > 0 or is_repeated)
        length_before = length
    return limits
