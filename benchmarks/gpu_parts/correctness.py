"""The part `correctness`: every op on the device against float64 or its definition, and promised bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import TypeVar

from rwkv_batch.measure.table import format_lines

from . import check_deferred, check_int8, check_products, check_recurrences, check_sampling
from .context import Context
from .record import Point, is_red

Check = TypeVar("Check")


def run(context: Context) -> list[str]:
    modules = (check_recurrences, check_deferred, check_products, check_int8, check_sampling)
    for name, check in in_turns(chain.from_iterable(module.points(context) for module in modules)):
        if why := _broken(context, name):
            context.record.refuse(name, why)
        else:
            context.record.measure(name, check)
    return _table(context.record.points)


def in_turns(points: Iterable[tuple[str, Check]]) -> list[tuple[str, Check]]:
    """Orders points: one of each op in turn, Triton's ops before CUDA's. If time runs out, every op has some points.

    Args:
        points: (name, check). A name begins with the op's name, with "/cuda" appended for that backend.
    """
    by_op: defaultdict[str, list[tuple[str, Check]]] = defaultdict(list)
    for name, check in points:
        by_op[name.split()[0]].append((name, check))
    ordered: list[tuple[str, Check]] = []
    for is_cuda in (False, True):
        groups = [group for op, group in by_op.items() if op.endswith("/cuda") is is_cuda]
        ordered += [point for turn in zip_longest(*groups) for point in turn if point is not None]
    return ordered


def _broken(context: Context, name: str) -> str:
    """Returns the reason to leave a point out, a kernel that fails on small inputs; empty if there is none.

    Args:
        name: begins with the op's name, or a recurrence's variant, with "/cuda" appended for that backend.
    """
    op, _, backend = name.split()[0].partition("/")
    return context.broken(op.split("-")[0], backend or "triton", if_wrong=False)


def _table(points: dict[str, Point]) -> list[str]:
    by_op: defaultdict[str, list[Point]] = defaultdict(list)
    for name, point in points.items():
        by_op[name.split()[0]].append(point)
    rows = []
    for name, found in by_op.items():
        checks = sum(point["checks"] for point in found)
        red = sum(map(is_red, found))
        worst = max(point["worst_share_of_limit"] for point in found)
        rows.append([name, f"{len(found) - red} of {len(found)}", str(checks), f"{worst:.2f}"])
    return format_lines(["op", "green", "checks", "worst error / limit"], rows)
