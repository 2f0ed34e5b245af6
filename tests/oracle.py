"""The `rwkv` package as an independent reference for tests: logits, states, scores and sampling of any checkpoint.

The package reads its switches when it is imported and then replaces classes for the whole process, so v4 to v6, v7 and
v7 with DeepEmbed each need a process of their own, and none may be the one that runs the tests.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

WORKER_SCRIPT = Path(__file__).with_name("oracle_worker.py")
REPLY_TIMEOUT_SECONDS = 120.0

SWITCHES = {
    "v4-v6": {"RWKV_V7_ON": "0", "RWKV_DE_VERSION": "0"},
    "v7": {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": "0"},
    "v7de": {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": "1"},
}
"""Environment of the worker that serves each group of versions."""


class OracleError(RuntimeError):
    """The package refused a request, or its process ended."""


def group_of(version: str) -> str:
    """Return the key of `SWITCHES` that serves `version`."""
    return {"7.0": "v7", "7.0de": "v7de"}.get(version, "v4-v6")


def send(connection: Connection, message: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    connection.send_bytes(buffer.getvalue())


def receive(connection: Connection) -> dict[str, Any]:
    message: dict[str, Any] = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=True)
    return message


class Worker:
    """A process that has imported the package with the switches of one group of versions."""

    def __init__(self, group: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RWKV_")}
        # Without TorchScript the package starts faster, and its first calls aren't spent on profiling.
        environment |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "PYTORCH_JIT": "0", "OMP_NUM_THREADS": "1"}
        environment |= SWITCHES[group]
        self._connection, child = Pipe()
        # The package prints as it likes, so answers travel over a descriptor of their own.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER_SCRIPT), str(child.fileno())],
            pass_fds=[child.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        child.close()

    def request(self, method: str, **arguments: Any) -> Any:
        """Call a method of the worker's `Server`; tensors travel by value.

        Raises:
            OracleError: the package refused, the process ended, or no answer came within REPLY_TIMEOUT_SECONDS.
        """
        try:
            send(self._connection, {"method": method, "arguments": arguments})
            if not self._connection.poll(REPLY_TIMEOUT_SECONDS):
                # A late answer would be taken for that of the next request.
                self._process.kill()
                raise OracleError(f"no answer to {method} within {REPLY_TIMEOUT_SECONDS:g} s")
            reply = receive(self._connection)
        except (EOFError, ConnectionError) as error:
            raise OracleError(f"the worker ended during {method}; its last output:\n{self._last_output()}") from error
        if "error" in reply:
            raise OracleError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _last_output(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Oracle:
    """One checkpoint loaded by the package.

    Args:
        path: a .pth file; v7 also demands the zip format and the ending ".pth".
        version: "4", "5.0", "5.1", "5.2", "6.0", "7.0" or "7.0de".
        strategy: the package's strategy string; v7 takes only "cpu fp32", "cpu bf16" and "cpu fp16".
        worker: a process to share; one of its own, ended by `close`, where None.

    Raises:
        OracleError: the package cannot load the file, or takes it for another version.
    """

    def __init__(
        self, path: str | Path, version: str, strategy: str = "cpu fp32", *, worker: Worker | None = None
    ) -> None:
        self.version = version
        self._worker = Worker(group_of(version)) if worker is None else worker
        self._owns_worker = worker is None
        self._model = self._worker.request("load", path=str(path), strategy=strategy)
        found = self._worker.request("version", model=self._model)
        if found != float(version.removesuffix("de")):
            raise OracleError(f"{path}: the package found version {found}, expected {version}")

    def layers(self) -> list[list[str]]:
        """Device, dtype of activations and dtype of weights of each layer and the head; of v4 to v6 only."""
        layers: list[list[str]] = self._worker.request("layers", model=self._model)
        return layers

    def forward(
        self, tokens: Sequence[int], state: list[Tensor] | None = None, full_output: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Feed `tokens`; `state` is left as it is.

        Args:
            tokens: at least one id. One token runs the package's one-token code, several its sequence code.
            state: what an earlier call returned; None is a fresh sequence.
            full_output: logits of all positions, not of the last one only.

        Returns:
            Logits, float32, [V] or with `full_output` [T, V], and the package's flat list of state tensors.
        """
        reply = self._worker.request(
            "forward", model=self._model, tokens=list(tokens), state=state, full_output=full_output
        )
        return reply["logits"], reply["state"]

    def loglikelihood(
        self, context_ids: Sequence[int], continuation_ids: Sequence[int]
    ) -> tuple[float, list[float], bool]:
        """Score a continuation.

        Args:
            context_ids: at least one id.
            continuation_ids: the ids scored, at least one.

        Returns:
            The sum of the log-probabilities (natural logarithm), that of each token, and whether all are the most
            likely ones.
        """
        logits, _ = self.forward([*context_ids, *continuation_ids][:-1], full_output=True)
        logits = logits[len(context_ids) - 1 :].double()
        targets = torch.tensor(continuation_ids)
        scores = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return scores.sum().item(), scores.tolist(), bool((logits.argmax(-1) == targets).all())

    def sample(self, logits: Tensor, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0) -> Tensor:
        """Return the distribution [V], float32, from which the package's `sample_logits` draws for `logits` [V]."""
        probabilities: Tensor = self._worker.request(
            "sample", logits=logits, temperature=temperature, top_p=top_p, top_k=top_k
        )
        return probabilities

    def close(self) -> None:
        if self._owns_worker:
            self._worker.close()
        else:
            self._worker.request("unload", model=self._model)

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OraclePool:
    """Loads each checkpoint once, with one worker for each group of versions. Files must not change meanwhile."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._oracles: dict[tuple[Path, str, str], Oracle] = {}

    def get(self, path: Path, version: str, strategy: str) -> Oracle:
        key = (path, version, strategy)
        if key not in self._oracles:
            group = group_of(version)
            if group not in self._workers:
                self._workers[group] = Worker(group)
            self._oracles[key] = Oracle(path, version, strategy, worker=self._workers[group])
        return self._oracles[key]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def convert(path: str | Path, strategy: str, out: str | Path) -> None:
    """Write a v4 to v6 checkpoint as the package converts it for `strategy`, to `out` (ending in ".pth").

    The result holds `_strategy`, `_version` and `_rescale_layer` beside the tensors, and loads with that strategy only.
    The package runs a converted v6 file only from a given state: converting renames what it counts the heads by.
    """
    with Worker("v4-v6") as worker:
        worker.request("convert", path=str(path), strategy=strategy, out=str(out))


def canonical_state(version: str, flat_list: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the package's flat list of state tensors, in the layout of the whole project.

    Returns:
        "att_shift" and "ffn_shift" [L, C], and for v4 "aa", "bb", "pp" [L, A], for later versions
        "wkv" [L, H, K, V] (row = key channel; v7's own is [H, V, K]).
    """
    names = ["att_shift", "aa", "bb", "pp", "ffn_shift"] if version == "4" else ["att_shift", "wkv", "ffn_shift"]
    state = {name: torch.stack(list(flat_list[i :: len(names)])) for i, name in enumerate(names)}
    if version.startswith("7"):
        state["wkv"] = state["wkv"].transpose(-1, -2).contiguous()
    return state
