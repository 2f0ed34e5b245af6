"""The process under compute-sanitizer: python -m benchmarks.gpu_parts.sanitizer_case NAME [BACKEND].

NAME is a case of `rwkv_batch.checks`, whose smallest input runs, or "planted error", which writes one number beyond the
end of a tensor. The exit code is 0 if the kernels ran, also with wrong numbers: other parts check those.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import triton
import triton.language as tl

from rwkv_batch.checks.cases import cases
from rwkv_batch.checks.target import Target

from .sanitizer import PLANTED

NUM_NUMBERS = 128
"""512 bytes, the granularity of allocations."""


@triton.jit
def _write(p_x, position):  # type: ignore[no-untyped-def]
    tl.store(p_x + position, 1.0)


def main() -> int:
    name, *rest = sys.argv[1:]
    if name == PLANTED:
        _write[(1,)](torch.zeros(NUM_NUMBERS, device="cuda"), NUM_NUMBERS)
        torch.cuda.synchronize()
        return 0
    torch.set_num_threads(1)
    target = Target(rest[0], torch.device("cuda:0"))
    (case,) = (case for case in cases(target) if case.name == name)
    replace(case, checks=case.checks[:1]).run(target)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
