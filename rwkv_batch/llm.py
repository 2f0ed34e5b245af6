"""The library's main class, `LLM`. Names and shapes follow vLLM's offline API."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch

from . import arguments, progress_bar
from .chat_calls import ChatCalls
from .data_parallel.engine_processes import EngineProcesses
from .data_parallel.serving import ParallelServing, ReadyOutputs
from .engine.engine import Engine
from .engine.stats import EngineStats
from .errors import RowError
from .load_engine import load_engine
from .model_summary import ModelSummary, inspect_model
from .models.model import Model
from .output_builder import OutputBuilder
from .outputs import RequestOutput, ScoreOutput
from .requests import RequestBuilder
from .results import RequestNumbers, warn_of_errors
from .rows import GenerateRow, ScoreRow
from .sampling_params import SamplingParams
from .serving import AnyServing, Serving
from .settings import LogprobsMode
from .vllm_arguments import GENERATE_ARGUMENTS, absent_method, own_arguments

if TYPE_CHECKING:
    from .chat_calls import Params
    from .progress_bar import UseTqdm
    from .rows import Prompt, TextOrIds
    from .text.chat import ChatSettings

__all__ = ["LLM", "GenerateRow", "ModelSummary", "ScoreRow", "inspect_model"]

Result = TypeVar("Result")
SomeRow = TypeVar("SomeRow", GenerateRow, ScoreRow)


class LLM(ChatCalls):
    """A loaded model with the engine that runs it: completes prompts, and scores continuations of contexts.

    >>> from rwkv_batch import LLM, SamplingParams
    >>> with LLM("demo", device="cpu", dtype="float32", max_batch_size=8) as llm:
    ...     print(llm)
    ...     outputs = llm.generate(["def mean(values):", "class Stack:"], SamplingParams(max_tokens=4, temperature=0))
    ...     scores = llm.score([("import ", "os"), ("import ", "xyzzy")])
    LLM(demo, rwkv7 1.6M, cpu float32, 8 slots)
    >>> [(len(output.outputs[0].token_ids), output.outputs[0].finish_reason) for output in outputs]
    [(4, 'length'), (4, 'length')]
    >>> scores[0].logprob > scores[1].logprob
    True

    Args:
        model: "demo" (bundled), a .pth or .safetensors file, a folder in Hugging Face layout,
            hf://owner/repo/file@revision, or s3://bucket/file, gs://bucket/file or az://container/file.
        tokenizer: "auto" (by the size of the vocabulary and the files beside the model), "world", "bytes", a vocabulary
            file, a tokenizer.json, a folder that has one of these, or None: token ids in, token ids out.
        device: "auto" (the first CUDA device where there is one, else the CPU), "cpu", "cuda", "cuda:N", "mps" or
            "dml".
        dtype: the number format of weights and activations: "auto" (the checkpoint's), "float32", "bfloat16" or
            "float16".
        quantization: the weight format of the large matrices: None keeps `dtype`; "int8" stores weights in 8 bits;
            "w8a8" also multiplies with inputs of 8 bits, which is faster and coarser.
        backend: the kernels that run the model: "auto" (the fastest that work here), "triton", "cuda", "cpu" or
            "reference". A backend that is named must serve every operation.
        max_batch_size: sequences that run at the same time; None takes as many as are useful and fit into memory.
        max_batch_tokens: tokens of one step; None takes as many as are useful and fit into memory.
        state_dtype: the number format of the recurrent states: "float32", or "float16" (RWKV-5 to RWKV-7), which
            halves their memory and traffic and is rounded stochastically after every token.
        init_state: a file of tuned initial states; None starts from the checkpoint's own.
        strategy: ChatRWKV's strategy string, which gives each layer its device, dtype and weight format. It replaces
            `device`, `dtype` and `quantization`.
        prefix_sharing: compute a prefix that several prompts have in common once.
        batch_invariant: a result does not depend, bit for bit, on what else is in the batch.
        ln_x_eps: epsilon of the group norm over heads; None takes the checkpoint's, or 64e-5.
        seed: the seed of the random numbers of requests whose `SamplingParams` have no seed.
        prefix_host_gib: host memory, in GiB, for states of shared prefixes when more are needed at a time than there
            are slots. A prefix whose state finds no place is computed again for each prompt.
        constraint_timeout: seconds that compiling one JSON schema, regular expression or grammar may take. Beyond it
            the prompt cannot be served.
        parse_special_tokens: a special token of a tokenizer.json that is spelled out in a prompt, such as
            <|endoftext|>, becomes its id; False reads it as text.
        memory_share: the share, above 0 and up to 1, of the memory that is free when the model is inspected (on a CPU,
            within the control group's limit), for weights, slots and workspace. It bounds `max_batch_size`.
        logprobs_mode: the distribution of sampled tokens' log-probabilities: "raw_logprobs" is the model's own, before
            penalties, biases, bans and temperature; "processed_logprobs" is the one that the token is drawn from, after
            all of these and the filters, -inf for a token that cannot be drawn. Of a prompt's tokens it is always raw.
        state_write_interval: 1 to 4: a decoding sequence's recurrent state is written at every n-th of its tokens, and
            the updates between are kept beside it. Results have the same bits. RWKV-7 on a GPU.
        data_parallel: the number of engines, each in a process of its own: on the GPUs from cuda:0 on, or, on a CPU,
            with a share of the cores and of the memory. Results are those of one engine. Sizes are those of each.
        admission_delay_ms: milliseconds that a free slot waits for more, at most, as 1/32 of the slots start together.
            An idle engine does not wait.
        chat: how conversations become prompts: `ChatSettings`, or a mapping of its fields.
        others: arguments of vLLM's `LLM` and of Hugging Face's `from_pretrained`. Those that mean nothing here are
            accepted with one warning, and those that would change results are refused.

    Attributes:
        summary: the model's sizes, placement and memory plan, found before it was loaded.
        tokenizer: the tokenizer; None where prompts are token ids only.
        seed: the argument of the same name; 0 where that is None.
        serving: serves lists of rows; for programs that build on this class.

    Threads may share an `LLM`: a call waits until the running call is done, or its iterator is used up or closed. A
    call closes, with a warning, an iterator that the same thread has left open. A fork of the process cannot use it.

    Raises:
        ConfigurationError: a setting is wrong.
        CheckpointError: the model file cannot be used.
        CapacityError: the device is missing or too small.
        BackendError: the backend that was named cannot serve this model.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        tokenizer: str | None = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        backend: str = "auto",
        max_batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        state_dtype: str = "float32",
        init_state: str | Path | None = None,
        strategy: str | None = None,
        prefix_sharing: bool = True,
        batch_invariant: bool = False,
        ln_x_eps: float | None = None,
        seed: int | None = 0,
        prefix_host_gib: float = 1.0,
        constraint_timeout: float = 10.0,
        parse_special_tokens: bool = False,
        memory_share: float = 0.85,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        state_write_interval: int = 1,
        data_parallel: int = 1,
        admission_delay_ms: float = 0.0,
        chat: ChatSettings | Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self._load(inspect_model(*arguments.settings_of(locals())))

    @classmethod
    def from_summary(cls, summary: ModelSummary, *, max_prompt_tokens: int | None = None) -> LLM:
        """Loads a model that has been inspected.

        Args:
            summary: the result of `inspect_model`, with all settings.
            max_prompt_tokens: a row whose prompt, or context, has more tokens is a bad row; None takes any.

        Raises:
            CheckpointError, CapacityError: as `LLM` does.
        """
        llm = cls.__new__(cls)
        llm._load(summary, max_prompt_tokens)
        return llm

    def _load(self, summary: ModelSummary, max_prompt_tokens: int | None = None) -> None:
        self.summary = summary
        self.seed = summary.engine.seed
        self.tokenizer = tokenizer = summary.tokenizer
        self._builder = RequestBuilder(
            tokenizer,
            summary.file.sizes["V"],
            self.seed,
            summary.constraints,
            max_prompt_tokens,
            lambda: summary.chat_format,
        )
        self._numbers = RequestNumbers()
        self.serving: AnyServing
        self._outputs: OutputBuilder | ReadyOutputs
        self._model: Model | EngineProcesses
        self._engine: Engine | EngineProcesses
        if summary.engine.data_parallel == 1:
            self._model, engine = load_engine(summary)
            self._engine = engine
            self.serving, self._outputs = Serving(engine, self._builder), OutputBuilder(tokenizer)
        else:
            self._model = self._engine = engines = EngineProcesses(summary, max_prompt_tokens)
            self.serving, self._outputs = ParallelServing(engines), ReadyOutputs()
        summary.log()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        use_tqdm: UseTqdm = None,
        prompt_token_ids: Sequence[Any] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Completes every prompt, and returns the results in the order of the prompts.

        Args:
            prompts: a list of prompts. A prompt is text, a list of token ids, or a mapping with one of the keys
                "prompt" (text), "prompt_token_ids" (a list of integers) and "messages" (a list of mappings with "role"
                and "content"). A text or a mapping in place of the list is a list of one.
            sampling_params: `SamplingParams`, or a mapping with its fields, for all prompts, or one for each; None
                takes `SamplingParams()`.
            use_tqdm: show a progress bar; None shows it on a terminal and in a notebook. A function makes the bar, and
                is called as tqdm is.
            prompt_token_ids: prompts as token ids, in place of `prompts`.
            others: arguments of vLLM's method, which are ignored or refused as those of `LLM` are.

        A prompt that cannot be served (a token id out of range, say) has a result with `error_code` and `error`, and
        one output, empty, with `finish_reason` "error". A warning is logged. All others are served.

        Raises:
            ValueError: something is of a wrong type, or sampling parameters for all prompts are wrong for this model.
                Nothing has been served.
        """
        self.serving.check()
        own_arguments("LLM.generate", others, ("prompts", "sampling_params", "use_tqdm"), GENERATE_ARGUMENTS)
        prompt_list = arguments.prompt_list(arguments.prompts_of(prompts, prompt_token_ids), self.tokenizer is not None)
        params_list = arguments.params_list(sampling_params, len(prompt_list))
        if params_list and arguments.is_one_params(sampling_params):
            self._check_params(params_list[0])
        outputs = dict(progress_bar.shown(self.generate_iter(prompt_list, params_list), len(prompt_list), use_tqdm))
        found = [outputs[i] for i in range(len(prompt_list))]
        warn_of_errors("prompt", [output.error for output in found])
        return found

    def generate_iter(
        self, prompts: Iterable[Prompt], sampling_params: Params | Iterable[Params] | None = None
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Completes any number of prompts in bounded memory, and yields (index, result) as prompts finish.

        A prompt that cannot be served gives a result with `error_code` and `error`. The model serves no other call
        until the iterator is used up or closed.

        Args:
            prompts: as those of `generate`; any iterable, which may have no end.
            sampling_params: for all prompts, or an iterable with one for each.
        """
        rows, at_once = arguments.generate_rows(prompts, sampling_params)
        return self._numbers.given_to(self._serve(rows, at_once, self._outputs.requests))

    @overload
    def score(
        self,
        pairs: Iterable[tuple[str, str] | tuple[Sequence[int], Sequence[int]]],
        *,
        add_bos_token: bool = False,
        prefix: TextOrIds | None = None,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[ScoreOutput]: ...
    @overload
    def score(
        self,
        pairs: Iterable[tuple[str, list[str]] | tuple[Sequence[int], list[list[int]]]],
        *,
        add_bos_token: bool = False,
        prefix: TextOrIds | None = None,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[list[ScoreOutput]]: ...
    def score(
        self,
        pairs: Iterable[tuple[Any, Any]],
        *,
        add_bos_token: bool = False,
        prefix: TextOrIds | None = None,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[Any]:
        """Computes the log-likelihood of each continuation given its context; results are in the order of the pairs.

        Args:
            pairs: (context, continuation), both text or both lists of token ids; each is encoded by itself. An empty
                context is the beginning of a document, token 0. A list of continuations in place of one shares the
                context, and gives a list of results in place of one.
            add_bos_token: put token 0 before every context that does not start with it.
            prefix: text or token ids in front of every context, such as "\\n", encoded by itself; after token 0, where
                that is added. A context that has a prefix is not empty.
            top_logprobs: also return the log-probabilities of this many most likely tokens at each position of a
                continuation; -1 returns those of all tokens, None none.
            prompt_logprobs: the same for each token of the context after the first; None returns none.

        A pair that cannot be scored has results with `error_code` and `error`, whose `logprob` is NaN. A warning is
        logged. All others are scored.

        Raises:
            ValueError: something is no pair, or an option is wrong. Nothing has been scored.
        """
        self.serving.check()
        SamplingParams(logprobs=top_logprobs, prompt_logprobs=prompt_logprobs)  # refuses values out of range
        found = arguments.pair_list(pairs, self.tokenizer is not None)
        arguments.check_prefix(prefix, self.tokenizer is not None)
        several = [arguments.is_several(continuation) for _, continuation in found]
        options = (add_bos_token, top_logprobs, prompt_logprobs, prefix)
        rows = [
            ScoreRow(i, i, context, continuation if many else [continuation], *options)
            for i, ((context, continuation), many) in enumerate(zip(found, several, strict=True))
        ]
        scores = dict(self.serve_scores(rows))
        warn_of_errors("pair", [scores[i][0].error for i in range(len(rows))])
        return [scores[i] if many else scores[i][0] for i, many in enumerate(several)]

    def serve(self, rows: Iterable[GenerateRow]) -> Iterator[tuple[Any, RequestOutput]]:
        """Completes rows, and yields (key, result) as rows finish.

        A thread pulls the rows and encodes their texts, a bounded number ahead. A bad row gives a result with
        `error_code` and `error`, and does not stop the others.
        """
        return self._serve(rows, arguments.rows_at_once(rows), self._outputs.requests)

    def serve_scores(self, rows: Iterable[ScoreRow]) -> Iterator[tuple[Any, list[ScoreOutput]]]:
        """Scores rows, and yields (key, one result for each continuation) as rows finish. Bad rows as in `serve`."""
        return self._serve(rows, arguments.rows_at_once(rows), self._outputs.scores)

    def abort(self, key: Hashable) -> None:
        """Ends the row with this key at the next step, and frees its slots. Any thread may call.

        The iterator that serves the row yields the tokens so far, of all n samples, with `finish_reason` "abort"; a
        sample that had finished is as it was. For a row to score, the result has the `error_code` "abort". A row that
        waits ends at once, one that was not read yet when it is read. Nothing happens where the row is finished, where
        no row has this key, or where no call runs.

        Args:
            key: the index or the key with which `generate_iter`, `serve` or `serve_scores` yields the row.
        """
        self.serving.abort(key)

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns the sampling parameters of a call that gives none: `SamplingParams()`."""
        return SamplingParams()

    def close(self) -> None:
        """Frees the model, after waiting for a call of another thread. Any later use raises RuntimeError.

        In a fork of the process that has loaded the model, `close` does nothing.
        """
        if self.serving.close():
            del self._model, self._engine
            gc.collect()
            torch.cuda.empty_cache()  # does nothing without a CUDA device

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"LLM has no attribute {name!r}{absent_method(name)}")

    def __repr__(self) -> str:
        return f"LLM({self.summary})"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stats(self) -> EngineStats:
        """Returns the engine's counters since the model was loaded: steps, tokens, seconds."""
        self.serving.check()
        return self._engine.stats

    def describe(self) -> dict[str, Any]:
        """Returns the model's description in plain JSON, for reports: sizes, placement, memory, who serves which op."""
        self.serving.check()
        device = self.summary.placement.device
        name = {"device_name": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
        return {**self.summary.describe(), **name, "matrix_bytes": self._model.matrix_bytes}

    def check_integrity(self) -> None:
        """Raises AssertionError where a slot is neither free nor of a running sequence."""
        self.serving.check()
        self._engine.check_integrity()

    def _check_params(self, params: SamplingParams) -> None:
        """Raises ValueError where sampling parameters are wrong for this model."""
        try:
            self._builder.check(params)
        except RowError as error:
            raise ValueError(f"sampling_params: {error}") from error

    def _serve(
        self,
        rows: Iterable[SomeRow],
        at_once: int,
        outputs: Callable[[Sequence[Any]], Iterator[tuple[Any, Result]]],
    ) -> Iterator[tuple[Any, Result]]:
        rows = iter(rows)
        with closing(self.serving.run(iter(lambda: list(islice(rows, at_once)), []))) as lists:
            for finished in lists:
                yield from outputs(finished)
