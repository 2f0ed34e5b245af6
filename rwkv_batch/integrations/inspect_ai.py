"""A model provider for Inspect, registered as an entry point:

    inspect eval task.py --model rwkv_batch/model.pth -M dtype=float32 --temperature 0.7

Samples that Inspect has in flight at the same time share the engine's batch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal

from rich.markup import escape

from ..engine.request import END_OF_TEXT
from ..errors import ConfigurationError, MissingExtraError, RwkvBatchError
from ..outputs import CompletionOutput, RequestOutput
from ..outputs import Logprob as OwnLogprob
from ..rows import GenerateRow
from ..sampling_params import SamplingParams
from ..text.chat import Conversation
from ..text.thoughts import constrained_prompt
from .chat_arguments import argument_names, chat_settings_of
from .harness_requests import random_stream
from .inspect_ai_messages import conversation_of, said
from .inspect_ai_settings import MAX_TOKENS, sampling_params, template_names
from .model_arguments import NAME, load_model
from .service import Service

try:
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ContentReasoning,
        ContentText,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelInfo,
        ModelOutput,
        ModelUsage,
        StopReason,
        TopLogprob,
        modelapi,
        set_model_info,
    )
except ImportError as error:
    raise MissingExtraError("the Inspect provider", "inspect_ai", "inspect-ai") from error

OWN_ARGUMENTS = ("add_bos_token", "chat_format", "think", "chat_template")
STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "repetition": "stop", "length": "max_tokens"}


class ModelError(PrerequisiteError, ConfigurationError):
    """The model cannot be loaded as it was asked for. Inspect prints the sentence, without a traceback."""

    def __init__(self, sentence: str) -> None:
        ConfigurationError.__init__(self, sentence)
        self.message = escape(sentence)


class RwkvBatchAPI(ModelAPI):
    """An RWKV checkpoint as a model of Inspect.

    Args:
        model_name: the `model` argument of `LLM`.
        add_bos_token: put token 0 before every prompt.
        chat_format: the field `format` of `ChatSettings`; None is "auto".
        think: the field of the same name; None is "none".
        chat_template: the field `template`.
        model_args: other arguments of `LLM`; `-M name=value` on the command line.

    Raises:
        ModelError: an argument is unknown or wrong, or the model cannot be loaded.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        add_bos_token: bool = True,
        chat_format: str | None = None,
        think: str | None = None,
        chat_template: str | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        chat = {"chat_format": chat_format, "think": think, "chat_template": chat_template}
        try:
            if base_url is not None:
                raise ConfigurationError(f"base_url: got {base_url!r}, expected none: the model runs in this process")
            if not isinstance(add_bos_token, bool):
                raise ConfigurationError(f"add_bos_token: got {add_bos_token!r}, expected true or false")
            if any(value is not None for value in chat.values()):
                if model_args.get("chat") is not None:
                    raise ConfigurationError("chat: expected none beside chat_format, think and chat_template")
                model_args["chat"] = chat_settings_of(chat)
            with argument_names():
                self.llm = load_model(model_name, model_args, option="-M", own=OWN_ARGUMENTS)
                self.chat_format = self.llm.chat_format
        except RwkvBatchError as error:
            raise ModelError(str(error)) from error
        # Inspect asks for the facts of a model by its name, and loads the model a second time where none are known.
        set_model_info(f"{NAME}/{model_name}", ModelInfo(organization="RWKV", model=model_name))
        self.add_bos_token = add_bos_token
        self._occurrences: Counter[str] = Counter()
        self._service = Service(self.llm.serve, self.llm.abort, "rwkv_batch-inspect")

    def max_connections(self) -> int:
        """Limit of the samples in flight: two for each slot, so that a free slot gets its next sample at once."""
        return 2 * self.llm.summary.num_slots

    def max_tokens(self) -> int | None:
        return MAX_TOKENS

    def auto_reasoning_history(self) -> Literal["none", "all", "last"]:
        """Thoughts of earlier turns are left out of a prompt unless `reasoning_history` asks for them."""
        return "none"

    def close(self) -> None:
        """Stops the engine's thread once the submitted requests are done, and frees the model."""
        self._service.close()
        self.llm.close()

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Generates the assistant's next turn, `config.num_choices` times.

        A cancelled call frees its slots at the engine's next step.

        Raises:
            ValueError: there are tools, a message is not text, or a setting is unknown or out of range.
        """
        if tools:
            raise ValueError(f"tools: got {len(tools)}, expected none: this provider has no tool calls")
        conversation = Conversation(conversation_of(input), template_kwargs=template_names(config))
        (rendered,) = self.chat_format.render_many([conversation])
        if isinstance(rendered, RwkvBatchError):
            raise rendered
        text, stop, stop_token_ids = rendered
        params = sampling_params(config, stop, stop_token_ids)
        text = constrained_prompt(text, params)
        assert self.llm.tokenizer is not None
        ids = self.llm.tokenizer.encode(text)
        prompt = [END_OF_TEXT, *ids] if self.add_bos_token else ids
        key = f"{text} {config.model_dump_json()}"
        stream = random_stream(key, self._occurrences[key])
        self._occurrences[key] += 1
        output = await asyncio.wrap_future(self._service.submit(GenerateRow(None, stream, prompt, params)))
        if output.error is not None:
            raise ValueError(output.error)
        return self._output(text, output, params)

    def _output(self, prompt: str, output: RequestOutput, params: SamplingParams) -> ModelOutput:
        num_prompt = len(output.prompt_token_ids or ())
        num_completed = sum(len(sample.token_ids) for sample in output.outputs)
        scores = None
        if output.prompt_logprobs is not None and output.prompt_token_ids is not None:
            # The first token has no log-probability.
            scores = _logprobs(output.prompt_token_ids[1:], output.prompt_logprobs[1:], params.prompt_logprobs or 0)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(prompt, sample, params, scores) for sample in output.outputs],
            usage=ModelUsage(
                input_tokens=num_prompt, output_tokens=num_completed, total_tokens=num_prompt + num_completed
            ),
        )

    def _choice(
        self, prompt: str, sample: CompletionOutput, params: SamplingParams, prompt_logprobs: Logprobs | None
    ) -> ChatCompletionChoice:
        thought, text = said(prompt, sample.text)
        content = text if thought is None else [ContentReasoning(reasoning=thought), ContentText(text=text)]
        scores = sample.logprobs
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=content, model=self.model_name, source="generate"),
            stop_reason=STOP_REASONS.get(sample.finish_reason or "", "unknown"),
            logprobs=None if scores is None else _logprobs(sample.token_ids, scores, params.logprobs or 0),
            prompt_logprobs=prompt_logprobs,
        )


def _logprobs(token_ids: list[int], scores: list[Any], count: int) -> Logprobs:
    """The log-probability of each token, and of the `count` most likely tokens at its position."""
    content = []
    for token_id, entries in zip(token_ids, scores, strict=True):
        own: OwnLogprob = entries[token_id]
        # Where there are more than `count` entries, the token itself is not among the most likely ones.
        top = [entry for found, entry in entries.items() if found != token_id or len(entries) <= count]
        top.sort(key=lambda entry: entry.rank)
        content.append(
            Logprob(
                token=own.decoded_token or "",
                logprob=own.logprob,
                top_logprobs=[TopLogprob(token=each.decoded_token or "", logprob=each.logprob) for each in top],
            )
        )
    return Logprobs(content=content)


@modelapi(name=NAME)
def rwkv_batch() -> type[ModelAPI]:
    """The provider `rwkv_batch/MODEL`."""
    return RwkvBatchAPI
