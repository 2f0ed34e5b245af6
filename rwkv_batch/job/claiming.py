"""Holds the claim of a shard while a run serves it, and waits while another run holds it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from .claim import EXTENSION, STEM, Claim, Machine, read_claims, read_content
from .folders import Folders
from .output.storage import Storage
from .plan import Shard
from .stopping import StopSignals

logger = logging.getLogger(__name__)

TRIES = 3
"""Of a renewal, where other processes write the claim at the same moment."""
BEATS_WITH_OTHERS = 2
"""A run looks for claims of shards that overlap with its own once in so many renewals."""

_running: set[str] = set()
"""The runs of this process that hold a claim, or are about to."""


def _seconds() -> float:
    """A monotonic clock in seconds. Where the system has one, it also counts time in which the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Pace:
    """The times of a claim, in seconds.

    Args:
        beat: between two renewals.
        stale: a run whose claim has not changed for so long counts as ended.
        poll: between two readings by a run that waits.
        say: between two lines of a run that waits.
        clock: a monotonic clock in seconds.
        sleep: waits.
    """

    beat: float = 15.0
    stale: float = 60.0
    poll: float = 2.0
    say: float = 30.0
    clock: Callable[[], float] = _seconds
    sleep: Callable[[float], None] = time.sleep


PACE = Pace()


class ClaimedShard:
    """Holds the claim of a shard while its `with` block runs. At the start of the block it waits for another run.

    A thread renews the claim. If another run has taken the claim over meanwhile, because this process was suspended, it
    asks `stop` to end this run.

    Args:
        storage: of the job.
        folders: of the job.
        shard: is claimed.
        stop: a signal ends the waiting.
        run: random number of this run.
        pace: the times; None for `PACE`.
        machine: this machine; None to find it out.

    Attributes:
        has_waited: another run has held the claim.
    """

    def __init__(
        self,
        storage: Storage,
        folders: Folders,
        shard: Shard,
        stop: StopSignals,
        run: str,
        pace: Pace | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.has_waited = False
        self._storage = storage
        self._state = folders.state
        self._path = folders.file(shard.file_name(STEM, EXTENSION))
        self._shard = shard
        self._stop = stop
        self._pace = pace or PACE
        self._machine = machine or Machine()
        self._claim = self._machine.claim(run)
        self._may_hold = False
        self._renewed_at = self._pace.clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="rwkv_batch-claim", daemon=True)
        self._others: dict[Shard, Claim] = {}
        self._told: set[Shard] = set()

    def __enter__(self) -> ClaimedShard:
        """Waits for the claim.

        Raises:
            Stopped: a signal came while it waited.
            StorageError: the claim cannot be read or written. While it waits this run tries for a while.
        """
        _running.add(self._claim.run)
        try:
            with self._stop.interruptible():
                self._acquire()
                self._renewed_at = self._pace.clock()
                self._warn_of_others()
            self._thread.start()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._ended.set()
            self._thread.join()
        finally:
            self._release()

    def _acquire(self) -> None:
        """Takes the claim as soon as no other run holds it."""
        clock, stale = self._pace.clock, self._pace.stale
        started = changed_at = read_at = clock()
        said_at: float | None = None
        content: bytes | None = None
        while True:
            try:
                found, now = read_content(self._storage, self._path), clock()
            except OSError:
                if said_at is None or clock() - read_at > stale:
                    raise
                self._pace.sleep(self._pace.poll)  # such as a network file system that has replaced it meanwhile
                continue
            if found != content or now - read_at > stale / 2:
                changed_at = now  # between two readings that are far apart it may have changed
            content, read_at = found, now
            holder = None if content is None else Claim.of(content)
            reason = "" if content is None else self._why_free(holder, now - changed_at)
            if (content is None or reason) and self._take(content):
                break
            if holder is not None and not reason and (said_at is None or now - said_at >= self._pace.say):
                self._say(holder, now - started, is_first=said_at is None)
                said_at = now
            self.has_waited = True
            self._pace.sleep(self._pace.poll)
        if reason:
            logger.info("%s; this run goes on", reason)
        if said_at is not None:
            logger.info("this run has waited for %.0f s, and makes what is missing", clock() - started)

    def _take(self, content: bytes | None) -> bool:
        """Writes this run's claim. Returns False where another process is faster.

        Args:
            content: of the claim that it replaces; None where there is none.
        """
        self._may_hold = True
        if content is None:
            return self._storage.atomic_write(self._path, self._claim.encoded(), exclusive=True)
        return self._storage.replace(self._path, self._claim.encoded(), content)

    def _why_free(self, holder: Claim | None, unchanged: float) -> str:
        """Why the run that has written a claim does not hold it any more, in words; "" where it does.

        Args:
            holder: the claim; None where it is damaged.
            unchanged: how many seconds this run has seen the claim as it is.
        """
        if holder is None:
            return f"{self._path} is no claim of a run"
        if self._is_ours(holder):
            has_ended = holder.run not in _running
        else:
            has_ended = self._machine.has_ended(holder)
        if has_ended:
            return f"{holder} has ended, and left its claim"
        if unchanged >= self._pace.stale:
            return f"{holder} has not renewed its claim for {unchanged:.0f} s"
        return ""

    def _is_ours(self, claim: Claim) -> bool:
        """Whether a claim is of this process, and so of one of its runs."""
        mine = self._claim
        return self._machine.is_here(claim) and (claim.pid, claim.started) == (mine.pid, mine.started)

    def _say(self, holder: Claim, waited: float, *, is_first: bool) -> None:
        """Logs for whom this run waits."""
        if not is_first:
            logger.info("waiting for %s, %.0f s so far", holder, waited)
            return
        logger.warning(
            "%s: %s serves %s already; this run waits until that one ends, and then makes what is missing. To share "
            "the work, start each process with another shard, such as --shard 0/2 and --shard 1/2",
            self._path,
            holder,
            _named(self._shard),
        )

    def _keep(self) -> None:
        """Renews the claim until the block ends, or another run holds the claim."""
        is_failing = False
        beats = 0
        while not self._ended.wait(self._pace.beat):
            beats += 1
            try:
                if not self._renew():
                    return
                if beats <= BEATS_WITH_OTHERS:
                    self._warn_of_others()
                is_failing = False
            except OSError as error:
                if not is_failing:
                    logger.warning(
                        "the claim of this run is not renewed: %s; it is tried again every %.0f s, and the job goes on",
                        error,
                        self._pace.beat,
                    )
                is_failing = True

    def _renew(self) -> bool:
        """Writes the claim anew, also where it was removed or damaged.

        Returns False where another run holds it, or, after a time in which another run may have, where it is gone.
        """
        for _ in range(TRIES):
            found = read_content(self._storage, self._path)
            holder = None if found is None else Claim.of(found)
            is_late = self._pace.clock() - self._renewed_at > self._pace.stale
            if (holder is not None and holder.run != self._claim.run) or (found is None and is_late):
                who = f"{holder} serves" if holder else "another run has served"
                reason = f"{who} {_named(self._shard)}, as this process has not renewed its claim in time"
                logger.warning("%s; finished rows are committed", reason)
                self._stop.request(reason)
                return False
            renewal = self._claim.renewal()
            if found is None:
                is_written = self._storage.atomic_write(self._path, renewal.encoded(), exclusive=True)
            else:
                is_written = self._storage.replace(self._path, renewal.encoded(), found)
            if is_written:
                self._claim, self._renewed_at = renewal, self._pace.clock()
                break
        return True

    def _release(self) -> None:
        """Removes the claim if it is this run's."""
        if not self._may_hold:
            _running.discard(self._claim.run)
            return
        try:
            content = read_content(self._storage, self._path)
            holder = None if content is None else Claim.of(content)
            if holder is not None and holder.run == self._claim.run:
                self._storage.remove(self._path)
        except OSError as error:
            logger.warning("the claim of this run stays: %s", error)
        finally:
            _running.discard(self._claim.run)

    def _warn_of_others(self) -> None:
        """Warns once of each shard with another count that has units of this one, and whose process lives.

        A process of another machine lives if it has renewed its claim since the last call.
        """
        try:
            claims = list(read_claims(self._storage, self._state))
        except OSError:  # no reason to end a run
            return
        for shard, claim in claims:
            if shard.count == self._shard.count or not shard.overlaps(self._shard) or shard in self._told:
                continue
            before = self._others.setdefault(shard, claim)
            is_here = self._machine.is_here(claim)
            if (is_here and not self._why_free(claim, 0)) or (not is_here and before != claim):
                self._told.add(shard)
                logger.warning(
                    "%s serves %s already, which overlaps with %s: what they have in common is computed twice. Start "
                    "all processes with the same number of shards",
                    claim,
                    _named(shard),
                    _named(self._shard),
                )


def _named(shard: Shard) -> str:
    return "the whole job" if shard.count == 1 else f"shard {shard}"
