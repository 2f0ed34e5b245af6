"""Which checkpoints patterns name, their ids, and when a file that is being written is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite import models
from rwkv_batch.suite.models import Arrivals, Checkpoints, check_found, find_paths, natural, stamp_of


def write(folder: Path, *names: str) -> list[str]:
    """Files whose content is their name. Returns their paths."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [str(folder / name) for name in names]


def silent(_: str) -> None:
    pass


def test_patterns_name_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    final, *_ = write(tmp_path, "final.pth", "out/rwkv-10.pth", "out/rwkv-2.pth", "out/rwkv-2.5.txt", "out/rwkv-0.pth")
    found, missing = find_paths([final, f"{tmp_path}/out/rwkv-*.pth", f"{tmp_path}/*.pth", "demo", "hf://a/b/c.pth"])
    assert [os.path.basename(path) for path in found] == [
        "final.pth", "rwkv-0.pth", "rwkv-2.pth", "rwkv-10.pth", "demo", "c.pth",
    ]  # fmt: skip
    assert missing == []
    found, missing = find_paths([f"{tmp_path}/none.pth", f"{tmp_path}/*.st", str(tmp_path / "out")])
    assert found == [str(tmp_path / "out")]
    with pytest.raises(ConfigurationError) as caught:
        check_found(missing)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == missing
    check_found([])


def test_natural_order() -> None:
    assert sorted(["b10", "b9", "a", "b9-2", "b9-10", "3"], key=natural) == ["3", "a", "b9", "b9-2", "b9-10", "b10"]


def test_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "rwkv[1].pth", "rwkv1.pth")
    assert find_paths([path]) == ([path], [])


@pytest.mark.parametrize(
    "content",
    ["", "[", "null", "{}", "[1]", '[{"id": "x"}]', '[{"id": "x", "path": "x", "sha256": "x", "stamp": 1}]'],
)
def test_a_file_of_ids_in_another_form_counts_as_none(tmp_path: Path, content: str) -> None:
    (path,) = write(tmp_path, "rwkv-5.pth")
    (tmp_path / "models.json").write_text(content)
    assert Checkpoints(str(tmp_path), silent).open(path).id == "rwkv-5"


def test_ids_are_unique_and_stay(tmp_path: Path) -> None:
    paths = write(tmp_path, "a/rwkv-5.pth", "b/rwkv-5.pth", "c/b/rwkv-5.safetensors", "a/x y%.pth")
    known = Checkpoints(str(tmp_path), silent)
    first = [known.open(path) for path in paths]
    assert [one.id for one in first] == ["rwkv-5", "b-rwkv-5", "c-b-rwkv-5", "x-y-"]
    known.save()
    again = Checkpoints(str(tmp_path), silent)
    assert [again.open(path) for path in reversed(paths)] == first[::-1]
    (changed,) = write(tmp_path, "a/rwkv-5.pth")
    Path(changed).write_text("trained further")
    other = again.open(changed)
    assert (other.id, other.sha256 == first[0].sha256) == ("rwkv-5", False)


def test_a_moved_checkpoint_keeps_its_id(tmp_path: Path) -> None:
    (path,) = write(tmp_path, "a/rwkv-5.pth")
    known = Checkpoints(str(tmp_path), silent)
    before = known.open(path)
    (copy,) = write(tmp_path, "b/rwkv-5.pth")
    Path(copy).write_bytes(Path(path).read_bytes())
    assert known.open(copy).id == "b-rwkv-5"
    os.rename(path, tmp_path / "rwkv-5.pth")
    moved = known.open(str(tmp_path / "rwkv-5.pth"))
    assert (moved.id, moved.sha256) == ("rwkv-5", before.sha256)


def test_checksums_are_of_the_content_and_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    (path,) = write(tmp_path, "rwkv-5.pth")
    said: list[str] = []
    known = Checkpoints(str(tmp_path), said.append)
    assert known.open(path).sha256 == hashlib.sha256(b"rwkv-5.pth").hexdigest()
    known.save()
    monkeypatch.setattr(models, "_sha256", None)
    assert Checkpoints(str(tmp_path), said.append).open(path).stamp == stamp_of(path)
    assert said == [f"{path}: computing the checksum of its weights"]


def test_a_damaged_list_of_checkpoints_is_made_again(tmp_path: Path) -> None:
    (path,) = write(tmp_path, "rwkv-5.pth")
    (tmp_path / "models.json").write_text("{")
    known = Checkpoints(str(tmp_path), silent)
    known.open(path)
    known.save()
    assert [one["id"] for one in json.loads((tmp_path / "models.json").read_text())] == ["rwkv-5"]


def test_a_file_is_taken_when_it_is_still_and_opens(tmp_path: Path) -> None:
    said: list[str] = []
    arrivals = Arrivals(1000.0, said.append)
    path = tmp_path / "rwkv-5.pth"
    (tmp_path / "torch.pth").write_bytes(b"")
    torch.save({"emb.weight": torch.ones(64, 4)}, path)
    whole = path.read_bytes()

    def look() -> bool:
        return arrivals.complete([str(path)]) == [str(path)]

    path.write_bytes(whole[:300])
    assert not look()  # it is new
    path.write_bytes(whole[:600])
    assert not look()  # it has grown
    assert said == []
    assert not look()  # it is still, but half
    assert not look()
    assert len(said) == 1
    assert "not taken yet" in said[0]
    path.write_bytes(whole)
    assert not look()
    assert look()
    assert look()
    path.unlink()
    assert not look()


def test_an_old_file_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rwkv-5.pth"
    torch.save({"emb.weight": torch.ones(64, 4)}, path)
    assert Arrivals(60.0, silent).complete([str(path)]) == []
    os.utime(path, (1e9, 1e9))
    assert Arrivals(60.0, silent).complete([str(path), "demo"]) == [str(path), "demo"]
