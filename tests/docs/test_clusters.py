"""The page about clusters: its scripts and manifests run in stand-ins of Slurm and Kubernetes, and make every part."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from job import fake_llm

from docs.pages import ROOT, blocks
from rwkv_batch import run
from rwkv_batch.job.load import load_job
from rwkv_batch.run import EXIT_CODES

PAGE = ROOT / "docs" / "how-to" / "clusters.md"
FILES = {block.title: block.text for block in blocks(PAGE) if block.title}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a job of twenty parts for the fake engine; no scheduler's variables are set."""
    monkeypatch.setitem(sys.modules, "rwkv_batch.llm", fake_llm)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "JOB_COMPLETION_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(20)]}), "prompts.parquet")
    job = {"model": {"path": "demo"}, "input": {"path": "prompts.parquet"}, "output": {"path": "out"}}
    job["output"]["rows_per_part"] = 1  # type: ignore[assignment]
    Path("job.yaml").write_text(yaml.safe_dump(job))
    return tmp_path


@pytest.fixture
def script(folder: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs a script of the page. `rwkv-batch` only says with what it was called, and ends with a code."""
    programs = folder / "bin"
    programs.mkdir()
    stand_ins = {
        "rwkv-batch": 'echo "rwkv-batch $*" >> calls\nexit $END_WITH',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nfor i in $(seq 0 $((${SLURM_NTASKS:-1} - 1))); do\n'
        '  SLURM_PROCID=$i "$@"\ndone',
        "scontrol": 'echo "scontrol $*" >> calls',
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def act(title: str, code: int = 0, **variables: object) -> tuple[int, list[str]]:
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "END_WITH": str(code),
            **{name: str(value) for name, value in variables.items()},
        }
        done = subprocess.run(["bash", "-eu", "-c", f"set +e\n{FILES[title]}"], env=environment, timeout=60)
        return done.returncode, [line.strip() for line in Path("calls").read_text().splitlines()]

    return act


def made(commands: list[str], variables: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs `rwkv-batch run …` commands, each with its variables. Returns how many parts there are after each."""
    counts = []
    for command, some in zip(commands, variables, strict=True):
        with monkeypatch.context() as patch:
            for name, value in some.items():
                patch.setenv(name, value)
            words = shlex.split(command)
            assert words[:2] == ["rwkv-batch", "run"] and run.main(words[2:]) == 0
        counts.append(len(list(Path("out").iterdir())))
    return counts


def test_an_array_of_slurm(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"MIN": "0", "MAX": "7", "COUNT": "8"}
    tasks = [
        {f"SLURM_ARRAY_TASK_{name}": value for name, value in {**bounds, "ID": str(index)}.items()}
        for index in range(8)
    ]
    assert "#SBATCH --array=0-7\n" in FILES["array.sbatch"]
    code, calls = script("array.sbatch", SLURM_CPUS_PER_TASK=8, **tasks[3])
    assert code == 0
    assert made(calls * 8, tasks, monkeypatch) == [3, 6, 9, 12, 14, 16, 18, 20]
    code, calls = script("array.sbatch", 75, SLURM_CPUS_PER_TASK=8, SLURM_ARRAY_JOB_ID=77, **tasks[3])
    assert code == 75 and calls[-1] == "scontrol requeue 77_3"


def test_whole_nodes_of_slurm(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n" in FILES["nodes.sbatch"]
    variables = {"SLURM_NTASKS": 4, "SLURM_JOB_ID": 78}
    code, calls = script("nodes.sbatch", **variables)
    assert code == 0
    assert made(calls, [{}] * 4, monkeypatch) == [5, 10, 15, 20]
    code, calls = script("nodes.sbatch", 75, **variables)
    assert code == 75 and calls[-1] == "scontrol requeue 78"


def test_an_indexed_job_of_kubernetes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, job = yaml.safe_load_all(FILES["eval.k8s.yaml"])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    Path("eval.yaml").write_text(config["data"]["job.yaml"])
    assert load_job("eval.yaml").output.path == "s3://data/out/eval"
    command = container["command"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["job"]["configMap"]["name"] == config["metadata"]["name"]
    assert command[2] == f"{mounts['job']}/job.yaml"
    assert load_job("eval.yaml").model.path.startswith(f"{mounts['models']}/")
    indexes = [{"JOB_COMPLETION_INDEX": str(index)} for index in range(job["spec"]["completions"])]
    line = shlex.join(["job.yaml" if word == "/job/job.yaml" else word for word in command])
    assert made([line] * len(indexes), indexes, monkeypatch) == [3, 6, 9, 12, 14, 16, 18, 20]


def test_kubernetes_is_told_what_exit_codes_mean() -> None:
    _, job = yaml.safe_load_all(FILES["eval.k8s.yaml"])
    spec = job["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a policy of failures demands it
    actions: dict[str, list[int]] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
            actions[rule["action"]] = rule["onExitCodes"]["values"]
    assert actions == {"Ignore": [75], "FailJob": [2, 4]}
    text = PAGE.read_text(encoding="utf-8").partition("## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert {int(code) for cell in cells for code in cell.split(",")} == EXIT_CODES.keys() - {130}


def test_torchrun_names_the_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [line for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("$ torchrun")]
    assert "--nnodes 4 --nproc-per-node 1 " in line
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "4"} for rank in range(4)]
    assert made([line[line.index("rwkv-batch") :]] * 4, ranks, monkeypatch) == [5, 10, 15, 20]


def test_the_settings_of_workers_are_those_of_a_job(folder: Path) -> None:
    lines = [line for block in blocks(PAGE) for line in block.text.splitlines() if "rwkv-batch run job.yaml" in line]
    settings = [line.partition(" -o ")[2] for line in lines if " -o " in line]
    assert settings == ["run.workers=4"]
    job = load_job("job.yaml", [*settings, "run.devices=[cuda:6, cuda:7]", "engine.memory_share=0.45"])
    assert (job.run.workers, job.run.devices) == (4, ["cuda:6", "cuda:7"])
