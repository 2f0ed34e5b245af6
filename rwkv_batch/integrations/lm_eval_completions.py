"""Completions for the lm-evaluation-harness: sampling parameters, random streams, and the ends of texts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from ..rows import GenerateRow
from ..sampling_params import SamplingParams
from ..text.thoughts import constrained_prompt
from .harness_chat import Chat, ChatPrompt
from .harness_requests import random_stream
from .lm_eval_arguments import Conventions
from .lm_eval_cache import digest
from .lm_eval_encoding import Encoder

logger = logging.getLogger(__name__)

DRAWN_SEED = 2**32
"""A seed of torch from this number on is one that torch has drawn, with 64 bits: nobody has given it one."""
NOT_FOR_TASKS = {"n", "stop", "logprobs", "prompt_logprobs"}
"""Fields of `SamplingParams` that no task sets: the harness asks for one text, and names stop strings `until`."""


@dataclass(frozen=True)
class Wanted:
    """A completion that the harness asks for.

    Args:
        row: for the engine; its key is the position among the requests.
        prompt: the context.
        is_sampled: the harness counts it as sampled, and keeps no answer of it.
        identity: a hash of the request, its occurrence and the seed.
        think_end_token: the text that ends the thinking, which is cut off; None where there is none.
        until: the strings of the task that end the answer after the thinking.
    """

    row: GenerateRow
    prompt: str
    is_sampled: bool
    identity: str
    think_end_token: str | None
    until: list[str]


class Completions:
    """Makes the engine's rows of requests, and answers of its texts.

    Args:
        encoder: converts texts to token ids.
        chat: the chat format; its stop strings end the completion of a `ChatPrompt`.
        seed: the seed of samples; None takes torch's at the time of the request.
        unseeded: the seed of samples where nobody has given torch one.
    """

    def __init__(
        self, encoder: Encoder, conventions: Conventions, chat: Chat, seed: int | None, unseeded: int = 0
    ) -> None:
        self._encoder = encoder
        self._conventions = conventions
        self._chat = chat
        self._seed = seed
        self._unseeded = unseeded
        self._ignored: set[str] = set()
        self._occurrences: Counter[str] = Counter()

    @property
    def seed(self) -> int:
        """The seed of samples whose task sets none."""
        if self._seed is not None:
            return self._seed
        found = torch.initial_seed()
        return found if found < DRAWN_SEED else self._unseeded

    def start(self) -> None:
        """Begins a list of requests: equal requests are counted anew."""
        self._occurrences.clear()

    def wanted(self, index: int, request: Any) -> Wanted:
        """The completion of a request of the harness.

        Args:
            index: the position of the request in its list.
            request: an `Instance`. One that samples says so in its arguments afterwards (`do_sample`), so that the
                harness takes no sample for another.
        """
        context, arguments = request.args
        is_chat = isinstance(context, ChatPrompt)
        think_end = self._conventions.think_end_token or (self._chat.think_end_token if is_chat else None)
        params, is_sampled, until = self.sampling_params(arguments, is_chat=is_chat, thinks=think_end is not None)
        if is_sampled and not arguments.get("do_sample"):
            arguments = {**arguments, "do_sample": True}
            request.arguments = (context, arguments)
        key = json.dumps([context, arguments, is_chat], sort_keys=True, default=str)
        occurrence = self._occurrences[key]
        self._occurrences[key] += 1
        if is_sampled and params.seed is None:
            params = replace(params, seed=self.seed)
        text = constrained_prompt(context, params) if is_chat else context
        prompt = self._encoder.cut_prompt(self._encoder.opened(self._encoder.encode(text)), params.token_limit)
        row = GenerateRow(index, random_stream(key, occurrence), prompt, params)
        return Wanted(row, context, is_sampled, digest([key, occurrence, params.seed]), think_end, until)

    def answer(self, wanted: Wanted, text: str) -> str:
        """The answer of a text: without the thinking, the strings after it, and the end of a closed thought."""
        text = self._chat.answer(wanted.prompt, text)
        answer: str = postprocess_generated_text(text, wanted.until, wanted.think_end_token)
        return answer

    def sampling_params(
        self, arguments: Mapping[str, Any], *, is_chat: bool = False, thinks: bool = False
    ) -> tuple[SamplingParams, bool, list[str]]:
        """The sampling parameters of a task's generation arguments.

        Args:
            is_chat: the stop strings of the chat format end the completion too.
            thinks: a thinking is cut off; strings of `until` may occur in it.

        Returns:
            The parameters; whether the harness counts the request as sampled; and the strings of `until` that the
            engine does not stop at, because they may occur in the thinking.
        """
        kwargs = dict(normalize_gen_kwargs(dict(arguments), default_max_gen_toks=self._conventions.max_gen_toks))
        until = [text for text in handle_stop_sequences(kwargs.pop("until"), eos=None) if text]
        max_tokens, do_sample = kwargs.pop("max_gen_toks"), bool(kwargs.pop("do_sample"))
        temperature = float(kwargs.pop("temperature", 1.0))
        known = set(SamplingParams.field_names()) - NOT_FOR_TASKS
        for name in sorted(kwargs.keys() - known - self._ignored):
            self._ignored.add(name)
            logger.warning("%s: got %r among the generation arguments, which this model ignores", name, kwargs[name])
        chosen = {name: value for name, value in kwargs.items() if name in known and value is not None}
        later = until if thinks else []
        stop = [] if later else list(until)
        if is_chat:
            stop += [text for text in self._chat.format.stop if text not in stop]
            ids = [*chosen.get("stop_token_ids", ()), *self._chat.format.stop_token_ids]
            chosen["stop_token_ids"] = ids or None
        params = SamplingParams(
            stop=stop, max_tokens=max_tokens, temperature=temperature if do_sample else 0.0, **chosen
        )
        return params, do_sample, later
