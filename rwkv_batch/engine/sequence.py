"""A running request, or a shared prefix on its way into the state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .prefix import Prefix
from .request import END_OF_TEXT, Completion, Request

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
    completion: Completion | None = field(default=None)

    def __post_init__(self) -> None:
        self.num_computed = self.parent.length if self.parent else 0
        self.prompt = self.work.prompt_token_ids if isinstance(self.work, Request) else self.work.token_ids
        self.request = self.work if isinstance(self.work, Request) else self.work.request
        if self.request is not None:
            new_monitor = self.request.new_monitor
            self.completion = Completion(self.request, monitor=new_monitor() if new_monitor else None)

    @property
    def num_uncomputed(self) -> int:
        """Prompt tokens still to be fed."""
        return len(self.prompt) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        return self.num_computed == len(self.prompt)

    def chunk(self, num_tokens: int) -> list[int]:
        """The tokens to feed next: of the prompt, or the one sampled last."""
        if self.is_decoding:
            assert self.completion is not None
            return self.completion.token_ids[-1:]
        return self.prompt[self.num_computed : self.num_computed + num_tokens]

    def append(self, token_id: int, logprob: float) -> bool:
        """Take a sampled token; returns whether the completion is finished, and then says why."""
        completion = self.completion
        assert completion is not None
        params = completion.request.params
        if not math.isfinite(logprob):
            completion.finish_reason = "error"
            return True
        completion.token_ids.append(token_id)
        completion.token_logprobs.append(logprob)
        is_constrained = completion.request.new_constraint is not None  # nothing else may follow its end of text
        if token_id == END_OF_TEXT and (is_constrained or not params.ignore_eos):
            completion.finish_reason, completion.stop_reason = "stop", END_OF_TEXT
            return True
        if params.stop_token_ids and token_id in params.stop_token_ids:
            completion.finish_reason, completion.stop_reason = "stop", token_id
            return True
        monitor = completion.monitor
        if monitor is not None and (stop := monitor.push(token_id)) is not None:
            completion.finish_reason, completion.stop_reason = "stop", stop
            return True
        return len(completion.token_ids) >= params.max_tokens
