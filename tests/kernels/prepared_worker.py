"""Launches one kernel in many ways on a card that is not there, and prints what reached the card as lines of JSON.

    PYTHONPATH=.:tests python tests/kernels/prepared_worker.py

Each line tells whether Triton bound and specialized the arguments itself, which compilation was launched, and whether
the launcher got what Triton's own launch of the same arguments gives it. A process of its own: a process that
interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.gpu_parts.fake_driver import FakeDriver
from rwkv_batch.triton_kernels.launch import start_kernel
from rwkv_batch.triton_kernels.linear import finish_kernel


class Driver(FakeDriver):
    """Keeps what the launcher was given last, and which compilation that was."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        place = len(self.compilations)
        super().launcher_cls(source, metadata)

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            self.given = place, (x, y, z, stream, function), [*map(identity, rest[4:])]

        return launch


def identity(argument: Any) -> Any:
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


def main() -> None:
    driver = Driver(90)
    driver.install()
    x, y = torch.empty(2, 64)
    half, long = torch.empty(64, dtype=torch.float16), 2**31
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    plain = {"ACTIVATION": None, "ADD": False, "BLOCK": 1024}
    cases: dict[str, tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
        "first": ((3,), (x, None, y, 64), plain),
        "same": ((3,), (x, None, y, 64), plain),
        "other tensors, grid and number": ((2, 7), (y, None, x, 48), plain),
        "unaligned": ((3,), (x[1:], None, y, 48), plain),
        "unaligned again": ((3,), (x[1:], None, y, 48), plain),
        "a tensor for None": ((3,), (x, y, y, 64), plain),
        "other dtype": ((3,), (half, None, y, 64), plain),
        "number that 16 does not divide": ((3,), (x, None, y, 63), plain),
        "one": ((3,), (x, None, y, 1), plain),
        "64 bits": ((3,), (x, None, y, long), plain),
        "other constant": ((3,), (x, None, y, 64), plain | {"ADD": True}),
        "other option": ((3,), (x, None, y, 64), plain),
        "the first once more": ((3,), (x, None, y, 64), plain),
    }
    bind, bound = finish_kernel.run, []
    finish_kernel.run = lambda *args, **kwargs: bound.append(1) or bind(*args, **kwargs)
    for name, (grid, arguments, constants) in cases.items():
        given = constants | (options | {"num_warps": 2} if name == "other option" else options)
        bound.clear()
        start_kernel(finish_kernel, grid, arguments, given)
        by_triton, found = bool(bound), driver.given
        finish_kernel[grid](*arguments, **given)
        print(json.dumps({"case": name, "by_triton": by_triton, "compilation": found[0], "ok": found == driver.given}))
    driver = Driver(80)
    driver.install()
    start_kernel(finish_kernel, (3,), (x, None, y, 64), plain | options)
    print(json.dumps({"case": "other device", "by_triton": True, "compilation": driver.given[0], "ok": True}))


if __name__ == "__main__":
    main()
