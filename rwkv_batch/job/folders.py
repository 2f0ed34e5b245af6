"""The two folders of a job, on a local disk or in an object store, and the refusal of those that would do harm."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ConfigurationError
from ..object_stores.urls import LOCAL, checked_url, is_url, lacks_slashes
from .config import JobConfig
from .input.files import InputFile, would_be_read
from .output.object_storage import PROBE
from .output.open_storage import open_storage, remote_part
from .output.scratch_storage import scratch_folder
from .output.storage import Storage, StorageError

STATE_SUFFIX = ".rwkv_batch"
LONGEST_NAME = 120
"""Characters of the longest path below one of the folders: a segment's, or a temporary file's."""


@dataclass(frozen=True)
class Folders:
    """The two folders of a job: `output` holds parts, `state` everything else.

    Args:
        output, state: absolute paths, or addresses in object stores.
        scratch: a folder on this machine where segments are looked for too; None where the state folder is local, or
            where no run has made one and this run makes none.
        is_scratch_written: new segments are written to `scratch`: `run.segments: scratch`.
    """

    output: str
    state: str
    scratch: str | None = None
    is_scratch_written: bool = False

    @classmethod
    def of(cls, job: JobConfig) -> Folders:
        """Returns the folders that a job names.

        Raises:
            ConfigurationError: an address is none of a folder in an object store, or there can be no scratch folder.
        """
        output, state = cls._named_by(job)
        if not is_url(state):
            return cls(output, state)
        is_written = job.run.segments == "scratch"
        if job.run.backend == "ray":
            if is_written:
                raise ConfigurationError(
                    "run.segments: got 'scratch' with run.backend 'ray', expected 'store': rows of a unit may be "
                    "finished on several machines"
                )
            return cls(output, state)
        scratch = scratch_folder(state)
        if is_written and scratch is None:
            raise ConfigurationError(
                "run.segments: got 'scratch', but this user has no home: set XDG_CACHE_HOME to a folder on a local disk"
            )
        is_used = scratch is not None and (is_written or os.path.isdir(scratch))
        return cls(output, state, scratch if is_used else None, is_written)

    @staticmethod
    def _named_by(job: JobConfig) -> tuple[str, str]:
        """Returns the output folder and the state folder."""
        output = absolute(job.output.path, "output.path")
        if job.run.state_dir is None:
            return output, output + STATE_SUFFIX
        state = absolute(job.run.state_dir, "run.state_dir")
        if is_url(state) and not is_url(output):
            raise ConfigurationError(
                f"run.state_dir: got {state!r}, expected a folder on a local disk: output.path is one"
            )
        return output, state

    @property
    def are_siblings(self) -> bool:
        """Whether the state folder's name is that of the output folder with a suffix."""
        return self.state == self.output + STATE_SUFFIX

    def file(self, name: str) -> str:
        """The path of a file in the state folder."""
        return os.path.join(self.state, name)

    def open_storage(self) -> Storage:
        """Returns what reads and writes both. Raises MissingExtraError where that needs a package that is missing."""
        return open_storage(self.output, self.state, self.scratch, is_scratch_written=self.is_scratch_written)

    def output_from_state(self) -> str:
        """The path from the state folder to the output folder; an address in an object store as it is."""
        return self.output if is_url(self.output) else os.path.relpath(self.output, self.state)

    def removal(self) -> str:
        """The command that removes all folders of the job; words where one of them is in an object store."""
        if is_url(self.output):
            scratch = "" if self.scratch is None else f", and: rm -r {shlex.quote(self.scratch)}"
            return f"remove everything below {self.output}/ and {self.state}/{scratch}"
        return f"rm -r {shlex.quote(self.output)} {shlex.quote(self.state)}"


def absolute(path: str, setting: str) -> str:
    """Returns the absolute path of a local folder, or an address in an object store without slashes at its end.

    Raises:
        ConfigurationError: the address is none of a folder in an object store.
    """
    if lacks_slashes(path):
        scheme, rest = re.split("[:/]+", path, maxsplit=1)
        raise ConfigurationError(f"{setting}: got {path!r}, expected a colon and two slashes: {scheme}://{rest}")
    return checked_url(path, setting) if is_url(path) else os.path.abspath(path.removeprefix(LOCAL))


def check_folders(job: JobConfig, folders: Folders, files: Sequence[InputFile]) -> None:
    """Refuses folders in which the output would mix with the input, the state, or files of others.

    Raises:
        ConfigurationError: a folder is refused.
    """
    if is_url(folders.output):
        _check_remote_folders(job, folders, files)
        return
    where = f"output.path: got {job.output.path!r}"
    _check_writable(folders.output, "output.path")
    _check_writable(folders.state, "run.state_dir" if job.run.state_dir else "output.path")
    output, state = os.path.realpath(folders.output), os.path.realpath(folders.state)
    if os.path.commonpath([output, state]) in (output, state):
        raise _contain_each_other(folders)
    _check_input(job, where, output, {file.name: os.path.realpath(file.path) for file in files})
    for folder in (output, state):  # raises OSError where a path is too long for a file in it
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(os.path.join(folder, "x" * LONGEST_NAME))
    if os.path.isdir(output) and os.listdir(output) and not os.path.exists(folders.file("job.json")):
        raise _no_output(where, folders)
    if _device(output) != _device(state):
        raise ConfigurationError(
            f"{where}, which is on another file system than {folders.state}: parts could not appear in one step; "
            "choose both on one file system (a folder below a mount point, not the mount itself)"
        )


def _check_writable(folder: str, setting: str) -> None:
    """Refuses a folder that cannot be made or written to. Leaves nothing behind: the file that it writes has no name.

    Raises:
        ConfigurationError: the folder is refused.
    """
    nearest = folder
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(os.path.join(folder, "x" * LONGEST_NAME))  # fails where a path is too long for a file in it
        while not _is_there(nearest):
            nearest = os.path.dirname(nearest)
        is_folder = os.path.isdir(nearest)
        if is_folder:
            os.listdir(nearest)
            with tempfile.TemporaryFile(dir=nearest):
                pass
    except (OSError, ValueError) as error:  # ValueError: no valid path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"{setting}: cannot write to {folder!r} ({nearest!r}: {reason}); choose another folder, or make it writable"
        ) from error
    if not is_folder:
        raise ConfigurationError(f"{setting}: {nearest} is a file, or a link to none; expected a folder or nothing")


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _check_remote_folders(job: JobConfig, folders: Folders, files: Sequence[InputFile]) -> None:
    """As `check_folders`, where the output is in an object store. Lists folders there, and writes nothing.

    Raises:
        ConfigurationError: a folder is refused.
    """
    output, state = folders.output, folders.state
    where = f"output.path: got {output!r}"
    if not is_url(state):
        _check_writable(state, "run.state_dir")
    if folders.is_scratch_written and folders.scratch is not None:
        _check_writable(folders.scratch, "run.segments: scratch (its place follows XDG_CACHE_HOME)")
    if f"{output}/".startswith(f"{state}/") or f"{state}/".startswith(f"{output}/"):
        raise _contain_each_other(folders)
    _check_input(job, where, output, {file.name: file.name for file in files})
    storage = folders.open_storage()
    others = [name for name in storage.list(output) if not name.startswith(PROBE)]
    if others and "job.json" not in storage.list(state):
        raise _no_output(where, folders)


def _check_input(job: JobConfig, where: str, output: str, paths: Mapping[str, str]) -> None:
    """Refuses an output folder that the input would read, or that holds a file of the input.

    Args:
        where: names the setting, for the error.
        output: the folder's real path, or its address.
        paths: name of each file of the input → its real path, or its address.

    Raises:
        ConfigurationError: the folder is refused.
    """
    if would_be_read(job.input.path, os.path.join(output, "part-00000-of-00001.parquet")):
        raise ConfigurationError(f"{where}, a folder that input.path reads; parts would become input")
    for name, path in paths.items():
        if path.startswith(os.path.join(output, "")):
            raise ConfigurationError(f"{where}, which contains the input {name}; use another folder")


def _contain_each_other(folders: Folders) -> ConfigurationError:
    return ConfigurationError(f"run.state_dir: {folders.state} and {folders.output} contain each other; use siblings")


def _no_output(where: str, folders: Folders) -> ConfigurationError:
    return ConfigurationError(
        f"{where}, which is not empty and is no job's output ({folders.state}/job.json is missing): choose another "
        "folder, or put job.json back if it was removed"
    )


def check_reachable(folders: Folders, storage: Storage) -> None:
    """Refuses folders in an object store that cannot be listed.

    Raises:
        ConfigurationError: a folder is refused.
    """
    remote = remote_part(storage)
    if remote is None:
        return
    for folder in filter(is_url, (folders.output, folders.state)):
        try:
            remote.reach(folder)
        except StorageError as error:
            raise ConfigurationError(f"output.path, run.state_dir: {error}") from error


def check_honours_conditions(folders: Folders, storage: Storage) -> None:
    """Tries out whether the folders in an object store can be written to, and job.json be created by one alone.

    Raises:
        ConfigurationError: the store cannot be written to.
    """
    remote = remote_part(storage)
    if remote is None:
        return
    try:
        remote.probe(folders.state if is_url(folders.state) else folders.output)
    except StorageError as error:
        raise ConfigurationError(f"output.path, run.state_dir: {error}") from error


def _device(folder: str) -> int:
    """The file system of a folder, or of the nearest folder above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev
