"""The detokenizer: token ids to text, of many completions in one call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..cpu_kernels.build import unavailable
from ..cpu_kernels.text import TokenTable, decode


class Detokenizer:
    """Converts token ids to text. Immutable: threads may share a detokenizer.

    Native code decodes on a machine with a compiler, Python on others. Their results are equal.

    Args:
        token_bytes: bytes by id. None stands for an id without bytes; ids beyond the end have none.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._token_bytes = token_bytes
        self._table = None if unavailable() else TokenTable(token_bytes)

    def utf8(self, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode n texts to valid UTF-8: other bytes become U+FFFD, as in `bytes.decode("utf-8", "replace")`.

        Args:
            token_ids: [N] integers, the tokens of all texts one after the other.
            offsets: [n + 1] integers: text i has the tokens from offsets[i] to offsets[i + 1] - 1.
            limits: [n] integers: how many bytes of text i are decoded, before the replacement; -1 is all.

        Returns:
            uint8 data, and offsets [n + 1] int64: text i is data[offsets[i]:offsets[i + 1]].

        Raises:
            ValueError: the number of offsets is not n + 1, or the offsets descend or are out of range.
        """
        ids = np.ascontiguousarray(token_ids, dtype=np.int32)
        starts = np.ascontiguousarray(offsets, dtype=np.int64)
        cuts = np.ascontiguousarray(limits, dtype=np.int64)
        if len(starts) != len(cuts) + 1:
            raise ValueError(f"offsets: got {len(starts)} for {len(cuts)} limits, expected {len(cuts) + 1}")
        if starts[0] < 0 or starts[-1] > len(ids) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"offsets: got {starts.tolist()[:8]}…, expected ascending ones from 0 to {len(ids)}")
        if self._table is not None:
            return decode(self._table, ids, starts, cuts)
        texts = [self._decode(ids[a:b], limit) for (a, b), limit in zip(pairwise(starts), cuts.tolist(), strict=True)]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return np.frombuffer(b"".join(texts), np.uint8), ends

    def texts(self, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray) -> list[str]:
        """`utf8`, as strings."""
        data, ends = self.utf8(token_ids, offsets, limits)
        utf8 = data.tobytes()
        return [utf8[a:b].decode("utf-8") for a, b in pairwise(ends.tolist())]

    def _decode(self, token_ids: np.ndarray, limit: int) -> bytes:
        table = self._token_bytes
        data = b"".join([table[i] or b"" for i in token_ids.tolist() if 0 <= i < len(table)])
        return data[: None if limit < 0 else limit].decode("utf-8", errors="replace").encode("utf-8")
