"""Serves the `rwkv` package to `oracle.Worker`: `python oracle_worker.py DESCRIPTOR`. Never import this from a test."""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import numpy
import torch
from oracle_messages import receive, send
from rwkv.model import RWKV
from rwkv.utils import PIPELINE
from torch import Tensor

REFUSALS = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, ValueError, pickle.UnpicklingError)
"""The exceptions that the package raises for a file, a strategy or a token that it refuses."""


class Server:
    """The methods that `Worker.request` calls. A model is named by the number that `load` returned."""

    def __init__(self) -> None:
        self._models: dict[int, Any] = {}
        self._fresh_states: dict[int, list[Tensor] | None] = {}
        self._loaded = 0

    def load(self, path: str, strategy: str) -> int:
        # The v7 class appends ".pth" itself; the class of earlier versions accepts both.
        model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)
        self._loaded += 1
        self._models[self._loaded] = model
        # In v7 the dtype of a fresh state is a global of the module, which the next load overwrites.
        has_own = hasattr(model, "generate_zero_state")
        self._fresh_states[self._loaded] = model.generate_zero_state() if has_own else None
        return self._loaded

    def unload(self, model: int) -> None:
        del self._models[model], self._fresh_states[model]

    def version(self, model: int) -> float:
        return float(getattr(self._models[model], "version", 7.0))

    def layers(self, model: int) -> list[list[str]]:
        places = self._models[model].strategy
        return [[str(p.device), str(p.atype), str(p.wtype)] for p in places]

    def forward(self, model: int, tokens: list[int], state: list[Tensor] | None, full_output: bool) -> dict[str, Any]:
        fresh = self._fresh_states[model]
        if state is None and fresh is not None:
            state = list(fresh)
        logits, state = self._models[model].forward(tokens, state, full_output)
        logits = logits.float()
        # One token with full output comes back as [V].
        return {"logits": logits.view(len(tokens), -1) if full_output else logits, "state": list(state)}

    def sample(self, logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
        drawn_from: list[Any] = []

        def choice(a: int, p: Any) -> int:
            drawn_from.append(p)
            return 0

        with mock.patch.object(numpy.random, "choice", choice):
            PIPELINE.sample_logits(None, logits, temperature=temperature, top_p=top_p, top_k=top_k)
        return torch.from_numpy(drawn_from[0])

    def convert(self, path: str, strategy: str, out: str) -> None:
        # The package ends the process after writing.
        with contextlib.suppress(SystemExit):
            RWKV(model=path, strategy=strategy, convert_and_save_and_exit=out)


def main() -> None:
    torch.set_num_threads(1)
    # The package collects garbage after every block that it loads; frozen objects are not searched again each time.
    gc.freeze()
    connection = Connection(int(sys.argv[1]))
    server = Server()
    while True:
        try:
            request = receive(connection)
        except EOFError:
            return
        try:
            reply = {"result": getattr(server, request["method"])(**request["arguments"])}
        except REFUSALS:
            reply = {"error": traceback.format_exc()}
        send(connection, reply)


if __name__ == "__main__":
    main()
