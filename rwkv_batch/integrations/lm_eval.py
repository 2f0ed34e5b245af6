"""The model `rwkv_batch` of EleutherAI's lm-evaluation-harness.

    rwkv-batch lm-eval run --model rwkv_batch --model_args pretrained=model.pth --tasks lambada_openai,mmlu

is the harness's own command line, with this model registered. In Python, once this module is imported:

    lm_eval.simple_evaluate(model="rwkv_batch", model_args={"pretrained": "model.pth"}, tasks=["arc_easy"])
    lm_eval.simple_evaluate(model=RwkvBatchLM("model.pth"), tasks=["arc_easy"])
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..engine.request import END_OF_TEXT
from ..errors import ConfigurationError, MissingExtraError
from ..text.chat import ChatSettings
from ..text.hf_tokenizer import HfTokenizer
from .harness_requests import score_pairs
from .model_arguments import NAME, adapter_arguments, check_arguments, check_tokenizer, load_model

try:
    import lm_eval.models  # noqa: F401 - the harness registers its own models only while none is registered
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from tqdm import tqdm
except ImportError as error:
    raise MissingExtraError("the lm-evaluation-harness backend", "lm_eval", "lm-eval") from error

from .chat_arguments import chat_settings_of, template_args_of
from .harness_chat import Chat, ChatPrompt
from .lm_eval_arguments import check_own, conventions_of, engine_options, merged
from .lm_eval_cache import AnswerTables, digest, model_identity, placement_in_words
from .lm_eval_completions import Completions
from .lm_eval_encoding import Encoder, Pair
from .lm_eval_tokenizer import offer_tokenizer

if TYPE_CHECKING:
    from ..llm import LLM

__all__ = ["NAME", "RwkvBatchLM", "main", "register"]

logger = logging.getLogger(__name__)


class RwkvBatchLM(TemplateLM):
    """An RWKV checkpoint as a model of the harness.

    Args:
        pretrained: the `model` argument of `LLM`, or an `LLM`; `model` is another name for this argument.
        batch_size: sequences that run at the same time; "auto" and 1, the harness's default, let the engine decide.
        device: as for `LLM`. The harness passes "cuda:0" if the user names no device; without CUDA, and beside
            `strategy`, that means "auto".
        add_bos_token: put token 0 before every sequence that does not start with it, as RWKV's reference scripts do.
        prefix: a text before every sequence in place of token 0, such as "\\n". In a text from a command line, the
            two characters of \\n are a newline.
        max_length: tokens that the model may read for one request; a longer request loses its first tokens, as in the
            harness's Hugging Face backend. None, the default, cuts nothing: a recurrent state has no maximal length.
        rolling: "window" scores documents in disjoint windows of `rolling_length` tokens, as other backends do;
            "full" reads each document from its beginning to its end; "chunks" reads each `rolling_length` tokens from
            an empty state and leaves the first of them unscored, as uncheatable-eval does.
        rolling_length: None takes `max_length`, or else 2048 for windows and 1024 for chunks.
        max_gen_toks: limit of a completion, in tokens, if the task sets none.
        think_end_token: the text that ends a model's thinking; a completion starts after it, and strings of
            `until` end it there. None is "</think>" where `think` is "open", and otherwise none.
        seed: the seed of samples. None takes torch's, which the harness sets from its option `--seed`; where a program
            has not set it either, or to 2**32 or more, that of the `LLM`.
        chat_format, think, chat_template: the fields `format`, `think` and `template` of `ChatSettings`, for prompts
            in a chat format (`--apply_chat_template`). None takes those of the `LLM`.
        enable_thinking: True is think="open", False is think="fake".
        chat_template_args: names for a chat template; `enable_thinking` among them means the same for every format.
        options: all other arguments of `LLM`.

    Attributes:
        llm: the model.
        conventions: what the arguments say about the requests.
        counts: what the results count, see `Encoder`.

    Raises:
        ConfigurationError: an argument is unknown or wrong.
        CheckpointError, CapacityError, BackendError: as `LLM` does.
    """

    def __init__(
        self,
        pretrained: str | Path | LLM | None = None,
        *,
        model: str | Path | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        add_bos_token: bool = True,
        prefix: str | None = None,
        max_length: int | None = None,
        rolling: str = "window",
        rolling_length: int | None = None,
        max_gen_toks: int = 256,
        think_end_token: str | None = None,
        seed: int | None = None,
        chat_format: str | None = None,
        think: str | None = None,
        chat_template: str | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | str | None = None,
        **options: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "options", "__class__")}
        super().__init__()
        check_arguments(options, option="--model_args", own=adapter_arguments(type(self)))
        check_own(given)
        self.conventions = conventions_of(given)
        source: Any = model if pretrained is None else pretrained
        if isinstance(source, (str, Path)):
            options |= engine_options({**given, **options})
            source = load_model(source, options, option="--model_args")
        elif options:
            raise ConfigurationError(f"{next(iter(options))}: a model that is loaded already takes no options")
        check_tokenizer(source)
        self.llm: LLM = source
        self._device = source.summary.placement.device
        settings = chat_settings_of(given, ChatSettings.of(source.summary.model.chat))
        self.chat = Chat(settings, template_args_of(given), source.summary.file.checkpoint.path)
        self._encoder = Encoder(source.tokenizer.encode, self.conventions)
        self.counts = self._encoder.counts
        self._completions = Completions(self._encoder, self.conventions, self.chat, seed, source.seed)
        self._tables: AnswerTables | None = None
        names = (source.summary.model.model, source.summary.model.tokenizer)
        hf_tokenizer = HfTokenizer(source.tokenizer, self.chat.format, self.chat.format.template)
        offer_tokenizer(hf_tokenizer, [NAME, *(str(name) for name in names if name is not None)])

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> RwkvBatchLM:
        """The model of a text such as pretrained=demo,seed=1. What it names wins over the harness's own options."""
        from lm_eval.utils import simple_parse_args_string

        return cls(**merged(simple_parse_args_string(arg_string), additional_config))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> RwkvBatchLM:
        """The model of a mapping of arguments, which win over the harness's own options."""
        return cls(**merged(arg_dict, additional_config))

    @property
    def eot_token_id(self) -> int:
        """Token 0, which ends every text."""
        return END_OF_TEXT

    @property
    def tokenizer_name(self) -> str:
        """The key of the harness's cache of rendered requests: the tokenizer and the chat format.

        The harness reads it where a chat format is on, also when the rendered requests come from its cache.
        """
        tokenizer = self.llm.tokenizer
        assert tokenizer is not None
        self._note_chat()
        return f"{NAME}-{tokenizer.name}-{tokenizer.fingerprint[:16]}-{digest(self.chat.identity())[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, without token 0, which is put before whole sequences only."""
        return self._encoder.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation in the chat format. An assistant's message at the end is continued."""
        self._note_chat()
        return self.chat.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template that the results record; a name chooses the format. None where no chat format is on."""
        if not chat_template:
            return None
        self.chat.choose(chat_template if isinstance(chat_template, str) else None)
        return self.chat.template

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is_greedy) of each (context, continuation), in the order of the requests.

        After a prompt of a chat format, a continuation that begins with no white space gets the format's start of an
        answer, and the request's arguments show it.
        """
        encoded = []
        for request in _bar(requests, "encoding", disable_tqdm):
            context, continuation = arguments = request.args
            if isinstance(context, ChatPrompt):
                continuation = self._answer(context, continuation)
                request.arguments = (context, continuation)
            encoded.append((arguments, *self._encode_pair(context, continuation)))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _answer(self, prompt: ChatPrompt, continuation: str) -> str:
        if self.chat.think == "open":
            raise ValueError(
                "think: got 'open' for a task that scores answers; the model would think before it answers. Use "
                "think=none or think=fake, or tasks that generate"
            )
        return prompt.answered(continuation)

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        return self._encoder.split(context, continuation) if context else ([], self._encoder.encode(continuation))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Scores (arguments, context ids, continuation ids). Each result is put into the harness's cache at once."""
        pairs = [
            self._encoder.cut_pair(self._encoder.opened(context), continuation) for _, context, continuation in requests
        ]
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(pairs), desc=f"{NAME}: loglikelihood", disable=disable_tqdm) as bar:
            for index, output in score_pairs(self.llm, pairs):
                answers[index] = (output.logprob, output.is_greedy)
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
                bar.update()
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole document, in the order of the requests."""
        documents = [self._encoder.document(request.args[0]) for request in _bar(requests, "encoding", disable_tqdm)]
        pairs = [pair for document in documents for pair in document]
        owners = [index for index, document in enumerate(documents) for _ in document]
        missing = [len(document) for document in documents]
        answers = [0.0] * len(requests)
        with tqdm(total=len(pairs), desc=f"{NAME}: loglikelihood_rolling", disable=disable_tqdm) as bar:
            for index, output in score_pairs(self.llm, pairs):
                document = owners[index]
                answers[document] += output.logprob
                missing[document] -= 1
                if not missing[document]:
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[document].args, answers[document])
                bar.update()
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A completion of each context, in the order of the requests, without the stop string.

        A request that samples says so in its arguments afterwards (`do_sample`): the harness then never takes one
        sample for all repeats.
        """
        answers: list[Any] = [None] * len(requests)
        to_serve = []
        self._completions.start()
        for index, request in enumerate(_bar(requests, "encoding", disable_tqdm)):
            wanted = self._completions.wanted(index, request)
            answers[index] = self._tables.sample(wanted.identity) if self._tables and wanted.is_sampled else None
            if answers[index] is None:
                to_serve.append(wanted)
        by_index = {wanted.row.key: wanted for wanted in to_serve}
        if kept := len(requests) - len(to_serve):
            logger.info("%d samples of an earlier run are kept, %d are to be made", kept, len(to_serve))
        with tqdm(total=len(to_serve), desc=f"{NAME}: generate_until", disable=disable_tqdm) as bar:
            for index, output in self.llm.serve(wanted.row for wanted in to_serve):
                if output.error is not None:
                    raise ValueError(f"request {index}: {output.error}")
                wanted = by_index[index]
                answers[index] = self._completions.answer(wanted, output.outputs[0].text)
                if not wanted.is_sampled:
                    self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
                elif self._tables:
                    self._tables.keep_sample(wanted.identity, answers[index])
                bar.update()
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """The facts that the results record about the model and the conventions of its numbers."""
        about = self.llm.describe()
        return {
            "model_sha": self.llm.summary.fingerprint,
            **placement_in_words(self.llm),
            "rwkv_batch_version": __version__,
            "eot_token_id": END_OF_TEXT,
            **self.conventions.describe(),
            **self.chat.describe(),
            "sampling_seed": self._completions.seed,
            "batch_invariant": self.llm.summary.engine.batch_invariant,
            **{
                name: about[name]
                for name in ("version", "tokenizer", "layers", "state_dtype", "max_batch_size", "backends")
            },
            **self.counts,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Uses the harness's cache, with tables of their own for this model's answers, see `AnswerTables`."""
        super().set_cache_hook(cache_hook)
        database = cache_hook.dbdict
        self._tables = None
        if database is not None:
            identity = {**model_identity(self.llm.summary), **self.conventions.describe()}
            self._tables = AnswerTables(database, NAME, identity)

    def _note_chat(self) -> None:
        """A chat format is on in this evaluation: answers are kept apart from those of the same text without it."""
        if self._tables is not None:
            self._tables.use_chat(self.chat.identity())


def _bar(requests: Sequence[Any], what: str, is_disabled: bool) -> Iterator[Any]:
    """The requests, with a bar that shows how many are encoded."""
    return iter(tqdm(requests, desc=f"{NAME}: {what}", disable=is_disabled))


def register() -> None:
    """Registers the model `rwkv_batch` with the harness, which reads entry points only from version 0.4.14 on."""
    if NAME not in model_registry:
        model_registry.register(NAME)(RwkvBatchLM)


def main(arguments: Sequence[str]) -> int:
    """Runs the harness's own command line, with `--model rwkv_batch`; see `lm_eval_command`."""
    from .lm_eval_command import main as run

    return run(arguments)


register()
