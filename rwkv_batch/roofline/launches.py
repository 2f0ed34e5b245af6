"""The launches of real code, recorded without a device: tensors are on torch's device "meta" and have no memory.

Launches of Triton's kernels are noted instead of made, and so are operations of torch that would launch something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from ..cuda_kernels.launch import Kernel
from ..triton_kernels import launch as triton_launch
from .accesses import accesses
from .work import LIBRARY, NO_WORK, Work, work_of

META = torch.device("meta")
GATHERS = ("index", "index_select", "embedding", "gather")
"""Operations that read as many bytes of their first argument as they return."""
SCATTERS = ("index_copy_", "index_put_", "index_fill_", "scatter_")
"""Operations that write as many bytes as their last tensor argument has."""
FEW = frozenset(
    [("shape_kernel", name) for name in ("p_mask", "p_seen_ids", "p_seen_count", "p_seen_generated")]
    + [("select_kernel", name) for name in ("p_mask", "p_near_logits", "p_near_ids")]
)
"""Arguments of which a launch touches few entries: lists and masks of rows with penalties or constraints."""
FEW_STORED = frozenset((("shape_kernel", "p_logits"), ("select_kernel", "p_logits")))
"""Arguments of which a launch stores few entries: the logits of listed ids."""


class Piece(NamedTuple):
    """Memory that a launch reads or writes once."""

    memory: tuple[int, int]
    """What tells this memory from other memory: its storage, and the place of a part of the state pool."""
    num_bytes: int

    @property
    def is_pool(self) -> bool:
        """Whether it is one layer's part of the state pool: the only tensors with gaps between their rows."""
        return self.memory[1] > 0


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, of a library's product or of another operation of torch.

    Args:
        layer: number of the layer; None outside of the layers.
        is_kernel: False for a copy from the host.
    """

    name: str
    layer: int | None
    reads: tuple[Piece, ...]
    writes: tuple[Piece, ...]
    work: Work = NO_WORK
    is_kernel: bool = True

    @property
    def num_bytes(self) -> int:
        """Bytes that it reads and writes, wherever they are."""
        return sum(piece.num_bytes for piece in (*self.reads, *self.writes))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes launches while it is active.

    Attributes:
        launches: all of them, in order.
        layer: the layer whose launches are being made.
        longest: tokens of the longest row of the step, which the recurrence takes one after the other.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []
        self.layer: int | None = None
        self.longest = 1
        self._kept: list[Any] = []  # storages, so that no other memory gets their number

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Notes launches of Triton and of torch inside the block."""

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            self._launched(kernel, args, options, grid)

        def launch(kernel: Any, defines: Any, grid: Sequence[int], threads: int, **values: Any) -> None:
            self._launched_cuda(kernel.name, values, prod(grid))

        # As in the interpreter, each launch is then Triton's own, and none was prepared.
        unprepared = patch.object(triton_launch, "is_interpreted", lambda: True)
        with patch.object(JITFunction, "run", run), patch.object(Kernel, "launch", launch), unprepared, self:
            yield

    def _launched_cuda(self, name: str, values: dict[str, Any], programs: int) -> None:
        tensors = {key: x for key, x in values.items() if isinstance(x, Tensor)}
        reads = tuple(self._piece(x) for key, x in tensors.items() if key != "out")
        writes = tuple(self._piece(x) for key, x in tensors.items() if key in ("out", "state"))
        work = work_of(f"{name}.cu", values, programs, self.longest)
        self.launches.append(Launch(f"{name}.cu", self.layer, reads, writes, work))

    def _launched(self, kernel: Any, args: Sequence[Any], options: dict[str, Any], grid: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {name: value for name, value in options.items() if name in kernel.arg_names}
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        others = frozenset((name, value) for name, value in given.items() if name not in tensors)
        found = accesses(kernel, frozenset(tensors), others)
        name = kernel.fn.__name__
        if "SOURCES" in given:  # the launch reads these of the stacked inputs
            tensors["p_x"] = tensors["p_x"][: len(set(given["SOURCES"]))]
        reads = [self._piece(x) for key, x in tensors.items() if key in found.loaded and (name, key) not in FEW]
        unstored = FEW | FEW_STORED
        writes = [self._piece(x) for key, x in tensors.items() if key in found.stored and (name, key) not in unstored]
        programs = prod(grid(given) if callable(grid) else grid)
        work = work_of(name, given | options, programs, self.longest)
        self.launches.append(Launch(name, self.layer, tuple(reads), tuple(writes), work))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not name.startswith(("empty", "new_empty")):
            self._operated(function, name, (args, kwargs), found)
        return found

    def _operated(self, function: Any, name: str, given: Any, found: Any) -> None:
        inputs = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        is_written = {argument.name for argument in function._schema.arguments if _is_written(argument)}
        written = [
            x for argument, x in zip(function._schema.arguments, given[0], strict=False) if argument.name in is_written
        ]
        known = {_storage(x) for x in inputs}
        results = [x for x in tree_leaves(found) if isinstance(x, Tensor) and _storage(x) not in known]
        outputs = [x for x in (*written, *results) if x.device == META]
        if not outputs or not outputs[0].numel():
            return
        read = [x for x in inputs if x.device == META and not any(x is out for out in written)]
        pieces = [self._piece(x) for x in read], [self._piece(x) for x in outputs]
        if name in GATHERS:
            pieces[0][0] = Piece(pieces[0][0].memory, pieces[1][0].num_bytes)
        if name in SCATTERS:
            pieces[1][0] = Piece(pieces[1][0].memory, pieces[0][-1].num_bytes)
        if name in ("addmm_", "baddbmm_", "add_", "mul_"):
            pieces[0].append(pieces[1][0])
        work = NO_WORK
        if name in LIBRARY:
            (*batch, M, K), N = inputs[-2].shape, inputs[-1].shape[-1]
            work = Work(operations=2.0 * prod(batch) * M * N * K, depth=K, is_product=True, is_batch=bool(batch))
        is_kernel = all(x.device == META for x in inputs)
        shown = f"torch.{name}" if is_kernel else "copy from the host"
        reads, writes = (tuple(each) for each in pieces)
        self.launches.append(Launch(shown, self.layer, reads, writes, work, is_kernel))

    def _piece(self, x: Tensor) -> Piece:
        self._kept.append(x.untyped_storage())
        has_gaps = x.dim() > 1 and x.stride(0) > x.numel() // max(len(x), 1)
        place = 1 + int(x.storage_offset()) if has_gaps else 0
        return Piece((_storage(x), place), x.numel() * x.itemsize)


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
