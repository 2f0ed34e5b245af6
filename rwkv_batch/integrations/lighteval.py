"""A custom model for Hugging Face's lighteval. Its command line takes the path of this file:

    lighteval custom model.pth "$(python -c 'import rwkv_batch.integrations.lighteval as m; print(m.__file__)')" TASKS

MODEL_NAME may bring arguments, as for lighteval's other models:

    model_name=model.pth,dtype=float32,use_chat_template=true,generation_parameters={temperature:0.7,seed:1}

and so may a file of the user's own, in place of this one:

    import rwkv_batch.integrations.lighteval as rwkv

    class Model(rwkv.RwkvBatchModel):
        options = {"dtype": "float32"}
        use_chat_template = True
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from rwkv_batch import __version__
from rwkv_batch.engine.request import END_OF_TEXT
from rwkv_batch.errors import ConfigurationError, MissingExtraError, RwkvBatchError
from rwkv_batch.integrations.chat_arguments import argument_names, chat_settings_of
from rwkv_batch.integrations.harness_chat import ChatPrompt, without_thought_end
from rwkv_batch.integrations.harness_requests import random_stream, score_pairs, with_bos
from rwkv_batch.integrations.lighteval_arguments import (
    OPTION,
    OWN_ARGUMENTS,
    Given,
    given_in,
    refuse_others,
    sampling_params,
)
from rwkv_batch.integrations.model_arguments import check_arguments, load_model
from rwkv_batch.llm import GenerateRow
from rwkv_batch.text.thoughts import begun_thought

try:
    import typer
    from lighteval.models.abstract_model import LightevalModel
    from lighteval.models.custom.custom_model import CustomModelConfig
    from lighteval.models.model_input import GenerationParameters
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.prompt_manager import PromptManager
    from lighteval.tasks.requests import Doc, SamplingMethod
    from lighteval.utils.cache_management import SampleCache, cached
    from pydantic import ValidationError, create_model
except ImportError as error:
    raise MissingExtraError("the lighteval model", "lighteval", "lighteval") from error

NO_LIMIT = 2**31 - 1


class ModelError(typer.BadParameter, ConfigurationError):
    """The model cannot be loaded as it was asked for. lighteval's command prints the sentence, without a traceback."""


@contextmanager
def _as_model_errors() -> Iterator[None]:
    try:
        yield
    except RwkvBatchError as error:
        raise ModelError(str(error)) from error


# Made by a call: lighteval reads this file as a module that pydantic cannot find, so that no annotation may be text.
RwkvBatchConfig: Any = create_model("RwkvBatchConfig", __base__=CustomModelConfig, rwkv_batch=(dict[str, Any], ...))
"""lighteval's configuration of the model, which its results record; with the conventions of the numbers."""


class RwkvBatchModel(LightevalModel):
    """An RWKV checkpoint as a model of lighteval.

    Log-likelihoods are exact at any length: no text is cut. lighteval splits texts into contexts and continuations.
    MODEL_NAME is the `model` argument of `LLM`, or brings arguments too; those count before the attributes of the
    class.

    Raises:
        ModelError: an argument is unknown or wrong, or the model cannot be loaded.
    """

    options: ClassVar[dict[str, Any]] = {}
    """Other arguments of `LLM`."""
    add_bos_token: bool = True
    """Put token 0 before every sequence that does not start with it."""
    use_chat_template: bool = False
    """Render prompts in a chat format."""
    chat_format: str | None = None
    """The field `format` of `ChatSettings`; None is "auto"."""
    think: str | None = None
    """The field `think` of `ChatSettings`; None is "none"."""
    chat_template: str | None = None
    """The field `template` of `ChatSettings`."""

    def __init__(self, config: Any) -> None:
        with _as_model_errors():
            given = given_in(config.model_name)
            arguments = {**self.options, **given.arguments}
            check_arguments(arguments, option=OPTION, own=OWN_ARGUMENTS)
            for name in OWN_ARGUMENTS:
                setattr(self, name, arguments.pop(name, getattr(self, name)))
            for name in ("add_bos_token", "use_chat_template"):
                if not isinstance(getattr(self, name), bool):
                    raise ConfigurationError(f"{OPTION}: {name}: got {getattr(self, name)!r}, expected true or false")
            chat = {name: getattr(self, name) for name in ("chat_format", "think", "chat_template")}
            if any(value is not None for value in chat.values()):
                arguments["chat"] = chat_settings_of(chat)
            with argument_names():
                self.llm = load_model(
                    given.model, arguments, option=OPTION, own=OWN_ARGUMENTS, then="the evaluation starts"
                )
                self._chat = self.llm.chat_format
            self.config = self._recorded(config, given, arguments)
        self._prompts = PromptManager(system_prompt=self.config.system_prompt)
        # The key of lighteval's cache: other models and other settings have other folders.
        name = f"rwkv_batch-{random_stream(json.dumps(self.config.rwkv_batch, sort_keys=True), 0):014x}"
        self._cache = SampleCache(self.config.model_copy(update={"model_name": name}))

    def _recorded(self, config: Any, given: Given, arguments: dict[str, Any]) -> Any:
        """lighteval's configuration with everything that the numbers depend on."""
        about = self.llm.describe()
        facts = {
            "version": __version__,
            "fingerprint": self.llm.summary.fingerprint,
            "dtype": about["dtype"],
            "arguments": {name: str(value) for name, value in arguments.items() if name != "chat"},
            "seed": self.llm.seed,
            "add_bos_token": self.add_bos_token,
            "use_chat_template": self.use_chat_template,
        }
        if self.use_chat_template:
            facts |= {
                "chat_format": self._chat.name,
                "think": self.think or "none",
                "chat_template": self._chat.template,
                "chat_stop": [*self._chat.stop, *self._chat.stop_token_ids],
            }
        fields = {**config.model_dump(), "model_name": given.model, **given.config}
        try:
            fields["generation_parameters"] = GenerationParameters.model_validate(fields["generation_parameters"] or {})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["generation_parameters", *map(str, first["loc"])])
            raise ConfigurationError(f"{OPTION}: {where}: got {first['input']!r}: {first['msg']}") from error
        refuse_others(fields["generation_parameters"])
        return RwkvBatchConfig(**fields, rwkv_batch=facts)

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
        rows, prompts, occurrences = [], [self._prompt(doc) for doc in docs], Counter[str]()
        stops = (self._chat.stop, self._chat.stop_token_ids) if self.use_chat_template else ()
        for index, (doc, text) in enumerate(zip(docs, prompts, strict=True)):
            ids = with_bos(self.tok_encode(text), self.add_bos_token)
            params = sampling_params(self.config.generation_parameters, doc, *stops)
            rows.append(GenerateRow(index, random_stream(text, occurrences[text]), ids, params))
            occurrences[text] += 1
        responses: list[Any] = [None] * len(docs)
        for index, output in self.llm.serve(rows):
            if output.error is not None:
                raise ValueError(f"document {index}: {output.error}")
            responses[index] = ModelResponse(
                input=prompts[index],
                input_tokens=output.prompt_token_ids,
                text=[_answer(prompts[index], sample.text) for sample in output.outputs],
                output_tokens=[sample.token_ids for sample in output.outputs],
            )
        return responses

    def _prompt(self, doc: Doc) -> str:
        if not self.use_chat_template:
            return str(self._prompts.prepare_prompt(doc))
        return ChatPrompt(self._chat.render(self._prompts.prepare_prompt_api(doc)))

    def _choices(self, prompt: str, choices: list[str]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) ids of each choice. A chat format may put a space between the two."""
        if isinstance(prompt, ChatPrompt):
            choices = [prompt.answered(choice) for choice in choices]
        return list(zip(*self.tok_encode_pair(prompt, choices, pairwise=False), strict=True))


def _answer(prompt: str, text: str) -> str:
    """A completion, with the thought that its prompt has begun, so that lighteval can remove it as a whole."""
    if not isinstance(prompt, ChatPrompt):
        return text
    begun = begun_thought(prompt)
    return without_thought_end(prompt, text) if "</think" in begun else begun + text
