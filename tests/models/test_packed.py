"""Packed matrices give the products of dense ones."""

import pytest
import torch
from tolerances import assert_close

from rwkv_batch.models.linear import DenseLinear, Mm8Linear
from rwkv_batch.models.mm8 import quantize_mm8
from rwkv_batch.models.packed import PACKED_DTYPES, PackedLinear, _can_pack, pack


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@pytest.mark.parametrize(("rows", "c_out", "c_in"), [(1, 97, 64), (2, 300, 130), (37, 64, 257), (600, 33, 40)])
def test_products(dtype, rows, c_out, c_in):
    if not _can_pack(dtype):
        pytest.skip(f"this torch cannot pack {dtype}")
    dense = DenseLinear(torch.randn(c_out, c_in).to(dtype))
    packed = pack(dense)
    assert isinstance(packed, PackedLinear)
    x = torch.randn(rows, c_in).to(dtype)
    exact = x.double() @ dense.weight.double().T
    assert_close("packed", packed(x), exact, dtype)
    assert packed(x).dtype == dtype
    assert (packed.out_features, packed.in_features, packed.nbytes) == (c_out, c_in, dense.nbytes)


def test_what_has_no_packed_form_stays_as_it_is():
    half = DenseLinear(torch.randn(4, 4).half())
    int8 = Mm8Linear(quantize_mm8(torch.randn(8, 8)))
    assert pack(half) is half
    assert pack(int8) is int8
