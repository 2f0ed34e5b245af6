"""The exceptions that a caller may want to catch. Each message says what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence


def one_of(names: Sequence[str]) -> str:
    """The end of an error message that lists what was expected: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


class RwkvBatchError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        setting: the setting that is wrong, under the name that the caller knows it by; the message begins with it.
    """

    def __init__(self, message: str = "", *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.setting is None else f"{self.setting}: {message}"


class ConfigurationError(RwkvBatchError, ValueError):
    """A setting, a job file or the input's schema is wrong. Nothing has been loaded or written."""


class CheckpointError(RwkvBatchError, ValueError):
    """A model file cannot be read, or is not a checkpoint of any supported RWKV version."""


class ResumeError(RwkvBatchError):
    """The output folder belongs to a job that would give other results."""


class CapacityError(RwkvBatchError):
    """The device is missing or has too little memory for this model with even one slot."""


class BackendError(RwkvBatchError):
    """A backend that was named explicitly cannot serve an operation; the message lists every reason."""


class Stopped(KeyboardInterrupt):
    """A signal asked a job to end. What it had finished is committed; the same job, started again, goes on.

    Like KeyboardInterrupt, of which it is one kind, it is no `Exception`: nothing on the way mistakes it for a failure.
    """


class RowError(RwkvBatchError, ValueError):
    """One row is bad; all others are served.

    Args:
        code: a short stable identifier such as "token_out_of_range", written to the `error_code` column.
        message: one sentence for the `error` column.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MissingExtraError(RwkvBatchError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package!r}: pip install 'rwkv_batch[{extra}]'")
