"""Faults of compiled kernels are found: each test puts one fault into a compilation without any."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from kernels.aot_limits import LOOPS, faults, twin_faults
from kernels.aot_worker import JUMP_SASS, SASS, _count

MATRIX = ["wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"]
PRODUCT = {
    "module": "mm8",
    "kernel": "mm8_kernel",
    "label": "a product",
    "shared": 1000,
    "spilled": 0,
    "sums_before_loops": 0,
    "matrix": MATRIX,
    "signature": {"p_inputs": "*bf16"},
    "constexprs": {"BLOCK_N": 64},
    "num_warps": 4,
}
RECURRENCE = {
    "module": "wkv7",
    "kernel": "wkv7_kernel",
    "label": "a recurrence",
    "shared": 0,
    "spilled": 0,
    "sums_before_loops": 0,
    "matrix": [],
    "signature": {"p_state": "*fp32"},
    "constexprs": {"N": 64},
    "num_warps": 2,
    "instructions": {"LDG.E.128": 16, "STG.E.128": 16, "LDG.E.U16": 8},
    "loops": [2, LOOPS["wkv7", "fp32"][0]],
}
NO_LIMIT = {"module": "wkv4", "kernel": "wkv4_kernel", "signature": {"p_state": "*fp16"}, "constexprs": {"BLOCK": 64}}


@pytest.mark.parametrize(
    ("good", "changes", "reason"),
    [
        (PRODUCT, {}, None),
        (PRODUCT, {"error": "it does not compile"}, "it does not compile"),
        (PRODUCT, {"shared": 233_000}, "233000 bytes of shared memory"),
        (PRODUCT, {"spilled": 72}, "72 bytes of local memory"),
        (PRODUCT, {"sums_before_loops": 1}, "1 sums of floats before a loop"),
        (PRODUCT, {"matrix": []}, "a product of bf16"),
        (PRODUCT, {"matrix": ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"]}, "a product of bf16"),
        (PRODUCT, {"matrix": [*MATRIX, "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32"]}, "bf16"),
        (PRODUCT, {"signature": {"p_inputs": "*fp32"}, "matrix": []}, None),
        (PRODUCT, {"signature": {"p_inputs": "*fp32"}, "matrix": ["tcgen05.mma.kind::tf32"]}, "full precision"),
        (PRODUCT, {"kernel": "prepare_kernel"}, "expected none"),
        (RECURRENCE, {}, None),
        (RECURRENCE, {"spilled": 8}, "8 bytes of local memory"),
        (RECURRENCE, {"instructions": {"LDG.E.128": 15, "LDG.E.64": 2, "STG.E.128": 16}}, r"15 of LDG.*expected 16"),
        (RECURRENCE, {"instructions": {"LDG.E.128": 16, "STG.E.64": 32}}, r"0 of STG.*expected 16"),
        (RECURRENCE, {"loops": [2, LOOPS["wkv7", "fp32"][0] + 1]}, "instructions a token, expected at most"),
        (RECURRENCE, NO_LIMIT, r"a token, expected a limit for \('wkv4', 'fp16'\) in LOOPS"),
    ],
)
def test_a_fault_is_found(good, changes, reason):
    found = faults(good | changes, "sm_90", "3.9.0")
    if reason is None:
        assert found == []
    else:
        (fault,) = found
        assert re.search(reason, fault), fault


def shift(step, **instructions):
    constexprs = {"NUM_MIXES": 6, "BLOCK": 1024}
    return {
        "kernel": "shift_lerp_kernel",
        "label": f"mix {step}",
        "num_warps": 4,
        "constexprs": constexprs,
        "instructions": instructions,
    }


def test_a_norm_that_is_computed_in_another_way_for_prompts_is_found():
    norm, follows = {"FADD": 29, "FMUL": 10, "FFMA": 17}, {"FADD": 8, "FFMA": 48}
    one = {name: norm[name] + follows.get(name, 0) for name in norm}
    two = {name: count + norm[name] for name, count in one.items()}
    assert twin_faults([shift("decode", **one), shift("prefill", **two)]) == []
    contracted = two | {"FMUL": two["FMUL"] - 1, "FADD": two["FADD"] - 1, "FFMA": two["FFMA"] + 1}
    found = twin_faults([shift("decode", **one), shift("prefill", **contracted)])
    assert [fault.split(" of ")[1].split(",")[0] for fault in found] == ["FADD", "FMUL", "FFMA"]


SASS_TEXT = """\
.text.kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
.L_x_1:
        /*0010*/                   FADD2 R30, R28.F32, R30.F32 ;
        /*0020*/                   FMUL2 R24, R24.F32x2.HI_LO, R0.F32 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/                   EXIT ;
"""


def test_instructions_and_loops_are_counted():
    found = _count(SASS_TEXT, SASS, JUMP_SASS)
    assert found["instructions"] == {"LDG.E.128": 1, "FADD": 1, "FMUL2": 1, "BRA": 2, "EXIT": 1}
    assert found["loops"] == [4]
