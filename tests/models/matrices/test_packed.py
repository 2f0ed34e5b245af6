"""Products of packed matrices equal those of dense ones."""

import pytest
import torch
from tolerances import assert_close

from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.packed import PACKED_DTYPES, PackedLinear, can_pack


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@pytest.mark.parametrize(("rows", "c_out", "c_in"), [(1, 97, 64), (2, 300, 130), (37, 64, 257), (600, 33, 40)])
def test_products(dtype, rows, c_out, c_in):
    dense = DenseLinear(torch.randn(c_out, c_in).to(dtype))
    if not can_pack(dense.weight):
        pytest.skip(f"this torch cannot pack {dtype}")
    packed = PackedLinear(dense.weight)
    x = torch.randn(rows, c_in).to(dtype)
    exact = x.double() @ dense.weight.double().T
    assert_close("packed", packed(x), exact, dtype)
    assert packed(x).dtype == dtype
    assert (packed.out_features, packed.in_features, packed.nbytes) == (c_out, c_in, dense.nbytes)


def test_what_has_no_packed_form():
    assert not can_pack(torch.randn(4, 4).half())
    assert not can_pack(torch.randn(4, 4, device="meta"))
