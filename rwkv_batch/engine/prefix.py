"""Shared prompt prefixes: the token trie of a window of requests, whose inner nodes are computed once.

A prefix is computed by a sequence of its own. A snapshot of its state is then copied into the slot of each child.
The trie is walked depth first (children are queued right after their parent is computed), and a prefix starts only when
steps have tokens to spare. Both keep the number of snapshots small: they are those on the path from a root to the
current node, and those just computed.
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
"""A shorter prefix is not shared: computing its tokens again is cheaper than copying a state."""


@dataclass(eq=False)
class Prefix:
    """An inner node of the trie: prompt tokens with which all requests below start.

    Args:
        token_ids: [T] int32, from the beginning of the prompt, the parent's tokens included.
        num_steps: the largest `num_steps` of the requests below.
        request: a request that only scores and whose prompt is exactly these tokens: computing the prefix serves it.
    """

    token_ids: np.ndarray
    parent: Prefix | None
    num_steps: int
    request: Request | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def is_wanted(self) -> bool:
        """Whether the prefix still serves a request, its own or one below."""
        return self.request is not None or bool(self.children)

    def remove(self, keys: set[object]) -> list[Request]:
        """Takes out the requests with these keys, the prefix's own included, and returns them."""
        removed = self.remove_children(keys)
        if self.request is not None and self.request.key in keys:
            removed.append(self.request)
            self.request = None
        return removed

    def remove_children(self, keys: set[object]) -> list[Request]:
        """Takes out the requests with these keys below, and the prefixes that then serve no request."""
        removed: list[Request] = []
        prefixes = [self]
        for prefix in prefixes:  # the list grows in the loop, a parent before its children
            prefixes += [child for child in prefix.children if isinstance(child, Prefix)]
        for prefix in reversed(prefixes):  # children before their parent, which asks whether they are wanted
            kept: list[Node] = []
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


Node = Request | Prefix
"""A node of the trie: a leaf is a request, an inner node is a prefix."""


def plan_prefixes(window: SequenceOf[Request], share_between_rows: bool = True) -> list[Node]:
    """Builds the trie of a window of requests, and returns its roots. A request that shares no prefix is a root.

    The children of a prefix are sorted by the steps that they may take, longest first.

    Args:
        share_between_rows: False shares only between the samples of one row.
    """
    if share_between_rows:
        return _plan_group(window)
    groups: dict[Hashable, list[Request]] = {}
    for request in window:
        groups.setdefault(request.row, []).append(request)
    return [root for group in groups.values() for root in _plan_group(group)]


def _plan_group(group: SequenceOf[Request]) -> list[Node]:
    """Builds the trie of requests that may share prefixes.

    The prompts are sorted, so that the requests of a subtree are neighbors. The prefix that a range of neighbors has
    in common is as long as the smallest number of tokens that a prompt of the range shares with the one before it. The
    range is cut where that minimum is reached, and each piece is a child. Ranges wait on a stack (`pending`), because
    a trie may be deeper than Python's recursion limit.
    """
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
    roots: list[Node] = []
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
        prefix.children.sort(key=lambda node: -node.num_steps)
    return roots


def _shareable(requests: list[Request], shared: np.ndarray) -> np.ndarray:
    """The number of leading tokens of each of the n sorted requests that a prefix may compute, [n] int64.

    A prefix must leave the tokens whose hidden states the request needs: the tokens from which a score is taken, and
    the last token if a next token is sampled from it. A request that only scores `next_token_ids` may be served by a
    prefix that is its whole prompt. A second such request with the same prompt keeps its last token, because a sequence
    has at least one token to compute.

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
            limits[i] = length - (request.params.token_limit > 0 or is_repeated)
        length_before = length
    return limits
