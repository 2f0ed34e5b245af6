"""Answers that an evaluation keeps: tables in the file of the lm-evaluation-harness's option `--use_cache`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..dtypes import dtype_name

if TYPE_CHECKING:
    from ..llm import LLM, ModelSummary

_FORMAT = 2
"""Version of the kept answers; to be increased when a change gives the same request another answer."""


def digest(parts: Any) -> str:
    """A hash of plain JSON: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


RESOLVED = {"model", "tokenizer", "dtype", "quantization", "strategy", "init_state", "state_dtype", "device", "chat"}
"""Settings of `LLM` that the identity names by their effect: fingerprints, the layers, the chat format of a request."""
HARMLESS = {
    "backend",
    "memory_share",
    "max_batch_size",
    "max_batch_tokens",
    "admission_delay_ms",
    "prefix_sharing",
    "prefix_host_gib",
    "constraint_timeout",
    "data_parallel",
}
"""Settings of `LLM` that change the rounding of the last bits at most."""


def model_identity(summary: ModelSummary) -> dict[str, Any]:
    """Every property of a model that changes its answers, in plain JSON.

    Settings that lead to the same dtypes and weight formats are the same identity, however they are written. Devices
    are left out, as are the settings in `HARMLESS`.
    """
    assert summary.tokenizer is not None
    layers = summary.placement.of_layers(summary.file.sizes["L"])
    settings = {
        field.name: getattr(one, field.name) for one in (summary.model, summary.engine) for field in fields(one)
    }
    return {
        **{name: value for name, value in settings.items() if name not in RESOLVED | HARMLESS},
        "fingerprint": summary.fingerprint,
        "tokenizer": summary.tokenizer.fingerprint,
        "layers": [f"{dtype_name(layer.dtype)} {layer.quantization}" for layer in layers],
        "state_dtype": dtype_name(summary.placement.state_dtype),
    }


def placement_in_words(llm: LLM) -> dict[str, str | None]:
    """Dtypes, weight formats and devices of the layers and the head: each named once, in the order of the layers."""
    layers = llm.summary.placement.of_layers(llm.summary.file.sizes["L"])
    formats = list(dict.fromkeys(layer.quantization for layer in layers))
    num_engines = llm.summary.engine.data_parallel
    return {
        "model_dtype": ", ".join(dict.fromkeys(dtype_name(layer.dtype) for layer in layers)),
        "model_device": ", ".join(dict.fromkeys(str(layer.device) for layer in layers))
        + (f", the first of {num_engines} engines" if num_engines > 1 else ""),
        "quantization": None if formats == [None] else ", ".join(name or "none" for name in formats),
    }


class AnswerTables:
    """The tables of one model in the harness's file, `CachingLM.dbdict`.

    The harness's keys depend on the request alone. A table for each model, set of conventions and chat format prevents
    that an answer of another is used. The harness keeps no sampled completions; these have a table of their own.

    Args:
        database: the harness's `SqliteDict`.
        name: what the names of the tables begin with.
        identity: everything but the request and the chat format that an answer depends on, in plain JSON.
    """

    def __init__(self, database: Any, name: str, identity: Mapping[str, Any]) -> None:
        self._database = database
        self._name = name
        self._identity = identity
        self._chat: Any = None
        self._use()

    def use_chat(self, chat: Any) -> None:
        """Changes to the tables of prompts in a chat format.

        Args:
            chat: everything of the chat format that an answer depends on, in plain JSON.
        """
        if chat != self._chat:
            self._chat = chat
            self._use()

    def _use(self) -> None:
        identity = digest({"format": _FORMAT, **self._identity, "chat": self._chat})
        self._database.tablename = f"{self._name}-{identity}"
        self._samples = f"{self._name}-samples-{identity}"
        for table in (self._database.tablename, self._samples):
            self._database.conn.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)')
        self._database.conn.commit()

    def sample(self, key: str) -> str | None:
        """The completion that is kept under a key; None where there is none."""
        found = self._database.conn.select_one(f'SELECT value FROM "{self._samples}" WHERE key = ?', (key,))
        return None if found is None else str(found[0])

    def keep_sample(self, key: str, text: str) -> None:
        """Keeps a completion. It is on the disk a moment later."""
        self._database.conn.execute(f'REPLACE INTO "{self._samples}" (key, value) VALUES (?, ?)', (key, text))
