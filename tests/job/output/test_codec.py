"""The compression of parts: its name and level in a job file, and what the parts then have."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.output.codec import LEVELS, Codec

from ..conftest import Job


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("zstd", Codec("zstd")),
        ("zstd:22", Codec("zstd", 22)),
        ("brotli:0", Codec("brotli", 0)),
        ("none", Codec("none")),
    ],
)
def test_a_codec_is_a_name_and_perhaps_a_level(text: str, codec: Codec) -> None:
    assert Codec.of(text) == codec


@pytest.mark.parametrize(
    "text", ["", "ZSTD", "zip", "zstd:", "zstd:0", "zstd:23", "gzip:-1", "gzip:1.5", "gzip:²", "none:1", "snappy:3"]
)
def test_other_names_and_levels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected none, snappy, .* zstd:22"):
        Codec.of(text)


@pytest.mark.parametrize("name", LEVELS)
def test_a_job_writes_its_parts_with_the_codec_and_the_level(job: Job, name: str) -> None:
    job.input(prompt=[f"{i} " + "the same words again and again " * 20 for i in range(30)])
    expected = job.table() if job.run() == 0 else None
    sizes = set()
    levels = [min(LEVELS[name]), max(LEVELS[name])] if LEVELS[name] else [None]
    for level in levels:
        job.set(output__path=str(job.folder / f"{name}-{level}"))
        assert job.set(output__compression=name if level is None else f"{name}:{level}").run() == 0
        found = pq.ParquetFile(next(job.output.iterdir()))
        kinds = {found.metadata.row_group(0).column(i).compression for i in range(found.metadata.num_columns)}
        assert kinds == {"UNCOMPRESSED" if name == "none" else name.upper()}
        assert job.table().equals(expected)
        sizes.add(sum(len(part) for part in job.parts().values()))
    assert len(sizes) == len(levels)  # of two levels, one packs better


def test_the_codec_and_the_row_groups_may_change_when_a_job_goes_on(job: Job, served: list[int]) -> None:
    assert job.run() == 0
    sorted(job.output.iterdir())[1].unlink()
    assert job.set(output__compression="gzip:9", output__row_group_rows=3).run() == 0
    groups = [pq.ParquetFile(path).metadata.num_row_groups for path in sorted(job.output.iterdir())]
    assert groups == [1, 4, 1]


def test_a_wrong_codec_is_refused_before_the_model_loads(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.set(output__compression="zstd:99").run() == 2
    assert "output.compression: got 'zstd:99', expected none, snappy" in capsys.readouterr().err
