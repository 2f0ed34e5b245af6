"""The model `rwkv_batch` of EleutherAI's lm-evaluation-harness.

    rwkv-batch lm-eval run --model rwkv_batch --model_args pretrained=model.pth --tasks lambada_openai,mmlu

is the harness's own command line, with this model registered. In Python:

    lm_eval.simple_evaluate(model=RwkvBatchLM("model.pth"), tasks=["arc_easy"])
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..engine.request import END_OF_TEXT
from ..errors import ConfigurationError, MissingExtraError
from ..rows import GenerateRow
from ..sampling_params import SamplingParams
from ..text.chat import render_messages
from .harness_requests import ASSISTANT, random_stream, score_pairs, with_bos

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise MissingExtraError("the lm-evaluation-harness backend", "lm_eval", "lm-eval") from error

if TYPE_CHECKING:
    from ..llm import LLM

NAME = "rwkv_batch"
ROLLING_LENGTH = 2048
"""Tokens of a rolling window: the length that the harness's Hugging Face backend takes for RWKV."""
CHAT_TEMPLATE = "System: {system}\n\nUser: {user}\n\nAssistant: {assistant}\n\nUser: {user}\n\nAssistant:"
_CACHE_FORMAT = 1
"""Version of the cached answers; to be increased when a change gives the same request another answer."""

logger = logging.getLogger(__name__)


class RwkvBatchLM(TemplateLM):
    """An RWKV checkpoint as a model of the harness.

    Args:
        pretrained: the `model` argument of `LLM`, or an `LLM`; `model` is another name for this argument.
        batch_size: sequences that run at the same time; "auto" and 1, the harness's default, let the engine decide.
        device: as for `LLM`. The harness passes "cuda:0" if the user names no device; without CUDA that means "auto".
        add_bos_token: put token 0 before every sequence that does not start with it, as RWKV's reference scripts do.
        max_length: tokens that the model may read for one request; a longer request loses its first tokens, as in the
            harness's Hugging Face backend. None, the default, cuts nothing: a recurrent state has no maximal length.
        rolling: "window" scores documents in disjoint windows of `max_length` or 2048 tokens, as other backends do;
            "full" reads each document from its beginning to its end.
        max_gen_toks: limit of a completion, in tokens, if the task sets none.
        think_end_token: the text that ends a model's thinking; a completion starts after it.
        options: all other arguments of `LLM`.

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
        max_length: int | None = None,
        rolling: str = "window",
        max_gen_toks: int = 256,
        think_end_token: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (model is None):
            others = f"; other arguments: {', '.join(options)}" if options else ""
            raise ConfigurationError(
                f"pretrained: got {pretrained!r} and model={model!r}, expected one of them, as in pretrained=model.pth"
                f"{others}"
            )
        if rolling not in ("window", "full"):
            raise ConfigurationError(f"rolling: got {rolling!r}, expected 'window' or 'full'")
        if not isinstance(add_bos_token, bool):
            raise ConfigurationError(f"add_bos_token: got {add_bos_token!r}, expected True or False")
        if max_length is not None and not (isinstance(max_length, int) and max_length >= 2):
            raise ConfigurationError(f"max_length: got {max_length!r}, expected an integer from 2, or None")
        source: Any = model if pretrained is None else pretrained
        if isinstance(source, (str, Path)):
            slots = max_batch_size or (batch_size if isinstance(batch_size, int) and batch_size > 1 else None)
            source = _load(source, device, max_batch_size=slots, **options)
        elif options:
            raise ConfigurationError(f"{next(iter(options))}: a model that is loaded already takes no options")
        if source.tokenizer is None:
            raise ConfigurationError("tokenizer: got None, expected a tokenizer: the harness's requests are text")
        self.llm: LLM = source
        self.add_bos_token = add_bos_token
        self.max_length = max_length
        self.rolling = rolling
        self.max_gen_toks = max_gen_toks
        self.think_end_token = think_end_token
        self.counts: Counter[str] = Counter(truncated=0, merged_at_the_border=0)
        self._encode = source.tokenizer.encode
        self._ignored: set[str] = set()

    @property
    def eot_token_id(self) -> int:
        """Token 0, which ends every text."""
        return END_OF_TEXT

    @property
    def tokenizer_name(self) -> str:
        """The key of the harness's cache of rendered requests: the tokenizer, and NAME for the chat format."""
        tokenizer = self.llm.tokenizer
        assert tokenizer is not None
        return f"{NAME}-{tokenizer.name}-{tokenizer.fingerprint[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, without token 0, which is put before whole sequences only."""
        return self._encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders the conversation in RWKV's chat format; the text ends with `Assistant:`, without a space."""
        text = render_messages(chat_history)
        has_prompt = chat_history[-1]["role"] != "assistant"
        return text.removesuffix(f"\n\n{ASSISTANT}") if has_prompt and not add_generation_prompt else text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template that the results record. There is only one, so it cannot be chosen by name."""
        if isinstance(chat_template, str) and chat_template:
            raise ConfigurationError(f"--apply_chat_template: got {chat_template!r}, expected no name: there is one")
        return CHAT_TEMPLATE if chat_template else None

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is_greedy) of each (context, continuation), in the order of the requests."""
        encoded = []
        for request in requests:
            context, continuation = request.args
            pair = self._encode_pair(context, continuation) if context else ([], self._encode(continuation))
            encoded.append((request.args, *pair))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Splits a text into context and continuation as the harness does, with two differences.

        A continuation after `Assistant:` is given the space of RWKV's chat format. A continuation that the tokenizer
        merges into the context's last token, so that no continuation remains, is encoded by itself.
        """
        if context.endswith(ASSISTANT) and continuation[:1].strip():
            continuation = f" {continuation}"
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if continuation and not continuation_ids:
            self._count("merged_at_the_border", "a continuation merges into its context's last token")
            continuation_ids = self._encode(continuation)
        return context_ids, continuation_ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Scores (arguments, context ids, continuation ids). Each result is put into the harness's cache at once."""
        pairs = [
            self._crop_pair(with_bos(context, self.add_bos_token), continuation)
            for _, context, continuation in requests
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
        windows = [self._windows(self._encode(request.args[0])) for request in requests]
        pairs = [window for document in windows for window in document]
        owners = [document for document, its_windows in enumerate(windows) for _ in its_windows]
        missing = [len(its_windows) for its_windows in windows]
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
        """A completion of each context, in the order of the requests, without the stop string."""
        occurrences: Counter[str] = Counter()
        rows = []
        for index, request in enumerate(requests):
            context, arguments = request.args
            key = json.dumps([context, arguments], sort_keys=True, default=str)
            params = self._sampling_params(arguments)
            prompt = self._crop_prompt(with_bos(self._encode(context), self.add_bos_token), params)
            rows.append(GenerateRow(index, random_stream(key, occurrences[key]), prompt, params))
            occurrences[key] += 1
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(rows), desc=f"{NAME}: generate_until", disable=disable_tqdm) as bar:
            for index, output in self.llm.serve(rows):
                if output.error is not None:
                    raise ValueError(f"request {index}: {output.error}")
                answers[index] = postprocess_generated_text(output.outputs[0].text, None, self.think_end_token)
                self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
                bar.update()
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """The facts that the results record about the model and the conventions of its numbers."""
        about = self.llm.describe()
        return {
            "model_sha": self.llm.summary.fingerprint,
            "model_dtype": about["dtype"],
            "rwkv_batch_version": __version__,
            **self._conventions(),
            **{name: about[name] for name in ("version", "tokenizer", "quantization", "max_batch_size", "backends")},
            **self.counts,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Uses the harness's cache, with a separate table for this model's answers.

        The harness's keys do not depend on the model. A table for each model, tokenizer and set of conventions in the
        cache's file prevents that a model gets the answers of another.
        """
        super().set_cache_hook(cache_hook)
        database = cache_hook.dbdict
        if database is not None:
            database.tablename = f"{NAME}-{self._identity()}"
            database.conn.execute(
                f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
            )
            database.conn.commit()

    def _conventions(self) -> dict[str, Any]:
        return {
            "add_bos_token": self.add_bos_token,
            "eot_token_id": END_OF_TEXT,
            "max_length": self.max_length,
            "rolling": self.rolling,
            "rolling_length": (self.max_length or ROLLING_LENGTH) if self.rolling == "window" else None,
            "max_gen_toks": self.max_gen_toks,
            "think_end_token": self.think_end_token,
        }

    def _identity(self) -> str:
        """A hash of everything but the request that an answer depends on."""
        summary = self.llm.summary
        assert summary.tokenizer is not None
        parts = {
            "format": _CACHE_FORMAT,
            "model": summary.fingerprint,
            "tokenizer": summary.tokenizer.fingerprint,
            "dtype": summary.placement.dtype_name,
            "quantization": summary.placement.quantization,
            "state_dtype": str(summary.placement.state_dtype),
            "ln_x_eps": summary.model.ln_x_eps,
            "seed": self.llm.seed,
            **self._conventions(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _crop_pair(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Cuts a pair to `max_length` at the context's start. The last token does not count: it is only predicted."""
        if self.max_length is None or len(context) + len(continuation) - 1 <= self.max_length:
            return context, continuation
        if len(continuation) > self.max_length:
            raise ValueError(
                f"max_length: got {self.max_length}, expected at least {len(continuation)} for a continuation"
            )
        self._count("truncated", f"a request is longer than max_length ({self.max_length})")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def _crop_prompt(self, prompt: list[int], params: SamplingParams) -> list[int]:
        """Cuts a prompt at its start, so that prompt and completion fit into `max_length`."""
        if self.max_length is None or len(prompt) <= (limit := max(self.max_length - params.token_limit, 1)):
            return prompt
        self._count("truncated", f"a prompt and its completion may be longer than max_length ({self.max_length})")
        return prompt[-limit:]

    def _windows(self, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) pairs in which every token of a document is predicted once."""
        if self.rolling == "full":
            return [([END_OF_TEXT], ids)] if ids else []
        length = self.max_length or ROLLING_LENGTH
        windows = get_rolling_token_windows(ids, prefix_token=self.prefix_token_id, max_seq_len=length, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _sampling_params(self, arguments: Mapping[str, Any]) -> SamplingParams:
        kwargs = dict(normalize_gen_kwargs(dict(arguments), default_max_gen_toks=self.max_gen_toks))
        stop = [text for text in handle_stop_sequences(kwargs.pop("until"), eos=None) if text]
        max_tokens, do_sample = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
        temperature = float(kwargs.pop("temperature", 1.0))
        known = set(SamplingParams.field_names()) - {"n", "stop", "logprobs", "prompt_logprobs"}
        for name in sorted(kwargs.keys() - known - self._ignored):
            self._ignored.add(name)
            logger.warning("%s: got %r among the generation arguments, which this model ignores", name, kwargs[name])
        chosen = {name: value for name, value in kwargs.items() if name in known and value is not None}
        return SamplingParams(stop=stop, max_tokens=max_tokens, temperature=temperature if do_sample else 0.0, **chosen)

    def _count(self, what: str, sentence: str) -> None:
        if not self.counts[what]:
            logger.warning("%s; the results count such requests as %s", sentence, what)
        self.counts[what] += 1


def _load(model: str | Path, device: str | None, **options: Any) -> LLM:
    import torch

    from ..llm import LLM

    known = list(signature(LLM).parameters)
    for name in options:
        if name not in known:
            raise ConfigurationError(f"--model_args: unknown argument {name!r}, expected one of {', '.join(known)}")
    if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
        device = "auto"
    return LLM(model, device=device, **options)


def register() -> None:
    """Registers the model `rwkv_batch` with the harness, which reads entry points only from version 0.4.14 on.

    The harness registers its own models only while none is registered, so they are imported first.
    """
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import MODEL_REGISTRY, register_model

    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(RwkvBatchLM)


def main(arguments: Sequence[str]) -> int:
    """Runs the harness's own command line, with `--model rwkv_batch` available."""
    from lm_eval.__main__ import cli_evaluate

    register()
    sys.argv = ["rwkv-batch lm-eval", *arguments]
    cli_evaluate()
    return 0
