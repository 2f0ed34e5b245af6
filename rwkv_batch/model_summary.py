"""What a model is and how it would run, known without reading its weights: for dry runs, fingerprints and loading."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .apart import call_apart
from .dtypes import dtype_name
from .engine.request import END_OF_TEXT
from .engine.sampler import Sampler
from .engine.sizing import MemoryPlan, plan_memory
from .engine.slot_tables import Vocabulary
from .errors import CheckpointError, ConfigurationError
from .models.architecture import describe_sizes
from .models.files.checkpoint import open_checkpoint
from .models.model import ModelFile
from .models.placement import LayerPlacement, Placement, describe_layers, place
from .ops import OpTable, fallbacks, format_choices, resolve
from .text.load_tokenizer import load_tokenizer
from .text.tokenizer import Tokenizer

UNCOUNTED = b" \t0123456789"
"""Tokens that are a part of this text are not counted by ChatRWKV's penalties."""
logger = logging.getLogger(__name__)
DEMO_MODEL = Path(__file__).parent / "demo" / "model.safetensors"


@dataclass(frozen=True)
class ModelSummary:
    """One model with its tokenizer, placement and memory plan."""

    file: ModelFile
    tokenizer: Tokenizer | None
    placement: Placement
    layer_ops: tuple[OpTable, ...]
    """Of each layer, of the head and, where that is elsewhere, of sampling."""
    memory: MemoryPlan
    init_state: Path | None
    ln_x_eps: float | None

    @property
    def tables(self) -> dict[str, OpTable]:
        """What serves each op of the model and of the sampler, by placement."""
        places = [str(place) for place in self.placement.of_layers(self.file.sizes["L"])]
        return dict(zip([*places, f"{self.placement.device} sampling"], self.layer_ops, strict=False))

    @property
    def memory_plan(self) -> str:
        return str(self.memory)

    @property
    def vocabulary(self) -> Vocabulary:
        """What sampling knows of the tokens.

        Ids without bytes are never sampled; ChatRWKV's penalties do not count digits, spaces and tabs.
        """
        vocab_size = self.file.sizes["V"]
        if self.tokenizer is None:
            return Vocabulary.plain(vocab_size)
        known = self.tokenizer.token_bytes
        table = [*known, *[None] * (vocab_size - len(known))]
        unsampleable = torch.tensor([not data and i != END_OF_TEXT for i, data in enumerate(table)])
        uncounted = torch.tensor([data is not None and data in UNCOUNTED for data in table])
        return Vocabulary(unsampleable, uncounted)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the model's files and of the initial state, in hexadecimal."""
        digest = hashlib.sha256(self.file.checkpoint.fingerprint().encode())
        if self.init_state is not None:
            digest.update(self.init_state.read_bytes())
        return digest.hexdigest()

    def log(self) -> None:
        """Say where the memory goes and who serves what; warn of ops that no kernel serves."""
        logger.info("%s", self.memory)
        if self.placement.layers:
            logger.info("%s", describe_layers(self.placement, self.file.sizes["L"]))
        for where, table in self.tables.items():
            logger.info("%s\n%s", where, format_choices(table.choices))
            for sentence in fallbacks(table.choices):
                logger.warning("%s: %s", where, sentence)

    def describe(self) -> dict[str, Any]:
        """For reports: everything is plain JSON."""
        is_split = len(self.tables) > 1
        return {
            "model": str(self.file.checkpoint.path),
            "format": self.file.checkpoint.format,
            "version": self.file.architecture.name,
            "sizes": describe_sizes(self.file.sizes),
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
            "device": str(self.placement.device),
            "dtype": self.placement.dtype_name,
            "state_dtype": dtype_name(self.placement.state_dtype),
            "quantization": self.placement.quantization,
            "layers": describe_layers(self.placement, self.file.sizes["L"]),
            "max_batch_size": self.memory.max_batch_size,
            "max_batch_tokens": self.memory.max_batch_tokens,
            "memory_plan": str(self.memory),
            "backends": [
                {"op": c.op, "backend": c.backend, "not_used": list(c.refused), **({"on": where} if is_split else {})}
                for where, table in self.tables.items()
                for c in table.choices
            ],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }


def inspect_model(
    model: str | Path,
    *,
    tokenizer: str | None = "auto",
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    backend: str = "auto",
    max_batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    state_dtype: str = "float32",
    init_state: str | Path | None = None,
    strategy: str | None = None,
    ln_x_eps: float | None = None,
    apart: bool = False,
) -> ModelSummary:
    """Open a model, choose its placement and size the engine. The arguments but the last are those of `LLM`.

    Args:
        apart: GPUs are asked by another process, so that this one does not initialize CUDA.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as `LLM` does.
    """
    if ln_x_eps is not None and not 0 < ln_x_eps < 1:
        raise ConfigurationError(f"got {ln_x_eps!r}, expected a number between 0 and 1, or null", setting="ln_x_eps")
    file = ModelFile.open(open_checkpoint(DEMO_MODEL if str(model) == "demo" else model))
    if init_state is not None:
        if not Path(init_state).is_file():
            raise CheckpointError(
                f"{init_state} is not a file; expected a state-tuning .pth or .safetensors", setting="init_state"
            )
        file.initial_states(init_state)
    settings: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "backend": backend,
        "max_batch_size": max_batch_size,
        "max_batch_tokens": max_batch_tokens,
        "state_dtype": state_dtype,
        "strategy": strategy,
    }
    if apart and device != "cpu" and (torch.version.cuda or torch.version.hip):
        placed = call_apart(_place_path, path=file.checkpoint.path, **settings)
    else:
        placed = _place(file, **settings)
    return ModelSummary(
        file=file,
        tokenizer=load_tokenizer(tokenizer, vocab_size=file.sizes["V"], model_path=file.checkpoint.path),
        placement=placed.placement,
        layer_ops=placed.layer_ops,
        memory=placed.memory,
        init_state=None if init_state is None else Path(init_state),
        ln_x_eps=ln_x_eps,
    )


class _Placed(NamedTuple):
    """What depends on this machine's devices."""

    placement: Placement
    layer_ops: tuple[OpTable, ...]
    memory: MemoryPlan


def _place(
    file: ModelFile, backend: str, max_batch_size: int | None, max_batch_tokens: int | None, **settings: Any
) -> _Placed:
    placement = place(**settings, stored_dtype=_stored_dtype(file), num_layers=file.sizes["L"])
    ops = _layer_ops(file, placement, backend)
    return _Placed(placement, ops, plan_memory(file, placement, max_batch_size, max_batch_tokens))


def _place_path(path: Path, **settings: Any) -> _Placed:
    """`_place`, in a process that has not opened the file."""
    return _place(ModelFile.open(open_checkpoint(path)), **settings)


def _layer_ops(file: ModelFile, placement: Placement, backend: str) -> tuple[OpTable, ...]:
    """Of each layer, of the head, and of sampling; chosen once for each placement."""
    sampling = LayerPlacement(placement.device, placement.dtype)
    places = (*placement.of_layers(file.sizes["L"]), *([sampling] if placement.head_device else []))
    tables: dict[LayerPlacement, OpTable] = {}
    for one in dict.fromkeys(places):
        specs = dict.fromkeys((*file.ops_at(one, head_is_remote=placement.head_device is not None), *Sampler.OPS))
        tables[one] = resolve(specs, backend, one.device, one.dtype, file.sizes, placement.state_dtype)
    return tuple(tables[one] for one in places)


def _stored_dtype(file: ModelFile) -> torch.dtype:
    return file.checkpoint.dtype("emb.weight")
