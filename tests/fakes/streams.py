"""Fake CUDA streams and events: which operations are ordered, and copies that run as late as they may.

Every operation has a number within its stream. A clock (stream → number) says which operations have certainly finished:
each stream has a clock for the time when its next operation starts, and the host has a clock for now. An event carries
the clock of its stream at its recording. Waiting for an event merges that clock into the clock of the waiting stream,
or of the host. Two operations on the same memory, of which one writes, must be ordered by these clocks; otherwise a
`Hazard` is raised.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Clock = dict[int, int]
POISON = -7777
"""The value of integers in memory that was not written yet; floats are NaN."""


class Hazard(AssertionError):
    """Two accesses to the same memory are not ordered, or memory is used that must not be."""


def poison(tensor: Tensor) -> None:
    """Fills memory with values that no computation in the tests gives."""
    if tensor.dtype == torch.bool:
        tensor.fill_(True)
    elif tensor.is_floating_point():
        tensor.fill_(torch.nan)
    else:
        tensor.fill_(POISON if tensor.element_size() > 1 else 0xA5 - 256 * tensor.dtype.is_signed)


def memory_of(tensor: Tensor) -> int:
    """The address of a tensor's storage, which identifies the memory."""
    return tensor.untyped_storage().data_ptr()


def caller() -> str:
    """The innermost lines of the library or a test that called the fake."""
    frames = [f for f in traceback.extract_stack() if "/rwkv_batch/" in f.filename or "/test_" in f.filename]
    return "\n".join(f"  {f.filename}:{f.lineno} {f.line}" for f in frames[-3:])


@dataclass
class Copy:
    """A copy between pinned host memory and the device that may not have run yet.

    Args:
        stream, number: the copy as an operation.
        host: the tensor in host memory.
        value: the numbers that the copy moves. For a copy to the device, `host` must still hold them when it runs.
        where: the lines that enqueued the copy, for the message of a `Hazard`.
    """

    stream: int
    number: int
    host: Tensor
    value: Tensor
    to_device: bool
    where: str

    def run(self) -> None:
        """Runs the copy. A copy to the device only checks `host`: the fake device received the value at once."""
        if not self.to_device:
            self.host.copy_(self.value)
        elif not torch.equal(_bytes(self.host), _bytes(self.value)):
            raise Hazard(
                f"host memory has changed before its copy to the device ran, which was enqueued at\n{self.where}"
            )


@dataclass
class _Accesses:
    written: tuple[int, int] = (0, 0)
    read: Clock = field(default_factory=dict)


class Queues:
    """The streams of one fake device, and the clock of the host."""

    def __init__(self) -> None:
        self.host_clock: Clock = {}
        self.streams: list[Stream] = []
        self.current = Stream(self)
        self.copies: list[Copy] = []
        self.waits: list[str] = []
        """The lines at which the host has waited for the device without an event."""
        self._accesses: dict[int, _Accesses] = {}
        self._pinned: dict[int, Tensor] = {}

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Replaces `torch.cuda.stream`."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def run(self, reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = (), news: Iterable[Tensor] = ()) -> None:
        """Counts an operation on the current stream. Raises `Hazard` if another stream may use its memory meanwhile."""
        stream = self.current
        stream.take_over(self.host_clock)
        number = stream.clock[stream.index] = stream.clock[stream.index] + 1
        for tensor in news:
            self._accesses[memory_of(tensor)] = _Accesses((stream.index, number))
        for tensor in reads:
            accesses = self._accesses.setdefault(memory_of(tensor), _Accesses())
            stream.check(*accesses.written, "reads what another stream may not have written yet")
            accesses.read[stream.index] = number
        for tensor in writes:
            accesses = self._accesses.setdefault(memory_of(tensor), _Accesses())
            stream.check(*accesses.written, "writes over what another stream may still write")
            for reader in accesses.read.items():
                stream.check(*reader, "writes over what another stream may still read")
            accesses.written, accesses.read = (stream.index, number), {}

    def forget(self, news: Iterable[Tensor]) -> None:
        """Forgets earlier accesses to memory that was allocated anew."""
        for tensor in news:
            self._accesses.pop(memory_of(tensor), None)

    def pin(self, tensor: Tensor) -> Tensor:
        """Marks host memory as pinned. The tensor is kept alive, so that its address stays unique."""
        self._pinned[memory_of(tensor)] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return memory_of(tensor) in self._pinned

    def copy(self, host: Tensor, device: Tensor, to_device: bool, non_blocking: bool) -> None:
        """Copies between host memory and the device. The copy is late if it is asynchronous and the memory pinned."""
        self.run(**({"writes": [device]} if to_device else {"reads": [device]}))
        number = self.current.clock[self.current.index]
        is_late = non_blocking and self.is_pinned(host)
        value = self._when_reached(host) if to_device else device.clone()
        if to_device:
            device.copy_(value)
        elif is_late:
            poison(host)
        else:
            host.copy_(value)
        if is_late:
            self.copies.append(Copy(self.current.index, number, host, value, to_device, caller()))
        elif not to_device or not non_blocking:
            self.wait_for(self.current)

    def _when_reached(self, host: Tensor) -> Tensor:
        """The content of a host tensor after the copies to it that certainly run before the next operation."""
        memory = _bytes_of_memory(host)
        before = memory.clone()
        for copy in self.copies:
            is_before = self.current.clock.get(copy.stream, 0) >= copy.number
            if is_before and not copy.to_device and memory_of(copy.host) == memory_of(host):
                copy.run()
        value = host.clone()
        memory.copy_(before)
        return value

    def wait_for(self, stream: Stream) -> None:
        """Lets the host wait for a stream without an event."""
        self.waits.append(caller())
        self.finish(stream.clock)

    def finish(self, clock: Clock) -> None:
        """Merge a clock into the host's, and run the late copies that have then finished."""
        merge(self.host_clock, clock)
        late, self.copies = self.copies, []
        for copy in late:
            if self.host_clock.get(copy.stream, 0) >= copy.number:
                copy.run()
            else:
                self.copies.append(copy)

    def synchronize(self, device: Any = None) -> None:
        """Replaces `torch.cuda.synchronize`."""
        for stream in self.streams:
            self.finish(stream.clock)


class Stream:
    """Replaces `torch.cuda.Stream`."""

    def __init__(self, queues: Queues) -> None:
        self.queues, self.index, self.device = queues, len(queues.streams), torch.device("cuda", 0)
        self.clock: Clock = {self.index: 0}
        queues.streams.append(self)

    def take_over(self, clock: Clock) -> None:
        """Order the stream's later operations after those of `clock`."""
        merge(self.clock, clock)

    def check(self, other: int, number: int, what: str) -> None:
        """Raises unless operation `number` of the stream `other` has finished before this stream's next operation."""
        if other != self.index and self.clock.get(other, 0) < number:
            raise Hazard(f"stream {self.index} {what}: nothing waits for stream {other}; at\n{caller()}")

    def record_event(self) -> Event:
        event = Event(self.queues)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.take_over(event.clock)

    def wait_stream(self, stream: Stream) -> None:
        self.take_over(stream.clock)


class Event:
    """Replaces `torch.cuda.Event`."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or self.queues.current).clock)

    def synchronize(self) -> None:
        self.queues.finish(self.clock)


def merge(clock: Clock, other: Clock) -> None:
    """Merge `other` into `clock`: the larger number of each stream."""
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _bytes_of_memory(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
