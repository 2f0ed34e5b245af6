"""A fake CUDA device, for machines without one. The library takes its CUDA paths; numbers are in host memory.

The device runs each operation at once. That gives the results of a real device if the operations are ordered by
streams, events or waits. The fake checks that they are:

- `fakes.streams` runs copies with pinned memory as late as a device may, and raises `Hazard` if two operations on the
  same memory are not ordered.
- `fakes.graph` replays recorded steps without the Python code that made them.
- An operation on tensors of both the host and the device is refused, as a real device refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.graph import FakeGraph
from fakes.streams import Event, Hazard, Queues, Stream, memory_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
PINNING = (torch.ops.aten.pin_memory.default, torch.ops.aten._pin_memory.default)


class DeviceTensor(Tensor):
    """A tensor of the fake device. Its numbers are in `inner`, a tensor in host memory."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        # A CPU build of torch has no CUDA device below Python, so torch itself sees a tensor of the device "meta".
        place = (inner.stride(), inner.storage_offset())
        made = Tensor._make_wrapper_subclass(cls, inner.shape, *place, dtype=inner.dtype, device=torch.device("meta"))
        made.inner = inner
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def record_stream(self, stream: Any) -> None:
        """Does nothing: the fake never hands freed memory to another stream."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{function}: a tensor of the fake device is used outside of `fake_cuda`")


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Replaces torch.cuda by the fake inside the block. At its end, all late copies run and are checked."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), FakeCuda() as cuda:
        cuda.install(patch)
        yield cuda
        cuda.queues.synchronize()


class FakeCuda(TorchDispatchMode):
    """The fake device. It runs torch's operations, and launches of Triton's kernels in Triton's interpreter.

    Attributes:
        graphs: all recorded graphs, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queues = Queues()
        self.graphs: list[FakeGraph] = []
        self._recording: FakeGraph | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, DeviceTensor) or _is_device(leaf) for leaf in leaves):
            return self._on_host(function, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:
                return function.decompose(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name == "_to_copy":
            with self:
                return self._converted(args[0], kwargs)
        if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
            return self._copy_between(*args)
        if name == "_local_scalar_dense" or _has_unknown_size(name, args):
            self._must_not_record("a number that the host must read")
            self.queues.wait_for(self.queues.current)
        if name == "_local_scalar_dense":
            return function(args[0].inner)
        return self._on_device(function, args, kwargs)

    def _on_host(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in PINNING:
            return self.queues.pin(args[0].clone())
        is_pinned = kwargs.pop("pin_memory", False)
        found = function(*args, **kwargs)
        return self.queues.pin(found) if is_pinned else found

    def _on_device(self, function: Any, args: Any, kwargs: Any) -> Any:
        tensors: list[Any] = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if strangers := [list(t.shape) for t in tensors if t.dim() and not isinstance(t, DeviceTensor)]:
            raise Hazard(f"{function} is given tensors of the host {strangers} beside tensors of the device")
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.inner, (args, kwargs))
        if "device" in inner_kwargs:
            inner_kwargs["device"] = torch.device("cpu")
        found = function(*inner_args, **inner_kwargs)
        reads, writes, news = _accesses(function, inner_args, inner_kwargs, found)
        if self._recording is None:
            self.queues.run(reads, writes, news)
        else:
            self._recording.add(function, inner_args, inner_kwargs, found, news)
            self.queues.forget(news)
        known = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, DeviceTensor)}
        return tree_map_only(Tensor, lambda tensor: _wrapped(tensor, known), found)

    def _converted(self, source: Tensor, options: Any) -> Tensor:
        """A copy with another dtype or on another device. The dtype is converted first."""
        target, dtype = options.get("device"), options.get("dtype") or source.dtype
        is_there = isinstance(source, DeviceTensor)
        goes_there = is_there if target is None else _is_device(target)
        if dtype != source.dtype:
            source = torch.empty_like(source, dtype=dtype).copy_(source)
        elif is_there and goes_there and target is not None:
            return source  # it is on the device already; only torch below Python sees "meta" as another device
        if is_there == goes_there:
            return source
        is_late = options.get("non_blocking", False)
        # As in torch: a tensor that is copied to the host without waiting lies in pinned memory.
        is_pinned = is_late and is_there
        made = torch.empty(source.shape, dtype=dtype, device=DEVICE if goes_there else "cpu", pin_memory=is_pinned)
        return made.copy_(source, non_blocking=is_late)

    def _copy_between(self, destination: Any, source: Any, non_blocking: bool = False) -> Tensor:
        self._must_not_record("a copy between host and device, which would find the host's memory changed or gone,")
        assert (destination.shape, destination.dtype) == (source.shape, source.dtype)
        to_device = isinstance(destination, DeviceTensor)
        host, device = (source, destination.inner) if to_device else (destination, source.inner)
        self.queues.copy(host, device, to_device, non_blocking)
        return destination

    def _must_not_record(self, what: str) -> None:
        if self._recording is not None:
            raise Hazard(f"{what} is part of a recorded step")

    def _launch(self, kernel: Any, run: Callable[..., None], args: Any, kwargs: Any) -> None:
        """Launches one of this project's Triton kernels. It may write to each of its arguments."""
        tensors: list[Any] = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if strangers := [list(tensor.shape) for tensor in tensors if not isinstance(tensor, DeviceTensor)]:
            raise Hazard(f"{kernel.fn.__name__} is given tensors of the host: {strangers}")
        args, kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.inner, (args, kwargs))
        if self._recording is None:
            self.queues.run(writes=[tensor.inner for tensor in tensors])
        else:
            self._recording.add_launch(lambda *given, **options: run(kernel, *given, **options), args, kwargs)
        run(kernel, *args, **kwargs)

    @contextmanager
    def _record(self, graph: FakeGraph, stream: Stream | None = None, **options: Any) -> Iterator[None]:
        """Replaces `torch.cuda.graph`. Operations are recorded and also run, on whatever the memory holds."""
        self.queues.synchronize()
        self.graphs.append(graph)
        self._recording = graph
        try:
            with self.queues.on(stream or Stream(self.queues)):
                yield
        finally:
            self._recording = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replaces the functions of torch.cuda, and the launcher of Triton's interpreter."""
        from triton.runtime.interpreter import GridExecutor

        queues = self.queues
        replacements = dict(
            _lazy_init=lambda: None,
            is_available=lambda: True,
            device_count=lambda: 1,
            current_device=lambda: 0,
            get_device_capability=lambda device=None: (9, 0),
            empty_cache=lambda: None,
            synchronize=queues.synchronize,
            device=nullcontext,
            Stream=lambda device=None: Stream(queues),
            Event=lambda: Event(queues),
            current_stream=lambda device=None: queues.current,
            stream=queues.on,
            CUDAGraph=lambda: FakeGraph(queues),
            graph=self._record,
            graph_pool_handle=SimpleNamespace,
        )
        for name, value in replacements.items():
            patch.setattr(torch.cuda, name, value)
        run = GridExecutor.__call__
        patch.setattr(GridExecutor, "__call__", lambda kernel, *a, **options: self._launch(kernel, run, a, options))


def _is_device(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type in ("cuda", "meta")


def _has_unknown_size(operation: str, args: Any) -> bool:
    """Whether the size of the operation's result depends on numbers on the device."""
    is_masked = operation.startswith("index") and any(
        isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
    )
    return is_masked or operation in ("nonzero", "masked_select")


def _wrapped(tensor: Tensor, known: dict[int, DeviceTensor]) -> DeviceTensor:
    found = known.get(id(tensor))
    return DeviceTensor(tensor) if found is None else found


def _accesses(function: Any, args: Any, kwargs: Any, found: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The tensors that an operation reads, writes and allocates. An operation that returns a view accesses none."""
    schema = function._schema
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if not written and any(result.alias_info is not None for result in schema.returns):
        return [], [], []
    reads: list[Tensor] = []
    writes: list[Tensor] = []
    names = [a.name for a in schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        tensors: list[Any] = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        (writes if name in written else reads).extend(tensors)
    given = {memory_of(tensor) for tensor in reads + writes}
    results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    return reads, writes, [tensor for tensor in results if memory_of(tensor) not in given]
