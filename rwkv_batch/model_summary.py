"""The summary of a model: what it is and how it would run, found without reading its weights."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .dtypes import dtype_name
from .engine.request import END_OF_TEXT
from .engine.sampler import Sampler
from .engine.sizing import MemoryPlan, plan_memory
from .engine.slot_tables import Vocabulary
from .errors import CheckpointError, ConfigurationError, looked_up
from .models.architecture import describe_sizes
from .models.files.checkpoint import open_checkpoint
from .models.files.remote import download, is_remote
from .models.model import ModelFile
from .models.placement import LayerPlacement, Placement, check_data_parallel, describe_layers, place
from .ops import OpTable, fallbacks, format_choices, resolve
from .process import call_in_process
from .settings import EngineSettings, ModelSettings
from .text.chat import ChatFormat, ChatSettings, open_chat
from .text.constraint_compiler import ConstraintCompiler
from .text.load_tokenizer import load_tokenizer
from .text.tokenizer import Tokenizer

UNCOUNTED = b" \t0123456789"
"""ChatRWKV's penalties do not count tokens that are a part of this text."""

logger = logging.getLogger(__name__)
DEMO_MODEL = Path(__file__).parent / "demo" / "model.safetensors"


@dataclass(frozen=True)
class ModelSummary:
    """A model with its tokenizer, placement and memory plan: everything that loading it needs.

    Args:
        tokenizer: None where prompts are token ids only.
        layer_ops: who serves each op: of each layer, of the head and, where the head is on a device that does not
            sample, of sampling.
        model, engine: the settings that led to this.
        known_fingerprint: `fingerprint`, where another process has read the same files for it.
    """

    file: ModelFile
    tokenizer: Tokenizer | None
    placement: Placement
    layer_ops: tuple[OpTable, ...]
    memory: MemoryPlan
    model: ModelSettings
    engine: EngineSettings
    known_fingerprint: str | None = None

    @property
    def tables(self) -> dict[str, OpTable]:
        """Who serves each op of the model and of the sampler, by the name of the placement."""
        places = [str(place) for place in self.placement.of_layers(self.file.sizes["L"])]
        return dict(zip([*places, f"{self.placement.device} sampling"], self.layer_ops, strict=False))

    @property
    def memory_plan(self) -> str:
        """The memory plan in words."""
        return f"{self.memory}{self._engines and ', for each of' + self._engines}"

    @property
    def num_slots(self) -> int:
        """The number of slots of all engines; where they are on several GPUs, as if each had as many as the first."""
        return self.memory.max_batch_size * self.engine.data_parallel

    @property
    def _engines(self) -> str:
        """The number of engines, where there are several: " 2 engines"."""
        return f" {self.engine.data_parallel} engines" if self.engine.data_parallel > 1 else ""

    @property
    def num_parameters(self) -> int:
        """The number of weights in the checkpoint."""
        checkpoint = self.file.checkpoint
        return sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)

    def __str__(self) -> str:
        """The model in a few words, such as "demo, rwkv7 1.6M, cpu float32, 128 slots"."""
        layers = self.file.sizes["L"]
        place = describe_layers(self.placement, layers) if self.placement.layers else str(self.placement.head)
        name = Path(self.model.model).name
        version, size = self.file.architecture.name, _in_words(self.num_parameters)
        if not self._engines:
            return f"{name}, {version} {size}, {place}, {self.memory.max_batch_size} slots"
        last = f"cuda:{self.engine.data_parallel - 1}"
        place = place.replace("cuda:0", f"cuda:0 to {last}")
        return f"{name}, {version} {size},{self._engines} on {place}, {self.memory.max_batch_size} slots each"

    @property
    def vocabulary(self) -> Vocabulary:
        """The properties of token ids that sampling needs.

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
    def constraints(self) -> ConstraintCompiler | None:
        """Compiles constraints for this model; None where prompts are token ids only."""
        if self.tokenizer is None:
            return None
        timeout = self.engine.constraint_timeout
        return ConstraintCompiler(self.tokenizer.token_bytes, self.file.sizes["V"], timeout=timeout)

    @cached_property
    def chat_format(self) -> ChatFormat:
        """Renders conversations.

        Raises:
            ConfigurationError: the chat template beside the model cannot be used.
        """
        return open_chat(ChatSettings.of(self.model.chat), self.file.checkpoint.path)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the model's files and of the initial state, in hexadecimal."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        digest = hashlib.sha256(self.file.checkpoint.fingerprint().encode())
        if self.model.init_state is not None:
            digest.update(Path(self.model.init_state).read_bytes())
        return digest.hexdigest()

    def log(self) -> None:
        """Logs the memory plan and who serves each op; warns of casts and of ops that no kernel serves."""
        checkpoint = self.file.checkpoint
        if others := checkpoint.other_dtypes:
            found = ", ".join(map(dtype_name, (checkpoint.matrix_dtype, *others)))
            logger.warning(
                "%s: matrices of several dtypes (%s); all are cast to %s",
                checkpoint.path,
                found,
                self.placement.dtype_name,
            )
        logger.info("%s", self.memory_plan)
        if self.placement.layers:
            logger.info("%s", describe_layers(self.placement, self.file.sizes["L"]))
        for where, table in self.tables.items():
            logger.info("%s\n%s", where, format_choices(table.choices))
            for sentence in fallbacks(table.choices):
                logger.warning("%s: %s", where, sentence)

    def describe(self) -> dict[str, Any]:
        """The summary in plain JSON, for reports."""
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
            "memory_plan": self.memory_plan,
            **({"data_parallel": self.engine.data_parallel} if self._engines else {}),
            "backends": [
                {"op": c.op, "backend": c.backend, "not_used": list(c.refused), **({"on": where} if is_split else {})}
                for where, table in self.tables.items()
                for c in table.choices
            ],
            "torch": torch.__version__,
            "threads": max(1, torch.get_num_threads() // self.engine.data_parallel),
        }


def inspect_model(
    model: ModelSettings = ModelSettings(),  # noqa: B008 - immutable
    engine: EngineSettings = EngineSettings(),  # noqa: B008 - immutable
    *,
    apart: bool = False,
) -> ModelSummary:
    """Opens a model, chooses its placement and sizes the engine, without reading weights.

    Args:
        apart: another process asks GPUs for their properties, so that this process does not initialize CUDA.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as `LLM` does.
    """
    model = _with_copies(model)
    path = DEMO_MODEL if str(model.model) == "demo" else model.model
    file = ModelFile.open(open_checkpoint(path))
    if model.init_state is not None:
        if not os.path.isfile(model.init_state):
            raise CheckpointError(
                f"{model.init_state} is not a file{looked_up(model.init_state)}; "
                "expected a state-tuning .pth or .safetensors",
                setting="init_state",
            )
        file.initial_states(model.init_state)
    apart = apart or engine.data_parallel > 1  # each GPU belongs to a process of its own then
    if apart and engine.device != "cpu" and (torch.version.cuda or torch.version.hip):
        placed = call_in_process(_place_path, path=file.checkpoint.path, model=model, engine=engine)
    else:
        placed = _place(file, model, engine)
    summary = ModelSummary(
        file=file,
        tokenizer=load_tokenizer(
            model.tokenizer,
            vocab_size=file.sizes["V"],
            model_path=file.checkpoint.path,
            parse_special_tokens=model.parse_special_tokens,
        ),
        placement=placed.placement,
        layer_ops=placed.layer_ops,
        memory=placed.memory,
        model=model,
        engine=engine,
    )
    if ChatSettings.of(model.chat) != ChatSettings():
        _ = summary.chat_format  # what a caller asks for must be there; what "auto" finds matters to conversations only
    return summary


def _with_copies(model: ModelSettings) -> ModelSettings:
    """The settings with the paths of copies, where they name small files in object stores."""
    if model.tokenizer is not None and is_remote(model.tokenizer):
        model = replace(model, tokenizer=str(download(model.tokenizer, "tokenizer")))
    if model.init_state is not None and is_remote(model.init_state):
        model = replace(model, init_state=download(str(model.init_state), "init_state"))
    return model


class _Placed(NamedTuple):
    """The part of a summary that depends on this machine's devices."""

    placement: Placement
    layer_ops: tuple[OpTable, ...]
    memory: MemoryPlan


def _place(file: ModelFile, model: ModelSettings, engine: EngineSettings) -> _Placed:
    if engine.data_parallel > 1:
        check_data_parallel(engine.data_parallel, engine.device, model.strategy)
    placement = place(
        device=engine.device,
        dtype=model.dtype,
        quantization=model.quantization,
        strategy=model.strategy,
        state_dtype=engine.state_dtype,
        stored_dtype=file.checkpoint.matrix_dtype,
        num_layers=file.sizes["L"],
    )
    ops = _layer_ops(file, placement, engine.backend)
    _check_deferred_writes(engine.state_write_interval, file, ops)
    sizes = engine.max_batch_size, engine.max_batch_tokens
    share = engine.memory_share / (engine.data_parallel if placement.device.type == "cpu" else 1)
    return _Placed(
        placement, ops, plan_memory(file, placement, *sizes, share, state_write_interval=engine.state_write_interval)
    )


def _place_path(path: Path, model: ModelSettings, engine: EngineSettings) -> _Placed:
    """`_place` for a process that has not opened the file."""
    return _place(ModelFile.open(open_checkpoint(path)), model, engine)


def _layer_ops(file: ModelFile, placement: Placement, backend: str) -> tuple[OpTable, ...]:
    """The op tables of each layer, of the head, and of sampling; a table is made once for each placement."""
    sampling = LayerPlacement(placement.device, placement.dtype)
    places = (*placement.of_layers(file.sizes["L"]), *([sampling] if placement.head_device else []))
    tables: dict[LayerPlacement, OpTable] = {}
    for one in dict.fromkeys(places):
        specs = dict.fromkeys((*file.ops_at(one, head_is_remote=placement.head_device is not None), *Sampler.OPS))
        tables[one] = resolve(specs, backend, one.device, one.dtype, file.sizes, placement.state_dtype)
    return tuple(tables[one] for one in places)


def _check_deferred_writes(interval: int, file: ModelFile, tables: Iterable[OpTable]) -> None:
    """Checks that state writes can be deferred, if they are.

    Raises:
        ConfigurationError: not for this version, or not by the backend that serves its recurrence.
    """
    if interval == 1:
        return
    file.ring_shape(interval)
    for table in tables:
        for choice in table.choices:
            if choice.op.startswith("wkv") and not table.implementations[choice.op].defers_writes:
                raise ConfigurationError(
                    f"got {interval}, expected 1: {choice.op} is served by the {choice.backend} backend, which writes "
                    "a state after every token",
                    setting="state_write_interval",
                )


def _in_words(count: int) -> str:
    """A number of weights such as "0.8M" or "1.5B"."""
    unit, letter = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / unit:.1f}{letter}"
