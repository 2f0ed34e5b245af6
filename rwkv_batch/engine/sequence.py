"""A running request, or a shared prefix whose state is being computed."""

from __future__ import annotations

import numpy as np

from .prefix import Prefix
from .request import Request

NO_SLOT = -1


class Sequence:
    """Owns a slot from admission until it finishes.

    Args:
        work: the request to complete, or the prefix to compute.
        parent: the prefix whose state this sequence starts from; the parent's tokens are not computed again.

    Attributes:
        request: the request that this sequence completes; None where a prefix serves no request of its own.
        prefix: the prefix whose state is wanted; None once the state has been copied, and for plain requests.
        prompt: [T] int32.
        max_tokens: tokens to sample; 0 for a prefix and for a request that only scores.
        slot: its row of the state pool; -1 before admission.
    """

    __slots__ = ("max_tokens", "parent", "prefix", "prompt", "request", "slot")

    def __init__(self, work: Request | Prefix, parent: Prefix | None = None) -> None:
        self.parent = parent
        self.slot = NO_SLOT
        if isinstance(work, Prefix):
            self.prefix: Prefix | None = work
            self.request: Request | None = work.request
            self.prompt = work.token_ids
            self.max_tokens = 0
        else:
            self.prefix = None
            self.request = work
            self.prompt = np.asarray(work.prompt_token_ids, np.int32)
            self.max_tokens = work.params.max_tokens

    @property
    def work(self) -> Request | Prefix:
        """What is done again where this sequence starts again."""
        work = self.prefix or self.request
        assert work is not None
        return work

    @property
    def num_shared(self) -> int:
        """Prompt tokens that the parent has computed."""
        return self.parent.length if self.parent else 0
