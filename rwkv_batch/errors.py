"""The exceptions that a caller may want to catch. Each message says what was given, what was expected, what to do.

RwkvBatchError            every error that this package raises on purpose
  ConfigurationError      also a ValueError
  CheckpointError         also a ValueError
  CapacityError
  BackendError
  ResumeError
  RowError                also a ValueError
  MissingExtraError       also an ImportError
Stopped                   a KeyboardInterrupt: a signal asked a job to end
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any


def one_of(names: Sequence[str]) -> str:
    """The end of an error message that lists what was expected: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" with the known name that is most like `name`; "" where none is like it."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def looked_up(path: str | os.PathLike[str]) -> str:
    """Returns where a relative path was looked up, for an error that it is not found; "" for any other path or URL."""
    name = os.fspath(path)
    return "" if os.path.isabs(name) or "://" in name else f" (looked up in the current folder, {os.getcwd()})"


class RwkvBatchError(Exception):
    """The base of all errors that this package raises on purpose.

    Args:
        setting: the setting that is wrong, under the name by which the caller knows it. The message begins with it.
    """

    def __init__(self, message: str = "", *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come from other processes: the constructors of subclasses take other arguments than `args`."""
        return _restored, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.setting is None else f"{self.setting}: {message}"


def _restored(kind: type[RwkvBatchError], args: tuple[Any, ...], attributes: dict[str, Any]) -> RwkvBatchError:
    """An error that was pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ConfigurationError(RwkvBatchError, ValueError):
    """A setting, a job file or the input's schema is wrong. Nothing has been loaded or written."""


class CheckpointError(RwkvBatchError, ValueError):
    """A model file cannot be read, or is not a checkpoint of any supported RWKV version."""


class ResumeError(RwkvBatchError):
    """The output folder belongs to a job with other results, or the input has changed since the job started."""


class CapacityError(RwkvBatchError):
    """The device is missing, or has too little memory for this model with even one slot."""


class BackendError(RwkvBatchError):
    """A backend that was named explicitly cannot serve an operation; the message lists every reason."""


class Stopped(KeyboardInterrupt):
    """A signal asked a job to end. Finished rows are committed; the same job, started again, goes on.

    It is a KeyboardInterrupt and no `Exception`, so that no `except Exception` takes it for a failure.
    """


class RowError(RwkvBatchError, ValueError):
    """One row is bad; all other rows are served.

    Args:
        code: a short stable identifier such as "token_out_of_range", written to the `error_code` column.
        message: one sentence for the `error` column.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MissingExtraError(RwkvBatchError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it.

    Args:
        feature: what needs the package.
        package: its name in the package index.
        extra: of this package, such as "structured".
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package!r}: pip install 'rwkv_batch[{extra}]'")
