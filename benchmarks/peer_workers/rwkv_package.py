"""Worker for the `rwkv` package: one sequence, TorchScript on, the most likely token. The form is its strategy."""

from __future__ import annotations

import os
from importlib.metadata import version

import torch

from .protocol import Peer, Task, log_softmax, serve

_PROFILED_CALLS = 3
"""Calls of each kind before measurements, which TorchScript needs for its profile."""


class RwkvPackage(Peer):
    what = "takes the most likely token"
    has_batches = False

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
        from rwkv.model import RWKV

        self.version = version("rwkv")
        self._model = RWKV(model=task.model.removesuffix(".pth"), strategy=task.form)
        for _ in range(_PROFILED_CALLS):
            self.complete([[1]], 2)
            self.complete([[1] * task.row_tokens], 1)

    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        logits, state = self._model.forward(prompts[0], None)
        for _ in range(num_tokens - 1):
            logits, state = self._model.forward([int(logits.argmax())], state)
        int(logits.argmax())

    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        logits, _ = self._model.forward(prompt, None)
        return log_softmax(logits.float().tolist(), candidates)


if __name__ == "__main__":
    serve(RwkvPackage)
