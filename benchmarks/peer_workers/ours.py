"""Worker for this project, run as a job runs it: tokenizer in a thread of its own, engine, sampler, detokenizer."""

from __future__ import annotations

import torch

from rwkv_batch import LLM, SamplingParams, __version__
from rwkv_batch.measure.variants import Variant

from .protocol import Peer, Task, serve


class Ours(Peer):
    what = "samples, temperature 1, top_p 0.85"

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self.version = __version__
        self._llm = LLM(
            task.model,
            tokenizer="world",
            device="cpu",
            max_batch_size=task.batch_size,
            **Variant.parse(task.form).settings,
        )

    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_tokens, temperature=1.0, top_p=0.85, ignore_eos=True)
        outputs = self._llm.generate(prompts, params)
        assert all(len(output.outputs[0].token_ids) == num_tokens for output in outputs)

    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        scores = self._llm.score([(prompt, [[i] for i in candidates])])
        return [score.logprob for score in scores[0]]


if __name__ == "__main__":
    serve(Ours)
