"""Records of parts: what is noticed, and that a kill between a record and its part does no harm."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa

from rwkv_batch.job.output.records import PartRecords
from rwkv_batch.job.output.storage import LocalStorage

PART = "out/part-00000-of-00001.parquet"


def fault(records: PartRecords, data: bytes, thorough: bool = True) -> str | None:
    return records.fault(PART, len(data), io.BytesIO(data) if thorough else None)


def test_another_size_or_content_is_noticed(tmp_path: Path) -> None:
    records = PartRecords(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "parts"))
    assert fault(records, b"of an earlier version, which kept no records") is None
    records.add(PART, pa.py_buffer(b"first"))
    assert fault(records, b"first") is None
    assert fault(records, b"firs") == "it has 4 bytes, it had 5 when it was published"
    assert fault(records, b"fjrst", thorough=False) is None
    assert fault(records, b"fjrst") == "its checksum is not the one with which it was published"
    assert records.fault("out/part-00001-of-00001.parquet", 1, None) is None


def test_the_part_before_stays_valid_until_it_is_replaced(tmp_path: Path) -> None:
    records = PartRecords(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "parts"))
    for data in (b"first", b"other one", b"first"):
        records.add(PART, pa.py_buffer(data))
    assert fault(records, b"first") is None and fault(records, b"other one") is None
    (record,) = (tmp_path / "parts").iterdir()
    assert record.read_text().count("sha256") == 2


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    records = PartRecords(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "parts"))
    records.add(PART, pa.py_buffer(b"first"))
    (record,) = (tmp_path / "parts").iterdir()
    for content in (b"", b"[", b"{}", b'["x"]', b"\xff", b'[{"bytes": 5}]'):
        record.write_bytes(content)
        assert fault(records, b"other") is None
