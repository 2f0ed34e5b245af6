"""Streams and events of a device that is not there: who is known to have finished what, and copies that run late.

Every operation has a number within its stream. A clock, stream → number, says which operations are known to be
finished: each stream has one for what has finished before its next operation starts, and so has the host. An event
carries the clock of the stream it was recorded on, and whoever waits for the event takes that clock over.
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
"""Fills integers that nobody has written; floats are NaN."""


class Hazard(AssertionError):
    """Nothing orders two accesses to the same memory, or memory is used that must not be."""


def poison(tensor: Tensor) -> None:
    """Fill memory with what no computation gives."""
    if tensor.dtype == torch.bool:
        tensor.fill_(True)
    elif tensor.is_floating_point():
        tensor.fill_(torch.nan)
    else:
        tensor.fill_(POISON if tensor.element_size() > 1 else 0xA5 - 256 * tensor.dtype.is_signed)


def memory_of(tensor: Tensor) -> int:
    """What tells the memory below a tensor from other memory."""
    return tensor.untyped_storage().data_ptr()


def caller() -> str:
    """The innermost place in the library or a test from which the stand-in was called."""
    frames = [f for f in traceback.extract_stack() if "/rwkv_batch/" in f.filename or "/test_" in f.filename]
    return "\n".join(f"  {f.filename}:{f.lineno} {f.line}" for f in frames[-3:])


@dataclass
class Copy:
    """A copy between pinned host memory and the device that may not have run yet.

    Args:
        stream, number: the operation.
        host: the tensor in host memory.
        value: what the copy moves: on its way to the device, what the host's memory must still hold when it runs.
    """

    stream: int
    number: int
    host: Tensor
    value: Tensor
    to_device: bool
    where: str

    def run(self) -> None:
        """On its way to the device the value is there already: whoever computes with it stands behind the copy."""
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
    """The streams of one device, and the host's view of them."""

    def __init__(self) -> None:
        self.host_clock: Clock = {}
        self.streams: list[Stream] = []
        self.current = Stream(self)
        self.copies: list[Copy] = []
        self.waits: list[str] = []
        """Where the host has waited for the device without an event."""
        self._accesses: dict[int, _Accesses] = {}
        self._pinned: dict[int, Tensor] = {}

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """`torch.cuda.stream`."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def run(self, reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = (), news: Iterable[Tensor] = ()) -> None:
        """One operation on the current stream; raises where something of it may run at the same time."""
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
        """Memory that has been allocated and not been used: who used it before does not matter."""
        for tensor in news:
            self._accesses.pop(memory_of(tensor), None)

    def pin(self, tensor: Tensor) -> Tensor:
        """Host memory that copies use while the host goes on. It is kept, so that no other takes its place."""
        self._pinned[memory_of(tensor)] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return memory_of(tensor) in self._pinned

    def copy(self, host: Tensor, device: Tensor, to_device: bool, non_blocking: bool) -> None:
        """Copy between host memory and the device, late where that is allowed."""
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
        """What a host tensor holds once the copies to it have run that stand before the next operation."""
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
        """The host waits without an event."""
        self.waits.append(caller())
        self.finish(stream.clock)

    def finish(self, clock: Clock) -> None:
        """The host knows that all of this has run."""
        merge(self.host_clock, clock)
        late, self.copies = self.copies, []
        for copy in late:
            if self.host_clock.get(copy.stream, 0) >= copy.number:
                copy.run()
            else:
                self.copies.append(copy)

    def synchronize(self, device: Any = None) -> None:
        """`torch.cuda.synchronize`."""
        for stream in self.streams:
            self.finish(stream.clock)


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, queues: Queues) -> None:
        self.queues, self.index, self.device = queues, len(queues.streams), torch.device("cuda", 0)
        self.clock: Clock = {self.index: 0}
        queues.streams.append(self)

    def take_over(self, clock: Clock) -> None:
        """What runs here from now on starts after all that `clock` has."""
        merge(self.clock, clock)

    def check(self, other: int, number: int, what: str) -> None:
        """Raise unless operation `number` of another stream has finished before what runs here."""
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
    """`torch.cuda.Event`."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or self.queues.current).clock)

    def synchronize(self) -> None:
        self.queues.finish(self.clock)


def merge(clock: Clock, other: Clock) -> None:
    """Take the later number of each stream."""
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _bytes_of_memory(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
