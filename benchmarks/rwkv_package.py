"""The `rwkv` package from PyPI as a contender: one sequence, TorchScript on, the most likely token.

The package runs in a process of its own: it reads its switches from the environment on import, and one process serves
one strategy. An idle process waits in a read and uses no processor time.
"""

from __future__ import annotations

import contextlib
import io
import os
from importlib.util import find_spec
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import torch

from .workloads import Point, Scale

_WARM_UP_CALLS = 3
"""Calls of each kind before measurements, which TorchScript needs for its profile."""


class RwkvPackage:
    """A worker process that has loaded the checkpoint and warmed up.

    Args:
        strategy: "cpu fp32" or "cpu bf16".

    Raises:
        SystemExit: the package is not installed, or its process has failed.
    """

    def __init__(self, checkpoint: Path, strategy: str, scale: Scale) -> None:
        if find_spec("rwkv") is None:
            raise SystemExit("the rwkv package is not installed: pip install rwkv==0.8.32, or pass --no-rwkv")
        self.name = f"rwkv {strategy}"
        self.points = [Point("decode", 1), Point("prefill", 1)]
        self._connection, connection = Pipe()
        arguments = (connection, checkpoint, strategy, scale, torch.get_num_threads())
        self._process = get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        connection.close()
        self._receive()

    def measure(self, point: Point) -> float:
        """Returns the tokens per second of a point."""
        self._connection.send(point)
        return self._receive()

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self) -> float:
        try:
            return float(self._connection.recv())
        except EOFError as error:
            self._process.join()
            raise SystemExit(f"{self.name}: its process failed; its error is above") from error


def _serve(connection: Connection, checkpoint: Path, strategy: str, scale: Scale, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    with contextlib.redirect_stdout(io.StringIO()):
        from rwkv.model import RWKV

        model = RWKV(model=str(checkpoint.with_suffix("")), strategy=strategy)
    for _ in range(_WARM_UP_CALLS):
        _decode(model, 2)
        _prefill(model, scale.prompt_len)
    connection.send(0.0)
    while True:
        try:
            point: Point = connection.recv()
        except EOFError:
            return
        rate = _decode(model, scale.decode_steps) if point.kind == "decode" else _prefill(model, scale.prompt_len)
        connection.send(rate)


def _decode(model: torch.nn.Module, num_steps: int) -> float:
    logits, state = model.forward([1], None)
    start = perf_counter()
    for _ in range(num_steps):
        logits, state = model.forward([int(logits.argmax())], state)
    int(logits.argmax())
    return num_steps / (perf_counter() - start)


def _prefill(model: torch.nn.Module, num_tokens: int) -> float:
    tokens = [1 + i % 1000 for i in range(num_tokens)]
    start = perf_counter()
    logits, _ = model.forward(tokens, None)
    int(logits.argmax())
    return num_tokens / (perf_counter() - start)
