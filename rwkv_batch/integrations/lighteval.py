"""A custom model for Hugging Face's lighteval. Its command line takes the path of this file:

    lighteval custom model.pth "$(python -c 'import rwkv_batch.integrations.lighteval as m; print(m.__file__)')" TASKS

or the path of another file, with other settings:

    import rwkv_batch.integrations.lighteval as rwkv

    class Model(rwkv.RwkvBatchModel):
        options = {"dtype": "float32"}
        use_chat_template = True
"""

from __future__ import annotations

from typing import Any, ClassVar

from rwkv_batch.engine.request import END_OF_TEXT
from rwkv_batch.errors import ConfigurationError, MissingExtraError
from rwkv_batch.integrations.harness_requests import ASSISTANT, random_stream, score_pairs, with_bos
from rwkv_batch.llm import LLM, GenerateRow
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.text.chat import render_messages

try:
    from lighteval.models.abstract_model import LightevalModel
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.prompt_manager import PromptManager
    from lighteval.tasks.requests import Doc, SamplingMethod
    from lighteval.utils.cache_management import SampleCache, cached
except ImportError as error:
    raise MissingExtraError("the lighteval model", "lighteval", "lighteval") from error

MAX_TOKENS = 256
"""Limit of a completion if neither the task nor the command line sets one."""
NO_LIMIT = 2**31 - 1

_PARAMETERS = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_new_tokens": "min_tokens",
    "seed": "seed",
}
"""lighteval's name of a generation parameter → the field of `SamplingParams`."""


class RwkvBatchModel(LightevalModel):
    """An RWKV checkpoint as a model of lighteval; MODEL_NAME is the `model` argument of `LLM`.

    Log-likelihoods are exact at any length: no text is cut. lighteval splits texts into contexts and continuations.
    """

    options: ClassVar[dict[str, Any]] = {}
    """Other arguments of `LLM`."""
    add_bos_token: ClassVar[bool] = True
    """Put token 0 before every sequence that does not start with it."""
    use_chat_template: ClassVar[bool] = False
    """Render prompts in RWKV's chat format."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.llm = LLM(config.model_name, **self.options)
        if self.llm.tokenizer is None:
            raise ConfigurationError("options: got tokenizer=None, expected a tokenizer: lighteval's requests are text")
        self._prompts = PromptManager(system_prompt=config.system_prompt)
        # The key of lighteval's cache: other models and other settings have other folders.
        settings = f"{self.llm.summary.fingerprint} {self.options} {self.add_bos_token} {self.use_chat_template}"
        name = f"rwkv_batch-{random_stream(settings, 0):014x}"
        self._cache = SampleCache(config.model_copy(update={"model_name": name}))

    @property
    def tokenizer(self) -> Any:
        return self.llm.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False

    @property
    def max_length(self) -> int:
        """No limit: a recurrent state has the same size at any length."""
        return NO_LIMIT

    def tok_encode(self, str_to_encode: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text, without token 0."""
        return list(self.tokenizer.encode(str_to_encode))

    @cached(SamplingMethod.LOGPROBS)
    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """The log-likelihood of each choice of each document, in order."""
        pairs: list[tuple[list[int], list[int]]] = []
        by_doc: list[list[int]] = []
        for doc in docs:
            encoded = self._choices(self._prompt(doc), doc.choices)
            by_doc.append(list(range(len(pairs), len(pairs) + len(encoded))))
            pairs += [(with_bos(context, self.add_bos_token), continuation) for context, continuation in encoded]
        found: list[Any] = [None] * len(pairs)
        for index, output in score_pairs(self.llm, pairs):
            found[index] = output
        return [
            ModelResponse(
                input=self._prompt(doc),
                input_tokens=pairs[indices[0]][0] if indices else [],
                output_tokens=[pairs[i][1] for i in indices],
                logprobs=[found[i].logprob for i in indices],
                argmax_logits_eq_gold=[found[i].is_greedy for i in indices],
            )
            for doc, indices in zip(docs, by_doc, strict=True)
        ]

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        """The log-likelihood of each document's query, read from its beginning to its end.

        Not cached: lighteval 0.13 finds no such response in its cache.
        """
        pairs = [([END_OF_TEXT], self.tok_encode(doc.query)) for doc in docs]
        responses: list[Any] = [None] * len(docs)
        for index, output in score_pairs(self.llm, pairs):
            context, continuation = pairs[index]
            responses[index] = ModelResponse(
                input=docs[index].query,
                input_tokens=context,
                output_tokens=[continuation],
                logprobs=[output.logprob],
                argmax_logits_eq_gold=[output.is_greedy],
            )
        return responses

    @cached(SamplingMethod.GENERATIVE)
    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Completions of each document, in order; a stop string is not a part of them."""
        rows = []
        for index, doc in enumerate(docs):
            text = self._prompt(doc)
            ids = with_bos(self.tok_encode(text), self.add_bos_token)
            rows.append(GenerateRow(index, random_stream(text, 0), ids, self._sampling_params(doc)))
        responses: list[Any] = [None] * len(docs)
        for index, output in self.llm.serve(rows):
            if output.error is not None:
                raise ValueError(f"document {index}: {output.error}")
            responses[index] = ModelResponse(
                input=self._prompt(docs[index]),
                input_tokens=output.prompt_token_ids,
                text=[sample.text for sample in output.outputs],
                output_tokens=[sample.token_ids for sample in output.outputs],
            )
        return responses

    def _prompt(self, doc: Doc) -> str:
        if self.use_chat_template:
            return render_messages(self._prompts.prepare_prompt_api(doc))
        return str(self._prompts.prepare_prompt(doc))

    def _choices(self, prompt: str, choices: list[str]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) ids of each choice. After `Assistant:`, RWKV's chat format has a space."""
        if prompt.endswith(ASSISTANT):
            choices = [f" {choice}" if choice[:1].strip() else choice for choice in choices]
        return list(zip(*self.tok_encode_pair(prompt, choices, pairwise=False), strict=True))

    def _sampling_params(self, doc: Doc) -> SamplingParams:
        given = self.config.generation_parameters
        chosen = {ours: getattr(given, theirs) for theirs, ours in _PARAMETERS.items()}
        stop = [*(doc.stop_sequences or ()), *(given.stop_tokens or ())]
        return SamplingParams(
            n=doc.num_samples or 1,
            temperature=given.temperature or 0.0,
            max_tokens=given.max_new_tokens or doc.generation_size or MAX_TOKENS,
            stop=[text for text in stop if text],
            **{name: value for name, value in chosen.items() if value is not None},
        )
