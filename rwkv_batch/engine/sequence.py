"""A running request, or a shared prefix on its way into the state."""

from __future__ import annotations

from dataclasses import dataclass

from .prefix import Prefix
from .request import Request

NO_SLOT = -1


@dataclass(eq=False)
class Sequence:
    """Owns a slot from admission until it finishes.

    Args:
        work: the request to complete, or the prefix to compute.
        parent: the prefix whose state this one starts from; its tokens are not computed again.
    """

    work: Request | Prefix
    parent: Prefix | None
    slot: int = NO_SLOT
    num_computed: int = 0
    """Prompt tokens that are in the state."""

    def __post_init__(self) -> None:
        self.num_computed = self.parent.length if self.parent else 0
        if isinstance(self.work, Request):
            self.request: Request | None = self.work
            self.prompt, self.max_tokens = self.work.prompt_token_ids, self.work.params.max_tokens
        else:
            self.request = self.work.request
            self.prompt, self.max_tokens = self.work.token_ids, 0

    @property
    def num_uncomputed(self) -> int:
        """Prompt tokens still to be fed."""
        return len(self.prompt) - self.num_computed

    def chunk(self, num_tokens: int) -> list[int]:
        """The prompt tokens to feed next."""
        return self.prompt[self.num_computed : self.num_computed + num_tokens]
