"""The settings of `LLM` in two groups: what the model is, and how the engine runs it.

A new setting is a field here, a parameter of `LLM`, and its use; for jobs, also a field of the section of the same
name in job/config.py. Tests compare the three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import ConfigurationError, one_of

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
LOGPROBS_MODES = get_args(LogprobsMode)

if TYPE_CHECKING:
    from .text.chat import ChatSettings


@dataclass(frozen=True)
class ModelSettings:
    """The settings that say what the model is. Each field is the argument of `LLM` of the same name.

    Raises:
        ConfigurationError: a number is out of range.
    """

    model: str | Path = "demo"
    tokenizer: str | None = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    strategy: str | None = None
    init_state: str | Path | None = None
    ln_x_eps: float | None = None
    parse_special_tokens: bool = False
    chat: ChatSettings | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.ln_x_eps is not None and not 0 < self.ln_x_eps < 1:
            raise ConfigurationError(
                f"got {self.ln_x_eps!r}, expected a number between 0 and 1, or null", setting="ln_x_eps"
            )


@dataclass(frozen=True)
class EngineSettings:
    """The settings that say how the engine runs a model. Each field is the argument of `LLM` of the same name.

    Raises:
        ConfigurationError: a number is out of range.
    """

    device: str = "auto"
    backend: str = "auto"
    max_batch_size: int | None = None
    max_batch_tokens: int | None = None
    state_dtype: str = "float32"
    prefix_sharing: bool = True
    prefix_host_gib: float = 1.0
    batch_invariant: bool = False
    seed: int = 0
    constraint_timeout: float = 10.0
    memory_share: float = 0.85
    logprobs_mode: LogprobsMode = "raw_logprobs"
    state_write_interval: int = 1
    data_parallel: int = 1
    admission_delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if type(self.data_parallel) is not int or self.data_parallel < 1:
            raise ConfigurationError(
                f"got {self.data_parallel!r}, expected a number of engines from 1", setting="data_parallel"
            )
        if not 0 < self.constraint_timeout < math.inf:
            raise ConfigurationError(
                f"got {self.constraint_timeout!r}, expected a number of seconds above 0", setting="constraint_timeout"
            )
        share = self.memory_share
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise ConfigurationError(
                f"got {self.memory_share!r}, expected a number above 0 up to 1", setting="memory_share"
            )
        if self.logprobs_mode not in LOGPROBS_MODES:
            raise ConfigurationError(
                f"got {self.logprobs_mode!r}, expected {one_of(LOGPROBS_MODES)}", setting="logprobs_mode"
            )
        if type(self.state_write_interval) is not int or not 1 <= self.state_write_interval <= 4:
            raise ConfigurationError(
                f"got {self.state_write_interval!r}, expected an integer from 1 to 4",
                setting="state_write_interval",
            )
        delay = self.admission_delay_ms
        if not isinstance(delay, Real) or isinstance(delay, bool) or not 0 <= delay < math.inf:
            raise ConfigurationError(
                f"got {delay!r}, expected a number of milliseconds from 0", setting="admission_delay_ms"
            )
        if not 0 <= self.prefix_host_gib < math.inf:
            raise ConfigurationError(
                f"got {self.prefix_host_gib!r}, expected a number of GiB from 0", setting="prefix_host_gib"
            )

    @property
    def prefix_host_bytes(self) -> int:
        """`prefix_host_gib` in bytes."""
        return int(self.prefix_host_gib * 2**30)
