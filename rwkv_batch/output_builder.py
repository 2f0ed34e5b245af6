"""The output builder: turns finished rows into the outputs of the Python API."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from .engine.request import Completion
from .engine.token_scores import TokenScores
from .outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput
from .requests import Scoring
from .rows import ErrorRow, Finished, RowInFlight, ScoreRow, text_arrays
from .text.detokenizer import Detokenizer
from .text.tokenizer import Tokenizer

LogprobDicts = list[dict[int, Logprob]]


class OutputBuilder:
    """Turns finished rows into outputs.

    Args:
        tokenizer: decodes tokens; None leaves all texts empty.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer.token_bytes) if tokenizer else None

    def requests(self, rows: Sequence[Finished]) -> Iterator[tuple[Hashable, RequestOutput]]:
        """(key, output) of each row with a prompt. All texts are decoded in one call."""
        served = [row for row in rows if isinstance(row, RowInFlight)]
        texts = iter(self._texts([completion for row in served for completion in row.completions]))
        for row in rows:
            if isinstance(row, ErrorRow):
                error = row.error
                failed = CompletionOutput(0, "", [], math.nan, None, "error", None)
                yield row.key, RequestOutput(row.prompt, [], None, [failed], error_code=error.code, error=error.message)
            else:
                yield row.key, self._request(row, [next(texts) for _ in row.completions])

    def scores(self, rows: Iterable[Finished]) -> Iterator[tuple[Hashable, list[ScoreOutput]]]:
        """(key, one output for each continuation) of each scored row. An error row has at least one output."""
        for row in rows:
            if isinstance(row, ErrorRow):
                error = row.error
                failed = ScoreOutput(math.nan, False, [], 0, error_code=error.code, error=error.message)
                yield row.key, [failed] * max(row.num_continuations, 1)
            elif row.scoring is not None:
                yield row.key, self._scores(row, row.scoring)

    def _scores(self, row: RowInFlight, scoring: Scoring) -> list[ScoreOutput]:
        assert isinstance(row.row, ScoreRow)
        prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if (of_context := scoring.of_context(row.completions)) is not None:
            prompt_logprobs = [None, *self._logprobs(scoring.context[1:].tolist(), of_context)]
        outputs = []
        for ids, scores in zip(scoring.continuations, scoring.of_continuations(row.completions), strict=True):
            token_ids, token_logprobs = ids.tolist(), scores.logprobs.tolist()
            outputs.append(
                ScoreOutput(
                    logprob=math.fsum(token_logprobs),
                    is_greedy=bool(scores.is_greedy.all()),
                    token_logprobs=token_logprobs,
                    num_tokens=len(token_ids),
                    token_ids=token_ids,
                    top_logprobs=None if row.row.top_logprobs is None else self._logprobs(token_ids, scores),
                    prompt_logprobs=prompt_logprobs,
                )
            )
        return outputs

    def _request(self, row: RowInFlight, texts: Sequence[str]) -> RequestOutput:
        first = row.completions[0]
        prompt = _listed(first.request.prompt_token_ids)
        prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if first.prompt_scores is not None:
            scores = first.prompt_scores  # of fewer tokens if the row was aborted before its prompt was read
            decodes = first.request.params.detokenize
            prompt_logprobs = [None, *self._logprobs(prompt[1 : 1 + len(scores)], scores, decodes)]
        samples = zip(row.completions, texts, strict=True)
        outputs = [self._completion(index, completion, text) for index, (completion, text) in enumerate(samples)]
        return RequestOutput(row.prompt, prompt, prompt_logprobs, outputs)

    def _completion(self, index: int, completion: Completion, text: str) -> CompletionOutput:
        token_ids, token_logprobs = completion.token_ids.tolist(), completion.token_logprobs.tolist()
        logprobs: LogprobDicts | None = None
        if completion.request.params.logprobs is not None:
            decodes = completion.request.params.detokenize
            logprobs = [] if completion.logprobs is None else self._logprobs(token_ids, completion.logprobs, decodes)
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=math.fsum(token_logprobs),
            logprobs=logprobs,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            token_logprobs=token_logprobs,
        )

    def _texts(self, completions: Sequence[Completion]) -> list[str]:
        """The text of each completion; "" where `detokenize` is False."""
        if self._detokenizer is None:
            return [""] * len(completions)
        wanted = [completion for completion in completions if completion.request.params.detokenize]
        texts = iter(self._detokenizer.texts(*text_arrays(wanted)) if wanted else ())
        return [next(texts) if completion.request.params.detokenize else "" for completion in completions]

    def _logprobs(self, token_ids: Iterable[int], scores: TokenScores, decodes: bool = True) -> LogprobDicts:
        """For each token: the token itself, then the most likely tokens at its position, most likely first.

        Args:
            decodes: give each token's text; otherwise `decoded_token` is None.
        """
        decode = self._tokenizer.decode if self._tokenizer and decodes else None
        found = []
        for token_id, score in zip(token_ids, scores, strict=True):
            top = zip(score.top_ids, score.top_logprobs, strict=True)
            entries = {token_id: (score.logprob, score.rank)}
            for rank, (i, value) in enumerate(top, 1):
                entries.setdefault(i, (value, rank))
            found.append(
                {i: Logprob(value, rank, decode([i]) if decode else None) for i, (value, rank) in entries.items()}
            )
        return found


def _listed(token_ids: Sequence[int] | np.ndarray) -> list[int]:
    return np.asarray(token_ids).tolist()
