"""The compression of part files."""

from __future__ import annotations

from typing import NamedTuple

LEVELS = {"none": None, "snappy": None, "lz4": None, "gzip": (1, 9), "brotli": (0, 11), "zstd": (1, 22)}
"""Codec of a Parquet file → its lowest and its highest level; None where it has no levels."""


class Codec(NamedTuple):
    """The compression of a Parquet file. A level of None is the codec's own choice."""

    name: str = "zstd"
    level: int | None = None

    @classmethod
    def of(cls, text: str) -> Codec:
        """Reads a codec, such as "zstd", or "zstd:12" with a level. Raises ValueError where there is none such."""
        name, has_level, level = text.partition(":")
        levels = LEVELS[name] if name in LEVELS else ()
        if levels == () or (has_level and levels is None):
            raise ValueError(f"got {text!r}, expected {EXPECTED}")
        if not has_level:
            return cls(name)
        if not level.isascii() or not level.isdigit() or not levels or not levels[0] <= int(level) <= levels[1]:
            raise ValueError(f"got {text!r}, expected {EXPECTED}")
        return cls(name, int(level))


EXPECTED = (
    "none, snappy, lz4, gzip, brotli or zstd, with a level where wanted: gzip:1 to gzip:9, brotli:0 to brotli:11, "
    "zstd:1 to zstd:22"
)
"""What `Codec.of` reads, in words."""
