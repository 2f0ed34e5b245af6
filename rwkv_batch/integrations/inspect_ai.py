"""A model provider for Inspect, registered as an entry point:

    inspect eval task.py --model rwkv_batch/model.pth -M dtype=float32 --temperature 0.7

Samples that Inspect has in flight at the same time share the engine's batch.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from ..engine.request import END_OF_TEXT
from ..errors import ConfigurationError, MissingExtraError
from ..outputs import CompletionOutput, RequestOutput
from ..rows import GenerateRow
from ..sampling_params import SamplingParams
from ..text.chat import render_messages
from .harness_requests import random_stream

try:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        TopLogprob,
        modelapi,
    )
except ImportError as error:
    raise MissingExtraError("the Inspect provider", "inspect_ai", "inspect-ai") from error

MAX_TOKENS = 2048
"""Limit of a completion if the task sets none."""
END_OF_TURN = "\n\nUser:"
"""A stop string of every request: in RWKV's chat format it ends the assistant's turn."""


class RwkvBatchAPI(ModelAPI):
    """An RWKV checkpoint as a model of Inspect.

    Args:
        model_name: the `model` argument of `LLM`.
        add_bos_token: put token 0 before every prompt.
        model_args: other arguments of `LLM`; `-M name=value` on the command line.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        add_bos_token: bool = True,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        from ..llm import LLM

        self.llm = LLM(model_name, **model_args)
        if self.llm.tokenizer is None:
            raise ConfigurationError("tokenizer: got None, expected a tokenizer: Inspect's requests are text")
        self.add_bos_token = add_bos_token
        self._occurrences: Counter[str] = Counter()
        self._service = _Service(self.llm)

    def max_connections(self) -> int:
        """Limit of the samples in flight: two for each slot, so that a free slot gets its next sample at once."""
        return 2 * self.llm.summary.memory.max_batch_size

    def max_tokens(self) -> int | None:
        return MAX_TOKENS

    def close(self) -> None:
        """Stops the engine's thread, once the submitted requests are done."""
        self._service.close()

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Generates the assistant's next turn, `config.num_choices` times.

        Raises:
            ValueError: there are tools, or a setting is out of range.
        """
        if tools:
            raise ValueError(f"tools: got {len(tools)}, expected none: RWKV's chat format has no tool calls")
        text = render_messages([{"role": message.role, "content": message.text} for message in input])
        assert self.llm.tokenizer is not None
        ids = self.llm.tokenizer.encode(text)
        key = f"{text} {config.model_dump_json()}"
        stream = random_stream(key, self._occurrences[key])
        self._occurrences[key] += 1
        prompt = [END_OF_TEXT, *ids] if self.add_bos_token else ids
        output = await asyncio.wrap_future(self._service.submit(stream, prompt, _sampling_params(config)))
        if output.error is not None:
            raise ValueError(output.error)
        num_completed = sum(len(sample.token_ids) for sample in output.outputs)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(sample) for sample in output.outputs],
            usage=ModelUsage(
                input_tokens=len(prompt), output_tokens=num_completed, total_tokens=len(prompt) + num_completed
            ),
        )

    def _choice(self, sample: CompletionOutput) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=sample.text.strip(), model=self.model_name, source="generate")
        reason = "max_tokens" if sample.finish_reason == "length" else "stop"
        return ChatCompletionChoice(message=message, stop_reason=reason, logprobs=_logprobs(sample))


class _Service:
    """A thread that serves requests as they come, and sets the result of each request's future."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._rows: queue.Queue[tuple[Future[RequestOutput], GenerateRow] | None] = queue.Queue()
        self._waiting: set[Future[RequestOutput]] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rwkv_batch-inspect", daemon=True)
        self._thread.start()

    def submit(self, row: int, prompt: list[int], params: SamplingParams) -> Future[RequestOutput]:
        """Submits a request, and returns the future of its output. Cancelling the future aborts the request.

        Args:
            row: the random stream of the request.

        Raises:
            RuntimeError: the engine has failed, or was closed.
        """
        future: Future[RequestOutput] = Future()
        future.add_done_callback(self._abort_cancelled)
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the engine has ended: {self._failure}") from self._failure
            self._waiting.add(future)
        self._rows.put((future, GenerateRow(future, row, prompt, params)))
        return future

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join()

    def _abort_cancelled(self, future: Future[RequestOutput]) -> None:
        """Aborts the request of a cancelled future. Runs in the thread that has ended the future."""
        if future.cancelled():
            with self._lock:
                self._waiting.discard(future)
            self._llm.abort(future)

    def _wanted_rows(self) -> Iterator[GenerateRow]:
        """The submitted rows, without those whose futures are cancelled already."""
        for future, row in iter(self._rows.get, None):
            if not future.cancelled():
                yield row

    def _run(self) -> None:
        failure: BaseException = RuntimeError("it was closed")
        try:
            for future, output in self._llm.serve(self._wanted_rows()):
                with self._lock:
                    self._waiting.discard(future)
                if future.set_running_or_notify_cancel():
                    future.set_result(output)
        except BaseException as error:
            failure = error
        with self._lock:
            self._failure, waiting = failure, list(self._waiting)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)


def _sampling_params(config: GenerateConfig) -> SamplingParams:
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "seed")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return SamplingParams(
        n=config.num_choices or 1,
        max_tokens=config.max_tokens or MAX_TOKENS,
        stop=[END_OF_TURN, *(text for text in config.stop_seqs or () if text)],
        logprobs=(config.top_logprobs or 0) if config.logprobs else None,
        **given,
    )


def _logprobs(sample: CompletionOutput) -> Logprobs | None:
    if sample.logprobs is None:
        return None
    content = []
    for token_id, entries in zip(sample.token_ids, sample.logprobs, strict=True):
        top = [
            TopLogprob(token=entry.decoded_token or "", logprob=entry.logprob)
            for entry in sorted(entries.values(), key=lambda one: one.rank)
        ]
        own = entries[token_id]
        content.append(Logprob(token=own.decoded_token or "", logprob=own.logprob, top_logprobs=top))
    return Logprobs(content=content)


@modelapi(name="rwkv_batch")
def rwkv_batch() -> type[ModelAPI]:
    """The provider `rwkv_batch/MODEL`."""
    return RwkvBatchAPI
