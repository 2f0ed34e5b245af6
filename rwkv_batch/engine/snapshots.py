"""Where the states of shared prefixes are kept: on the device as far as there is room, beyond that in host memory."""

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
    """States of computed prefixes, each kept until every child has a copy.

    Whoever starts a prefix reserves the place that its state will take, so that there is one when it is computed.

    Args:
        num_on_device: as many lie beside the pool, on its device. On a CPU both kinds are in the same memory.
        num_on_host: as many more lie in host memory.
    """

    def __init__(self, num_on_device: int, num_on_host: int) -> None:
        self._num_on_device, self._num_on_host = num_on_device, num_on_host
        self._kept: dict[Prefix, _Snapshot] = {}
        self.num_reserved = 0
        self.peak = 0
        """The most that were kept at the same time."""
        self.peak_on_host = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_room(self) -> bool:
        """There is a place to reserve."""
        return len(self._kept) + self.num_reserved < self._num_on_device + self._num_on_host

    def reserve(self) -> None:
        """A prefix starts that will need a place."""
        self.num_reserved += 1

    def store(self, prefix: Prefix, record: Record) -> None:
        """Copy the state of a prefix that has a place reserved, for all its children.

        Args:
            record: of the pool; a copy is kept, unless no child is left.
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
        """The state, for one more child to be copied; the last child's taking frees the place."""
        snapshot = self._kept[prefix]
        snapshot.num_waiting -= 1
        if not snapshot.num_waiting:
            del self._kept[prefix]
        return snapshot.record

    def add_children(self, prefix: Prefix, count: int) -> None:
        """So many more children will take the state of a prefix, or fewer where `count` is negative."""
        snapshot = self._kept[prefix]
        snapshot.num_waiting += count
        if not snapshot.num_waiting:
            del self._kept[prefix]

    def shrink(self, num_on_device: int) -> None:
        """Everything that computes a prefix starts again, on a smaller device. What is kept stays where it is."""
        self._num_on_device, self.num_reserved = num_on_device, 0

    def clear(self) -> None:
        """Nobody waits for any state any more."""
        self._kept.clear()
        self.num_reserved = 0

    def drop(self, prefix: Prefix) -> None:
        """Forget a state, if it is kept: its prefix is computed again."""
        self._kept.pop(prefix, None)
