"""The parts of the GPU benchmark, their time limits, and plans that fit several parts into a given time."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """Limits and kind of a part, for the parent process.

    Args:
        minutes: time limit of the part, if no plan has another one.
        point_seconds: time limit of a point. A process that exceeds it is killed, and another one continues after it.
        is_check: its points are checks. A check that could not be made counts as a failure.
        is_shared: several processes share the points, because nothing is timed.
        compiles: processes that measure nothing compile the kernels beforehand.
        needs: modules that the part needs. It is left out without them.
    """

    minutes: float
    point_seconds: float = 55.0
    is_check: bool = False
    is_shared: bool = False
    compiles: bool = True
    needs: tuple[str, ...] = ()


class Stage(NamedTuple):
    """Parts that run at the same time.

    Args:
        seconds: time limit in the plan. Later stages that measure may use the time that a stage leaves.
        is_dry: only compile the kernels of these parts.
    """

    parts: tuple[str, ...]
    seconds: float
    is_dry: bool = False


PARTS = {
    "smoke": Part(3, point_seconds=180, is_check=True, compiles=False),
    "limits": Part(3, compiles=False),
    "correctness": Part(9, is_check=True, is_shared=True, compiles=False),
    "kernels": Part(9),
    "engine-equal": Part(6, is_check=True, is_shared=True, compiles=False),
    "sanitizer": Part(9, point_seconds=120, is_check=True, is_shared=True, compiles=False),
    "decode": Part(9),
    "serving": Part(5),
    "profile": Part(5),
    "prefill": Part(5),
    "int8": Part(9),
    "streaming": Part(5),
    "job": Part(8, point_seconds=400, compiles=False, needs=("pydantic", "pyarrow", "yaml", "tqdm")),
    "peers": Part(9, point_seconds=400, compiles=False),
}
DRY_SECONDS = 150.0
"""Time limit of compiling beforehand, if no plan has another one."""

_TIMED = ("decode", "serving", "prefill", "profile")
PLANS = {
    "first": (
        Stage(("smoke",), 95),
        Stage(("limits",), 25),
        Stage(("correctness", "engine-equal", "sanitizer"), 105),
    ),
    "second": (
        Stage(("smoke",), 40),
        Stage(("limits",), 25),
        Stage(_TIMED, 40, is_dry=True),
        *(Stage((name,), seconds) for name, seconds in zip(_TIMED, (75, 80, 25, 30), strict=True)),
    ),
}
"""The most important parts come first. `second` runs smoke and limits only if this commit has no results of them."""


def stages_of(parts: tuple[str, ...]) -> tuple[Stage, ...]:
    """Makes the stages of parts one after another. A stage that compiles the kernels of a part goes before it."""
    stages = []
    for name in parts:
        if PARTS[name].compiles:
            stages.append(Stage((name,), DRY_SECONDS, is_dry=True))
        stages.append(Stage((name,), 60 * PARTS[name].minutes))
    return tuple(stages)
