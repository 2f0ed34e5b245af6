"""The specializations that kernel modules list: compilers are judged by them."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from rwkv_batch.checks.calls import RECURRENCES
from rwkv_batch.triton_kernels import linear, mm8, project, w8a8
from rwkv_batch.triton_kernels.tiles import Tile

KERNELS = Path(__file__).parents[2] / "triton_kernels"
MODULES = sorted(path.stem for path in KERNELS.glob("*.py") if "def specializations(" in path.read_text())


def specializations(module):
    return import_module(f"rwkv_batch.triton_kernels.{module}").specializations()


@pytest.mark.parametrize("module", MODULES)
def test_each_argument_of_a_kernel_is_named_once(module):
    for spec in specializations(module):
        assert Counter([*spec.signature, *spec.constexprs]) == Counter(spec.kernel.arg_names), spec.label


@pytest.mark.parametrize("module", MODULES)
def test_each_kernel_of_a_module_has_one_specialization_that_probes_a_compiler(module):
    specs = specializations(module)
    probes = Counter(spec.kernel.__name__ for spec in specs if spec.is_probe)
    assert probes == dict.fromkeys((spec.kernel.__name__ for spec in specs), 1)


def types_of(specs, argument):
    """Triton's names of the types that an argument has."""
    return {spec.signature[argument].removeprefix("*") for spec in specs if argument in spec.signature}


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        ("deep_embed", "p_normed"),
        ("linear", "p_x"),
        ("low_rank", "p_x"),
        ("project", "p_x"),
        ("mm8", "p_x"),
        ("mm8", "p_inputs"),
        ("score", "p_x"),
        ("shift_lerp", "p_x"),
        ("w8a8", "p_y"),
        *((op, f"p_{RECURRENCES[op].vectors[0]}") for op in RECURRENCES if op in MODULES),
    ],
)
def test_each_dtype_of_a_model_is_there(module, argument):
    assert types_of(specializations(module), argument) == {"fp32", "bf16", "fp16"}


@pytest.mark.parametrize("module", [op for op in RECURRENCES if op in MODULES and RECURRENCES[op].has_half_state])
def test_each_dtype_of_a_state_is_there(module):
    assert types_of(specializations(module), "p_state") == {"fp32", "fp16"}


def launched_tiles(module, argument, rows):
    return {
        (
            spec.signature[argument].removeprefix("*"),
            Tile._make(
                (*(spec.constexprs[name] for name in ("BLOCK_M", rows, "BLOCK_K")), spec.num_warps, spec.num_stages)
            ),
        )
        for spec in specializations(module)
        if argument in spec.signature and "BLOCK_K" in spec.constexprs
    }


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_each_tile_that_a_launch_may_choose_is_there(name):
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    fused = linear.FUSED if dtype == torch.bfloat16 else ()
    chosen = {choice.tile for choice in (*linear.CHOICES[dtype], *fused, *linear.FIXED[dtype]) if choice.tile}
    assert {(name, tile) for tile in chosen} <= launched_tiles("linear", "p_x", "BLOCK_N")
    chosen = {choice.tile for choice in project.CHOICES if choice.tile and dtype == torch.bfloat16}
    assert {(name, tile) for tile in chosen} <= launched_tiles("project", "p_x", "BLOCK_N")
    assert {(name, choice.tile) for choice in mm8.CHOICES[dtype]} <= launched_tiles("mm8", "p_inputs", "BLOCK_N")
    assert {tile for _, tile in w8a8.CHOICES} <= {tile for _, tile in launched_tiles("w8a8", "p_x", "BLOCK_N")}


def test_each_activation_is_there():
    names = {spec.constexprs["ACTIVATION"] for spec in specializations("linear")}
    assert names == {None, "sigmoid", "squared_relu"}
    products = [spec for spec in specializations("w8a8") if "ACTIVATION" in spec.constexprs]
    assert names == {spec.constexprs["ACTIVATION"] for spec in products}


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_decode_step_and_a_prompt_that_differ_in_nothing_else_are_there(name):
    labels = {spec.label for spec in specializations("shift_lerp") if spec.signature["p_x"] == f"*{name}"}
    assert {label.replace("decode", "prefill") for label in labels if "decode" in label} & labels
