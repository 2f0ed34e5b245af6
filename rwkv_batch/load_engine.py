"""Loading: a summary becomes a model with the engine that runs it, in this process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .engine.engine import Engine, EngineLimits
from .model_summary import ModelSummary
from .models.model import Model
from .text.stop_strings import StopMatcher
from .threads import limit_threads


def load_engine(summary: ModelSummary) -> tuple[Model, Engine]:
    """Loads a model that has been inspected, and makes its engine.

    Raises:
        CheckpointError, CapacityError: as `LLM` does.
    """
    file, plan, engine, tokenizer = summary.file, summary.memory, summary.engine, summary.tokenizer
    if any(place.device.type == "cpu" for place in summary.placement.of_layers(file.sizes["L"])):
        limit_threads()
    model = Model(file, summary.placement, summary.layer_ops, summary.model.ln_x_eps, engine.batch_invariant)
    return model, Engine(
        model,
        summary.vocabulary,
        EngineLimits(
            plan.max_batch_size,
            plan.max_batch_tokens,
            engine.prefix_host_bytes,
            engine.admission_delay_ms / 1000,
            engine.state_write_interval,
        ),
        init_state=None if summary.model.init_state is None else Path(summary.model.init_state),
        prefix_sharing=engine.prefix_sharing,
        new_stop_matcher=partial(StopMatcher, tokenizer.token_bytes) if tokenizer else None,
        logprobs_mode=engine.logprobs_mode,
    )
