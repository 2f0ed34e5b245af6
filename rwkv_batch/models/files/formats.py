"""The formats of checkpoint files. To add one, write a function that reads it and add an entry to `FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from .canonical import plain_tensors, safetensors_contents
from .chatrwkv import is_converted, restore_converted
from .huggingface import folder_around, read_folder
from .stored import Contents
from .web_rwkv import is_web_rwkv, read_web_rwkv
from .weight_files import holds_safetensors, read_pth, read_safetensors


@dataclass(frozen=True)
class Source:
    """A local file or folder that holds a checkpoint."""

    path: Path

    @cached_property
    def folder(self) -> Path | None:
        """The folder in Hugging Face layout that the path is or is a weight file of; None where there is none."""
        if os.path.isdir(self.path):  # False, where Path.is_dir raises for a path that no file can have
            return self.path
        return folder_around(self.path, self.safetensors[0]) if self.holds_safetensors else None

    @cached_property
    def holds_safetensors(self) -> bool:
        """Whether the file has the format of .safetensors; raises CheckpointError if it cannot be read."""
        return holds_safetensors(self.path)

    @cached_property
    def safetensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and the metadata of a safetensors file; raises CheckpointError if the file is none."""
        return read_safetensors(self.path)

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


def _read_folder(source: Source) -> Contents:
    assert source.folder is not None
    return read_folder(source.folder)


FORMATS = (
    CheckpointFormat("huggingface", lambda source: source.folder is not None, _read_folder),
    CheckpointFormat(
        "web-rwkv",
        lambda source: source.holds_safetensors and is_web_rwkv(source.path, *source.safetensors),
        lambda source: read_web_rwkv(source.path, source.safetensors[0]),
    ),
    CheckpointFormat(
        "safetensors",
        lambda source: source.holds_safetensors,
        lambda source: safetensors_contents(source.path, *source.safetensors),
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
