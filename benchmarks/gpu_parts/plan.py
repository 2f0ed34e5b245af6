"""The parts of the GPU benchmark, how long each may take, and the plans that fit several into a given time."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """What the parent process knows of a part.

    Args:
        minutes: after which the part is stopped, where no plan says otherwise.
        point_seconds: what one point may take. A process that takes longer is killed, and another goes on after it.
        is_check: its points are checks; one that could not be made is no good.
        is_shared: nothing is timed, so several processes share the points out.
        compiles: kernels are compiled beforehand, by processes that measure nothing.
        needs: modules without which the part is left out.
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
        seconds: of the plan. What a stage leaves over, the later ones that measure may use.
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
"""What compiling beforehand may take, where no plan says otherwise."""

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
"""What matters most comes first. `second` repeats the two short parts only where they were not done for this commit."""


def stages_of(parts: tuple[str, ...]) -> tuple[Stage, ...]:
    """The named parts one after the other, each after its kernels are compiled where they are compiled beforehand."""
    stages = []
    for name in parts:
        if PARTS[name].compiles:
            stages.append(Stage((name,), DRY_SECONDS, is_dry=True))
        stages.append(Stage((name,), 60 * PARTS[name].minutes))
    return tuple(stages)
