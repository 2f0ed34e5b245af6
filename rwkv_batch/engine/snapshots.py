"""Snapshots: saved states of shared prefixes, on the device while it has room, then in host memory."""

from __future__ import annotations

from dataclasses import dataclass

from .prefix import Prefix
from .state_pool import Record


@dataclass
class _Snapshot:
    record: Record
    num_waiting: int
    is_on_host: bool


class Snapshots:
    """The states of computed prefixes. Each is kept until every child has been given a copy.

    Admission reserves a place before it starts a prefix, so that there is a place when the prefix is computed.

    Args:
        num_on_device: places on the pool's device. On a CPU both kinds of places are in the same memory.
        num_on_host: further places, in host memory.

    Attributes:
        num_reserved: places of prefixes that are being computed.
    """

    def __init__(self, num_on_device: int, num_on_host: int) -> None:
        self._num_on_device, self._num_on_host = num_on_device, num_on_host
        self._kept: dict[Prefix, _Snapshot] = {}
        self.num_reserved = 0
        self.peak = 0
        """The largest number of snapshots kept at the same time."""
        self.peak_on_host = 0
        """The largest number of snapshots kept in host memory at the same time."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_room(self) -> bool:
        """Whether there is a place to reserve."""
        return len(self._kept) + self.num_reserved < self._num_on_device + self._num_on_host

    def reserve(self) -> None:
        """Reserves a place for a prefix that starts."""
        self.num_reserved += 1

    def cancel(self) -> None:
        """Gives back the place of a prefix that will not be computed."""
        self.num_reserved -= 1

    def store(self, prefix: Prefix, record: Record) -> None:
        """Copies the state of a computed prefix into the place reserved for it. Without children nothing is kept.

        Args:
            record: the record of the pool's slot that has computed the prefix.
        """
        self.num_reserved -= 1
        if not prefix.children:
            return
        on_device = sum(not snapshot.is_on_host for snapshot in self._kept.values())
        is_on_host = on_device >= self._num_on_device
        copy = record.to_host() if is_on_host else record.clone()
        self._kept[prefix] = _Snapshot(copy, len(prefix.children), is_on_host)
        self.peak = max(self.peak, len(self._kept))
        self.peak_on_host = max(self.peak_on_host, len(self._kept) - on_device - (not is_on_host))

    def take(self, prefix: Prefix) -> Record:
        """The state of a prefix, for one of its children. The last child to take it frees the place."""
        snapshot = self._kept[prefix]
        snapshot.num_waiting -= 1
        if not snapshot.num_waiting:
            del self._kept[prefix]
        return snapshot.record

    def add_children(self, prefix: Prefix, count: int) -> None:
        """Expects `count` more children to take a prefix's state; a negative count expects fewer."""
        snapshot = self._kept[prefix]
        snapshot.num_waiting += count
        if not snapshot.num_waiting:
            del self._kept[prefix]

    def shrink(self, num_on_device: int) -> None:
        """Changes the number of places on the device, when all running sequences restart. Snapshots stay in place.

        Prefixes that were being computed lose their reservations; they reserve again when they start again.
        """
        self._num_on_device, self.num_reserved = num_on_device, 0

    def clear(self) -> None:
        """Drops all snapshots and reservations."""
        self._kept.clear()
        self.num_reserved = 0

    def drop(self, prefix: Prefix) -> None:
        """Drops the snapshot of a prefix that will be computed again, if there is one."""
        self._kept.pop(prefix, None)
