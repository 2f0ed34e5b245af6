"""Random streams: known answers of the published generator, and dependence on the whole key."""

import torch

from rwkv_batch.engine.philox import philox, stream_words, uniform

# Known answers of Philox4x32-10 from the Random123 distribution (kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_the_generator_gives_the_published_answers():
    counters, keys, answers = (torch.tensor(column) for column in zip(*KNOWN, strict=True))
    assert philox(counters, keys).tolist() == answers.tolist()


def test_numbers_are_uniform():
    streams = torch.tensor([stream_words(seed=7, row=row, sample=0) for row in range(20000)])
    numbers = uniform(streams, torch.zeros(20000, dtype=torch.int64))
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_each_part_of_the_key_changes_the_number():
    base = dict(seed=5, row=3, sample=1)
    variants = [base, base | {"seed": 6}, base | {"seed": 5 + 2**40}, base | {"row": 4}, base | {"row": 3 + 2**40}]
    variants += [base | {"sample": 2}]
    streams = torch.tensor([stream_words(**variant) for variant in variants])
    numbers = uniform(streams, torch.zeros(len(variants), dtype=torch.int64)).tolist()
    numbers += uniform(streams[:1], torch.tensor([1])).tolist()
    assert len(set(numbers)) == len(variants) + 1


def test_negative_seeds_are_taken_modulo_2_64():
    assert stream_words(-1, 0, 0) == stream_words(2**64 - 1, 0, 0)
