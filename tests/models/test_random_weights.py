"""Random checkpoints: the spread of their logits, their sizes, and their numbers in every dtype."""

from __future__ import annotations

import pytest
import torch
from checkpoints import make_checkpoint
from float64_reference import Float64Model
from versions import VARIANTS, VERSIONS

from rwkv_batch.models.architecture import version_named
from rwkv_batch.models.random_weights import LOGIT_STD, complete_sizes, draws, random_tensors


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_have_the_stated_spread(version):
    logits, _ = Float64Model(version, make_checkpoint(version)).sequence([[5, 9, 33, 2], [7, 7, 1, 90]])
    assert logits.std().item() == pytest.approx(LOGIT_STD, rel=0.15)


@pytest.mark.parametrize("version", VERSIONS)
def test_published_sizes_are_enough_for_a_checkpoint(version):
    architecture = VARIANTS[version].architecture
    sizes = complete_sizes(architecture, L=2, C=128, V=31)
    shapes = {name: draw.shape for name, draw in draws(architecture, sizes).items()}
    match = architecture.schema.match(shapes, shapes.__getitem__)
    assert not match.describe()
    assert not architecture.refine_sizes(match.sizes)
    assert match.sizes.items() <= sizes.items()


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("rwkv4", 768, {"F": 3072}),
        ("rwkv5.2", 2048, {"F": 7168, "H": 32, "N": 64}),
        ("rwkv6", 2048, {"F": 7168, "R": 32, "Rw": 64}),
        ("rwkv6", 4096, {"F": 14336, "R": 64, "Rw": 128}),
        ("rwkv7", 768, {"F": 3072, "Rw": 64, "Ra": 64, "Rv": 32, "Rg": 128}),
        ("rwkv7", 2048, {"F": 8192, "Rw": 96, "Ra": 96, "Rv": 64, "Rg": 256}),
    ],
)
def test_sizes_of_published_models(name, width, expected):
    assert expected.items() <= complete_sizes(version_named(name), L=1, C=width, V=65536).items()


def test_a_given_size_replaces_the_published_one():
    sizes = complete_sizes(version_named("rwkv7"), L=1, C=128, V=31, N=32, Rw=16)
    assert (sizes["H"], sizes["N"], sizes["Rw"], sizes["Ra"]) == (4, 32, 16, 32)


def test_a_seed_draws_the_same_numbers_in_every_dtype():
    version = version_named("rwkv7")
    sizes = complete_sizes(version, L=1, C=64, V=31)
    wide, narrow = (random_tensors(version, sizes, seed=3, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert [*wide] == [*narrow]
    assert all(torch.equal(narrow[name], tensor.bfloat16()) for name, tensor in wide.items())
    assert not torch.equal(wide["emb.weight"], random_tensors(version, sizes, seed=4)["emb.weight"])


def test_the_spread_of_logits_can_be_chosen():
    version = version_named("rwkv4")
    sizes = complete_sizes(version, L=1, C=256, V=512)
    assert random_tensors(version, sizes, logit_std=4.0)["head.weight"].std().item() == pytest.approx(0.25, rel=0.02)
