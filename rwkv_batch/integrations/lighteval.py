"""A custom model of Hugging Face's lighteval. This file is what its command line asks for:

    lighteval custom model.pth "$(python -c 'import rwkv_batch.integrations.lighteval as m; print(m.__file__)')" TASKS

or a file of one's own, with other settings:

    import rwkv_batch.integrations.lighteval as rwkv

    class Model(rwkv.RwkvBatchModel):
        options = {"dtype": "float32"}
        use_chat_template = True
"""

from __future__ import annotations

from typing import Any, ClassVar

from rwkv_batch.engine.request import END_OF_TEXT
from rwkv_batch.errors import ConfigurationError, MissingExtraError
from rwkv_batch.integrations.pairs import ASSISTANT, random_stream, score_pairs
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
"""Of a completion where neither the task nor the command line sets a limit."""
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
"""lighteval's name → ours."""


class RwkvBatchModel(LightevalModel):
    """An RWKV checkpoint; lighteval's MODEL_NAME is what `LLM` takes as its model.

    Log-likelihoods are exact at any length: nothing is cut. Contexts and continuations are split as lighteval does.
    """

    options: ClassVar[dict[str, Any]] = {}
    """Other arguments of `LLM`."""
    add_bos_token: ClassVar[bool] = True
    """Begin every sequence with token 0, unless it begins so already."""
    use_chat_template: ClassVar[bool] = False
    """Ask in RWKV's chat format."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.llm = LLM(config.model_name, **self.options)
        if self.llm.tokenizer is None:
            raise ConfigurationError("options: got tokenizer=None, expected a tokenizer: lighteval's requests are text")
        self._prompts = PromptManager(system_prompt=config.system_prompt)
        # lighteval keys its cache by this: another model, or other conventions, have a folder of their own.
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
        """A recurrent state has no length."""
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
            pairs += [(self._begun(context), continuation) for context, continuation in encoded]
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
            ids = self._begun(self.tok_encode(text))
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
        """In RWKV's chat format, what follows `Assistant:` starts with a space."""
        if prompt.endswith(ASSISTANT):
            choices = [f" {choice}" if choice[:1].strip() else choice for choice in choices]
        return list(zip(*self.tok_encode_pair(prompt, choices, pairwise=False), strict=True))

    def _begun(self, ids: list[int]) -> list[int]:
        if not ids or (self.add_bos_token and ids[0] != END_OF_TEXT):
            return [END_OF_TEXT, *ids]
        return ids

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
