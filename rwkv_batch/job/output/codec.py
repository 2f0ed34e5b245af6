"""The compression of part files."""

from __future__ import annotations

from typing import NamedTuple

LEVELS: dict[str, range] = {
    "none": range(0),
    "snappy": range(0),
    "lz4": range(0),
    "gzip": range(1, 10),
    "brotli": range(12),
    "zstd": range(1, 23),
}
"""Codec of a Parquet file → its levels; none where the codec has no levels."""


class Codec(NamedTuple):
    """The compression of a Parquet file. A level of None is the codec's own choice."""

    name: str = "zstd"
    level: int | None = None

    @classmethod
    def of(cls, text: str) -> Codec:
        """Reads a codec, such as "zstd", or "zstd:12" with a level. Raises ValueError where there is none such."""
        name, has_level, level = text.partition(":")
        if name in LEVELS and not has_level:
            return cls(name)
        if name in LEVELS and level in map(str, LEVELS[name]):
            return cls(name, int(level))
        raise ValueError(f"got {text!r}, expected {EXPECTED}")


EXPECTED = (
    "none, snappy, lz4, gzip, brotli or zstd, with a level where wanted: gzip:1 to gzip:9, brotli:0 to brotli:11, "
    "zstd:1 to zstd:22"
)
"""What `Codec.of` reads, in words."""


DEFAULT = Codec()
"""The compression of parts, where the job does not say."""
