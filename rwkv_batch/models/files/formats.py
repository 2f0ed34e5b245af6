"""The formats of checkpoint files. To add one, write a function that reads it and add an entry to `FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .canonical import plain_tensors, read_canonical_safetensors
from .chatrwkv import is_converted, restore_converted
from .huggingface import read_folder
from .stored import Contents
from .weight_files import read_pth


@dataclass(frozen=True)
class Source:
    """A local file or folder that holds a checkpoint."""

    path: Path

    @cached_property
    def pth_entries(self) -> dict[str, Any]:
        """The entries of a PyTorch file, by name; raises CheckpointError if the file is none."""
        return read_pth(self.path)


@dataclass(frozen=True)
class CheckpointFormat:
    """A format of checkpoint files.

    Args:
        name: stands in reports as the format of a model.
        recognizes: tells whether a source has this format.
        read: maps the tensors of such a source to canonical names, without reading the data of any tensor; raises
            CheckpointError with the reason if the source is damaged.
    """

    name: str
    recognizes: Callable[[Source], bool]
    read: Callable[[Source], Contents]


FORMATS = (
    CheckpointFormat("huggingface", lambda source: os.path.isdir(source.path), lambda source: read_folder(source.path)),
    CheckpointFormat(
        "safetensors",
        lambda source: source.path.suffix == ".safetensors",
        lambda source: read_canonical_safetensors(source.path),
    ),
    CheckpointFormat(
        "converted",
        lambda source: is_converted(source.pth_entries),
        lambda source: restore_converted(source.path, source.pth_entries),
    ),
    CheckpointFormat(
        "pth",
        lambda source: True,
        lambda source: plain_tensors(source.path, source.pth_entries),
    ),
)
"""In the order in which they are tried: the first format that recognizes a source reads it. "converted" and "pth" open
the source as a PyTorch file, so formats that are recognized by other means come before them."""


def read_checkpoint(path: Path) -> tuple[str, Contents]:
    """The name of a checkpoint's format, and the contents.

    Raises:
        CheckpointError: the message says what was found, what was expected and what to do.
    """
    source = Source(path)
    checkpoint_format = next(candidate for candidate in FORMATS if candidate.recognizes(source))
    return checkpoint_format.name, checkpoint_format.read(source)
