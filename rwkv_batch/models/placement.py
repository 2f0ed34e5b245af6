"""Where a model's tensors live and in which dtype: from `device`/`dtype`/`quantization`, or from a strategy string."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..errors import CapacityError, ConfigurationError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_STRATEGY = re.compile(r"^(?P<device>cuda(?::\d+)?|cpu|mps) +(?P<dtype>fp32|fp16|bf16)(?P<int8>i8)?$")


STATE_DTYPES = {name: dtype for name, dtype in DTYPES.items() if dtype != torch.bfloat16}
"""bfloat16 has too few bits for a state: it drifts by factors within a few thousand tokens."""


@dataclass(frozen=True)
class Placement:
    """One device and dtype for the whole model.

    Args:
        dtype: of weights and activations.
        state_dtype: of the matrix states: float32, or float16 rounded stochastically after every token.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str | None
    state_dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def place(
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    strategy: str | None = None,
    state_dtype: str = "float32",
    stored_dtype: torch.dtype = torch.float32,
) -> Placement:
    """Choose device and dtype.

    Args:
        device: "auto" is the first CUDA device where there is one, else the CPU.
        dtype: "auto" is the checkpoint's own; on a CPU, float32 where the processor has no instructions for that one.
        strategy: ChatRWKV's way of saying the three others, such as "cpu fp32" or "cuda fp16i8".
        stored_dtype: of the checkpoint's matrices.

    Raises:
        ConfigurationError: unknown names, or both a strategy and one of the others.
        CapacityError: the device is not there.
    """
    if strategy is not None:
        if (device, dtype, quantization) != ("auto", "auto", None):
            raise ConfigurationError(
                "model.strategy says device, dtype and quantization; leave those three unset beside it"
            )
        match = _STRATEGY.match(strategy.strip())
        if match is None:
            raise ConfigurationError(
                f"model.strategy: got {strategy!r}, expected one device and dtype, such as 'cpu fp32', 'cuda fp16i8'"
            )
        device, dtype, quantization = match["device"], match["dtype"], "int8" if match["int8"] else None
    chosen = _device(device)
    if quantization not in (None, "int8", "w8a8"):
        raise ConfigurationError(f"model.quantization: got {quantization!r}, expected null, 'int8' or 'w8a8'")
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigurationError(f"model.dtype: got {dtype!r}, expected auto, float32, bfloat16 or float16")
    if state_dtype not in STATE_DTYPES:
        raise ConfigurationError(f"engine.state_dtype: got {state_dtype!r}, expected float32 or float16")
    number = DTYPES[dtype] if dtype != "auto" else _native(stored_dtype, chosen)
    return Placement(chosen, number, quantization, STATE_DTYPES[state_dtype])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"engine.device: got {name!r}, expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CapacityError(
            f"engine.device: {name} is not there; this torch ({torch.__version__}) sees {torch.cuda.device_count()} "
            "CUDA devices. Use device: cpu, or install a CUDA build of torch and check nvidia-smi"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CapacityError("engine.device: mps is not there; it needs macOS on Apple silicon. Use device: cpu")
    return device


def _native(stored: torch.dtype, device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return stored
    has_bfloat16 = stored == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
