"""A sequence: a running request, or a shared prefix that is being computed."""

from __future__ import annotations

import numpy as np

from .prefix import Node, Prefix
from .request import Request

NO_SLOT = -1


class Sequence:
    """One node of the prefix trie in the queue or in a slot. It owns its slot from admission until it finishes.

    Args:
        node: the request to complete, or the prefix to compute.
        parent: the prefix whose state this sequence starts from; the parent's tokens are not computed again.

    Attributes:
        request: the request that this sequence completes; None for a prefix that serves no request of its own.
        prefix: the prefix whose state is to be stored; None once the state is stored, and for a request.
        prompt: [T] int32.
        max_tokens: tokens to sample; 0 for a prefix and for a request that only scores.
        slot: the sequence's row of the state pool; -1 before admission.
    """

    __slots__ = ("max_tokens", "parent", "prefix", "prompt", "request", "slot")

    def __init__(self, node: Node, parent: Prefix | None = None) -> None:
        self.parent = parent
        self.slot = NO_SLOT
        if isinstance(node, Prefix):
            self.prefix: Prefix | None = node
            self.request: Request | None = node.request
            self.prompt = node.token_ids
            self.max_tokens = 0
        else:
            self.prefix = None
            self.request = node
            self.prompt = np.asarray(node.prompt_token_ids, np.int32)
            self.max_tokens = node.params.token_limit

    @property
    def node(self) -> Node:
        """The node that a restarted sequence has: the prefix, or once that is stored, its request."""
        node = self.prefix or self.request
        assert node is not None
        return node

    def drop_request(self) -> None:
        """Drops the request. A prefix that computes tokens for other requests still does so."""
        self.request = None
        if self.prefix is not None:
            self.prefix.request = None

    @property
    def is_unwanted(self) -> bool:
        """Whether the sequence serves no request, neither its own nor one below its prefix."""
        return self.request is None and (self.prefix is None or not self.prefix.is_wanted)

    @property
    def num_shared(self) -> int:
        """Number of prompt tokens that the parent has computed."""
        return self.parent.length if self.parent else 0
