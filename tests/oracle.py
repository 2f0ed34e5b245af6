"""The `rwkv` package as an independent reference for tests: logits, states, scores and sampling of a checkpoint.

The package reads its switches when it is imported and then replaces classes for the whole process. Versions with
different switches therefore run in different processes, and never in the process of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from oracle_messages import receive, send
from torch import Tensor
from versions import VARIANTS
from versions.variant import RwkvPackage

WORKER_SCRIPT = Path(__file__).with_name("oracle_worker.py")
REPLY_TIMEOUT_SECONDS = 120.0


class OracleError(RuntimeError):
    """The package refused a request, or its process ended."""


def package_of(version: str) -> RwkvPackage:
    """How the package serves a version; it must be one of `versions.in_package()`."""
    package = VARIANTS[version].package
    assert package is not None, f"the rwkv package does not know version {version}"
    return package


class Worker:
    """A process that has imported the package.

    Args:
        switches: the environment variables that the package reads.
    """

    def __init__(self, switches: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RWKV_")}
        # Without TorchScript the package starts faster, and its first calls do not profile.
        environment |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "PYTORCH_JIT": "0", "OMP_NUM_THREADS": "1"}
        environment |= switches
        self._connection, child = Pipe()
        # The package prints to standard output, so replies travel over a pipe.
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
        """Calls a method of the worker's `Server`; tensors travel by value.

        Raises:
            OracleError: the package refused, the process ended, or no reply came within REPLY_TIMEOUT_SECONDS.
        """
        try:
            send(self._connection, {"method": method, "arguments": arguments})
            if not self._connection.poll(REPLY_TIMEOUT_SECONDS):
                # The next request would read a late reply as its own.
                self._process.kill()
                raise OracleError(f"no reply to {method} within {REPLY_TIMEOUT_SECONDS:g} s")
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
        version: one of `versions.in_package()`.
        strategy: the package's strategy string; v7 takes only "cpu fp32", "cpu bf16" and "cpu fp16".
        worker: a process to share. None starts a process, which `close` ends.

    Raises:
        OracleError: the package cannot load the file, or identifies another version.
    """

    def __init__(
        self, path: str | Path, version: str, strategy: str = "cpu fp32", *, worker: Worker | None = None
    ) -> None:
        package = package_of(version)
        self._worker = Worker(package.switches) if worker is None else worker
        self._owns_worker = worker is None
        self._model = self._worker.request("load", path=str(path), strategy=strategy)
        found = self._worker.request("version", model=self._model)
        if found != package.version:
            raise OracleError(f"{path}: the package found version {found}, expected {package.version}")

    def layers(self) -> list[list[str]]:
        """Device, dtype of activations and dtype of weights of each layer and the head; of v4 to v6 only."""
        layers: list[list[str]] = self._worker.request("layers", model=self._model)
        return layers

    def forward(
        self, tokens: Sequence[int], state: list[Tensor] | None = None, full_output: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Feeds `tokens`; `state` is left as it is.

        Args:
            tokens: at least one id. One token and several tokens run different code of the package.
            state: what an earlier call returned; None is a fresh sequence.
            full_output: return the logits of all positions; otherwise of the last one.

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
        """Scores a continuation.

        Args:
            context_ids: at least one id.
            continuation_ids: the ids scored, at least one.

        Returns:
            The sum of the log-probabilities (natural logarithm), the log-probability of each token, and whether every
            token is the most likely one.
        """
        logits, _ = self.forward([*context_ids, *continuation_ids][:-1], full_output=True)
        logits = logits[len(context_ids) - 1 :].double()
        targets = torch.tensor(continuation_ids)
        scores = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return scores.sum().item(), scores.tolist(), bool((logits.argmax(-1) == targets).all())

    def sample(self, logits: Tensor, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0) -> Tensor:
        """The distribution [V], float32, from which the package's `sample_logits` draws for `logits` [V]."""
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
    """Loads each checkpoint once, with one worker for each set of switches. Files must not change meanwhile."""

    def __init__(self) -> None:
        self._workers: dict[tuple[tuple[str, str], ...], Worker] = {}
        self._oracles: dict[tuple[Path, str, str], Oracle] = {}

    def get(self, path: Path, version: str, strategy: str) -> Oracle:
        key = (path, version, strategy)
        if key not in self._oracles:
            switches = package_of(version).switches
            group = tuple(sorted(switches.items()))
            if group not in self._workers:
                self._workers[group] = Worker(switches)
            self._oracles[key] = Oracle(path, version, strategy, worker=self._workers[group])
        return self._oracles[key]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def convert(path: str | Path, strategy: str, out: str | Path) -> None:
    """Writes a v4, v5 or v6 checkpoint as the package converts it for `strategy`, to `out` (ending in ".pth").

    The result holds `_strategy`, `_version` and `_rescale_layer` beside the tensors, and loads with that strategy only.
    The package runs a converted v6 file only from a given state: converting renames the tensor whose shape tells the
    number of heads.
    """
    with Worker(package_of("6.0").switches) as worker:
        worker.request("convert", path=str(path), strategy=strategy, out=str(out))


def canonical_state(version: str, flat_list: Sequence[Tensor]) -> dict[str, Tensor]:
    """The package's flat list of state tensors by name, each [L, ...], in the layout of this project.

    A `wkv` is [L, H, K, V] (row = key channel).
    """
    package = package_of(version)
    count = len(package.fields)
    layers = [package.named(flat_list[start : start + count]) for start in range(0, len(flat_list), count)]
    return {name: torch.stack([layer[name] for layer in layers]) for name in package.fields}
