"""The outcome of one case."""

from __future__ import annotations

from dataclasses import dataclass

OK, WRONG, FAILED, TIMEOUT, CRASHED = "ok", "wrong", "failed", "timeout", "crashed"
UNUSABLE, REFUSED = "unusable", "refused"
GOOD = (OK, REFUSED)
"""Statuses that need no repair: a backend refuses a dtype, a size or a device that it does not serve, and another
backend serves."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one case; plain JSON by `dataclasses.asdict`.

    Args:
        name: the op and its dtypes, such as "wkv7 bfloat16 state float16".
        op, backend, device: what was checked, where.
        status: "ok"; "wrong", numbers differ by more than they may; "failed", an error was raised; "timeout", the time
            limit was reached; "crashed", the process ended by a signal or the device was lost; "unusable", the backend
            is made for this, and its kernels cannot be compiled, loaded or launched; "refused", the backend is not
            made for this dtype, size or device.
        why: the reason for any other status than "ok", its first line.
        worst_error: the error that is the largest share of its limit; None where it is not finite.
        limit: the limit of that error.
        seconds: duration of the process.
    """

    name: str
    op: str
    backend: str
    device: str
    status: str
    why: str = ""
    worst_error: float | None = None
    limit: float | None = None
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.status in GOOD
