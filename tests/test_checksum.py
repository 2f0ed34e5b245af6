"""Checksums of files."""

from __future__ import annotations

import hashlib
from io import BytesIO

from rwkv_batch.checksum import sha256_of


def test_files_count_one_after_the_other_from_their_positions_on() -> None:
    first, second = BytesIO(b"-" + b"a" * (9 << 20)), BytesIO(b"b")
    first.seek(1)
    assert sha256_of(first, second) == hashlib.sha256(b"a" * (9 << 20) + b"b").hexdigest()
    assert sha256_of() == hashlib.sha256().hexdigest()
