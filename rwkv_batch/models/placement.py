"""The placement of a model: the device, dtype and weight format of each layer, from settings or a strategy string."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..dtypes import DTYPES, SPELLINGS, STATE_DTYPES, dtype_name, torch_dtype
from ..errors import CapacityError, ConfigurationError, one_of
from .matrices.quantization import QUANTIZATIONS, check_quantization, weight_format
from .strategy import Share, devices_named, distribute, parse


@dataclass(frozen=True)
class LayerPlacement:
    """The placement of one layer, or of the head.

    Args:
        dtype: of dense weights and activations.
        quantization: the weight format: a name of matrices/quantization.py, or None for dense.
        is_streamed: the layer's large matrices stay in host memory, and are copied to the device before each run.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str | None = None
    is_streamed: bool = False

    def __str__(self) -> str:
        words = (str(self.device), dtype_name(self.dtype), self.quantization, "streamed" if self.is_streamed else None)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Placement:
    """The placement of a model.

    Args:
        device, dtype, quantization: of the head, hence of logits and sampling; and of all layers where `layers` is
            empty.
        head_device: the device of the head's matrix, where that device cannot sample and `device` is another.
        state_dtype: of the matrix states: float32, or float16 rounded stochastically after every token.
        layers: one for each layer, where layers differ from the head or from each other.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str | None
    state_dtype: torch.dtype = torch.float32
    layers: tuple[LayerPlacement, ...] = ()
    head_device: torch.device | None = None

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.dtype)

    @property
    def head(self) -> LayerPlacement:
        """The placement of the head; and of every layer where `layers` is empty."""
        return LayerPlacement(self.head_device or self.device, self.dtype, self.quantization)

    def of_layers(self, num_layers: int) -> tuple[LayerPlacement, ...]:
        """The placement of each layer, and of the head after them."""
        return (*(self.layers or (self.head,) * num_layers), self.head)

    @property
    def uses_float16(self) -> bool:
        """Some layer or the head is in float16. The residual stream is then rescaled in all layers."""
        return torch.float16 in {self.dtype, *(layer.dtype for layer in self.layers)}


def describe_layers(placement: Placement, num_layers: int) -> str:
    """The placement as a text: "layers 0-11 cuda:0 float16 int8, layers 12-23 and head cpu float32"."""
    places = placement.of_layers(num_layers)
    starts = [i for i in range(num_layers) if i == 0 or places[i] != places[i - 1]]
    groups = []
    for start, end in zip(starts, [*starts[1:], num_layers], strict=True):
        name = f"layers {start}-{end - 1}" if end - start > 1 else f"layer {start}"
        joined = " and head" if end == num_layers and places[start] == places[-1] else ""
        groups.append(f"{name}{joined} {places[start]}")
    if places[-1] != places[-2]:
        groups.append(f"head {places[-1]}")
    return ", ".join(groups)


class Stage(NamedTuple):
    """Consecutive layers of one device and dtype: activations are not copied between them."""

    device: torch.device
    dtype: torch.dtype
    layers: range


def stages(placement: Placement, num_layers: int) -> list[Stage]:
    """The layers in their order, without the head, grouped into stages."""
    found: list[Stage] = []
    for i, layer in enumerate(placement.of_layers(num_layers)[:-1]):
        if found and (layer.device, layer.dtype) == found[-1][:2]:
            found[-1] = found[-1]._replace(layers=range(found[-1].layers.start, i + 1))
        else:
            found.append(Stage(layer.device, layer.dtype, range(i, i + 1)))
    return found


def place(
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    strategy: str | None = None,
    state_dtype: str = "float32",
    stored_dtype: torch.dtype = torch.float32,
    num_layers: int = 1,
) -> Placement:
    """The placement that settings ask for.

    Args:
        device: "auto" is the current CUDA device, or the CPU on a machine without CUDA.
        dtype: "auto" is the dtype of the checkpoint; on a CPU without instructions for it, float32.
        quantization: a name of matrices/quantization.py, or None.
        strategy: a ChatRWKV strategy instead of the three others: see models/strategy.py.
        stored_dtype: of the checkpoint's matrices.
        num_layers: of the checkpoint; a strategy is distributed over them.

    Raises:
        ConfigurationError: an unknown name, or a strategy beside one of the settings that it replaces.
        CapacityError: this machine does not have the device.
    """
    if SPELLINGS.get(state_dtype) not in STATE_DTYPES:
        raise ConfigurationError(f"got {state_dtype!r}, expected {one_of(STATE_DTYPES)}", setting="state_dtype")
    if strategy is not None:
        if (device, dtype, quantization) != ("auto", "auto", None):
            raise ConfigurationError(
                "it sets device, dtype and quantization; leave those three unset beside it", setting="strategy"
            )
        return _spread(strategy, num_layers, torch_dtype(state_dtype))
    chosen = _device(device)
    check_quantization(quantization)
    if dtype != "auto" and dtype not in SPELLINGS:
        raise ConfigurationError(f"got {dtype!r}, expected {one_of(('auto', *DTYPES))}", setting="dtype")
    number = torch_dtype(dtype) if dtype != "auto" else _native(stored_dtype, chosen)
    runs_on = weight_format(quantization).device_types
    if runs_on is not None and chosen.type not in runs_on:
        raise ConfigurationError(
            f"{quantization} runs on {' and '.join(runs_on)}, not on {device}; use {_names_on(chosen)}",
            setting="quantization",
        )
    return _sampling(LayerPlacement(chosen, number, quantization), (), torch_dtype(state_dtype), num_layers)


def check_data_parallel(count: int, device: str, strategy: str | None) -> None:
    """Checks that each of several engines can have a device of its own, the GPUs from cuda:0 on, or runs on the CPU.

    Args:
        count: the number of engines.
        device, strategy: as for `place`.

    Raises:
        ConfigurationError: the settings name the devices of a single engine, or there are fewer GPUs than engines.
    """
    names = devices_named(device, strategy)
    if len(names) > 1 or names[0] not in ("auto", "cuda", "cpu"):
        setting = "device" if strategy is None else "strategy"
        given = repr(device if strategy is None else strategy)
        raise ConfigurationError(
            f"got {given} with data_parallel={count}: the engines run on cuda:0 to cuda:{count - 1}, or all on the "
            "CPU; name 'cuda' or 'cpu' alone, or leave data_parallel out",
            setting=setting,
        )
    if _device(names[0]).type == "cuda" and torch.cuda.device_count() < count:
        raise ConfigurationError(
            f"got {count} engines, each on a GPU of its own, but this machine has {torch.cuda.device_count()}; give "
            "fewer, or check CUDA_VISIBLE_DEVICES",
            setting="data_parallel",
        )


def _names_on(device: torch.device) -> str:
    """The weight formats that run on a device, for a message such as "use int8 or null"."""
    formats = {name: weight_format(name).device_types for name in QUANTIZATIONS}
    return one_of([*(name for name, types in formats.items() if types is None or device.type in types), "null"])


def _sampling(
    head: LayerPlacement, layers: tuple[LayerPlacement, ...], state_dtype: torch.dtype, num_layers: int
) -> Placement:
    """The placement of a model. Sampling needs float64: logits of a head on mps or dml, which lack it, go to a CPU."""
    if head.device.type in ("cpu", "cuda"):
        return Placement(head.device, head.dtype, head.quantization, state_dtype, layers)
    layers = layers or (head,) * num_layers
    return Placement(torch.device("cpu"), head.dtype, head.quantization, state_dtype, layers, head.device)


def _spread(strategy: str, num_layers: int, state_dtype: torch.dtype) -> Placement:
    """The placement that a strategy string asks for."""
    *layers, head = (_placed(share) for share in distribute(parse(strategy), num_layers))
    is_same = not head.is_streamed and all(layer == head for layer in layers)
    return _sampling(head, () if is_same else tuple(layers), state_dtype, num_layers)


def _placed(share: Share) -> LayerPlacement:
    clause, is_streamed = share
    device = _device(clause.device)
    # The weights of a CPU are in host memory anyway.
    is_streamed = is_streamed and device.type != "cpu"
    return LayerPlacement(device, torch_dtype(clause.dtype), clause.quantization, is_streamed)


def _device(name: str) -> torch.device:
    """The device of a name. "cuda" becomes the current CUDA device with its index: the current device may change."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "dml":
        return _directml()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"got {name!r}, expected auto, cpu, cuda, cuda:N, mps or dml", setting="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CapacityError(
            f"{name} is not there; this torch ({torch.__version__}) sees {torch.cuda.device_count()} CUDA devices. "
            "Use device: cpu, or install a CUDA build of torch and check nvidia-smi",
            setting="device",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CapacityError("mps is not there; it needs macOS on Apple silicon. Use device: cpu", setting="device")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _directml() -> torch.device:
    try:
        import torch_directml
    except ImportError as error:
        raise CapacityError(
            "dml needs the package torch-directml (Windows or WSL, a GPU with DirectX 12), which is not installed here "
            f"({error}). Install it, or use device: cpu",
            setting="device",
        ) from error
    device: torch.device = torch_directml.device()
    return device


def _native(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that "auto" stands for, of a checkpoint's dtype on a device."""
    if device.type != "cpu":
        return stored
    has_bfloat16 = stored == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
