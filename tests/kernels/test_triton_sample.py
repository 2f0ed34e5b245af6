"""Triton's `sample` against its definition: token by token, over steps in which the slots' tables evolve."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_batch.engine import philox as definition
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sample import PARTS
from rwkv_batch.engine.sample import sample as reference
from rwkv_batch.engine.slot_tables import Float, Integer, SlotTables, Vocabulary
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime import interpreter

from rwkv_batch.triton_kernels import launch, philox, sample_row, sample_select
from rwkv_batch.triton_kernels import sample as module
from rwkv_batch.triton_kernels.sample import sample, unsupported_reason

CPU = torch.device("cpu")
DEVICE = CPU if launch.is_interpreted() else torch.device("cuda")
OPS = resolve(PARTS, "reference", CPU, torch.float32, {})
Settings = Mapping[str, Any]


@pytest.fixture(scope="module", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """The interpreter replaces Triton's language anew at every call inside a kernel, and looks for overflow in every
    sum; once is enough, and some of ours shall overflow.
    """
    if reason := unsupported_reason(DEVICE, torch.float32, {}):
        pytest.skip(reason)
    if not launch.is_interpreted():
        yield
        return
    replace = interpreter._patch_lang
    scope = replace(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)
    builder = interpreter.interpreter_builder
    options = builder.options
    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    yield
    builder.options = options
    interpreter._patch_lang = replace
    scope.restore()


def vocabulary(size: int) -> Vocabulary:
    """Some ids have no bytes, some are not counted."""
    ids = torch.arange(size)
    return Vocabulary(unsampleable=(ids % 37 == 5) & (ids > 20), uncounted=ids % 3 == 1)


class Slots:
    """The same slots twice: for the definition, and for the kernels.

    Row i of a step is in slot `slots[i]`; other slots hold noise that nobody may touch.
    """

    def __init__(self, words: Vocabulary, settings: Sequence[Settings], prompt: Sequence[int] = (1, 2, 3), **keys: Any):
        spare = 3
        generator = torch.Generator().manual_seed(len(settings))
        self.slots = torch.randperm(len(settings) + spare, generator=generator)[: len(settings)].int()
        self.tables = SlotTables(len(settings) + spare, words, CPU)
        for slot in range(len(settings) + spare):
            self.tables.assign([slot], [request(SETTINGS[-1], prompt, seed=slot)])
        for row, (slot, setting) in enumerate(zip(self.slots.tolist(), settings, strict=True)):
            self.tables.assign([slot], [request(setting, prompt, row=row, **keys)])
        self.twin = to_device(self.tables)

    def step(self, logits: torch.Tensor, slots: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of both: tokens and log-probabilities of the kernels, which must be those of the definition."""
        slots = self.slots if slots is None else slots
        given = logits.to(DEVICE, copy=True)
        before = copy.deepcopy(self.twin)
        with np.errstate(all="ignore"):
            token_ids, logprobs = sample(given, slots.to(DEVICE), self.twin, None)
        want, want_logprobs = reference(logits.clone(), slots, self.tables, OPS)
        is_row = slots >= 0
        token_ids, logprobs = token_ids.cpu(), logprobs.cpu()
        assert torch.equal(given.cpu().view(torch.int32), logits.view(torch.int32))
        assert token_ids[is_row].tolist() == want[is_row].tolist()
        assert token_ids[~is_row].eq(0).all()
        close = (logprobs - want_logprobs).abs() < 2e-6 * (1 + want_logprobs.abs())
        assert (close | ~is_row | ~(want_logprobs.isfinite() | logprobs.isfinite())).all(), (logprobs, want_logprobs)
        self.compare(slots[is_row].long())
        untouched = torch.ones(self.tables.num_slots, dtype=torch.bool)
        untouched[slots[is_row].long()] = False
        for name, table in rows_of(self.twin).items():
            assert torch.equal(table[:-1][untouched], rows_of(before)[name][:-1][untouched]), name
        return token_ids, logprobs

    def compare(self, slots: torch.Tensor) -> None:
        got, want = to_cpu(self.twin), self.tables
        assert torch.equal(got.integers[slots], want.integers[slots])
        assert torch.equal(got.floats[slots], want.floats[slots])
        assert torch.equal(got.last_token[slots], want.last_token[slots])
        for slot in slots.tolist():
            number = int(want.integers[slot, Integer.NUM_SEEN]) if want.integers[slot, Integer.IS_PENALIZED] else 0
            assert torch.equal(got.seen_ids[slot, :number], want.seen_ids[slot, :number])
            assert torch.equal(got.seen_generated[slot, :number], want.seen_generated[slot, :number])
            torch.testing.assert_close(got.seen_count[slot, :number], want.seen_count[slot, :number])

    def reserve(self, width: int) -> None:
        self.tables.reserve_seen(width)
        self.twin.reserve_seen(width)


def request(settings: Settings, prompt: Sequence[int], seed: int = 5, row: int = 0, number: int = 0) -> Request:
    params = SamplingParams(**{"max_tokens": 100, **settings})
    return Request(key=row, prompt_token_ids=list(prompt), params=params, seed=seed, row=row, sample=number)


def rows_of(tables: SlotTables) -> dict[str, torch.Tensor]:
    names = ("integers", "floats", "last_token", "seen_ids", "seen_count", "seen_generated", "bias_ids", "biases")
    return {name: getattr(tables, name) for name in (*names, "stops", "mask")}


def moved(tables: SlotTables, device: torch.device) -> SlotTables:
    other = copy.copy(tables)
    for name, value in vars(tables).items():
        setattr(other, name, value.to(device, copy=True) if isinstance(value, torch.Tensor) else value)
    other.device = device
    return other


def to_device(tables: SlotTables) -> SlotTables:
    return moved(tables, DEVICE)


def to_cpu(tables: SlotTables) -> SlotTables:
    return moved(tables, CPU)


PENALTIES = dict(presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.2, penalty_decay=0.9)
SETTINGS: list[dict[str, Any]] = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=0.0),
    dict(top_p=0.85),
    dict(top_p=0.0),
    dict(top_p=0.3, temperature=1.5),
    dict(top_k=1),
    dict(top_k=5, temperature=0.5),
    dict(top_k=10**6),
    dict(min_p=0.1),
    dict(min_p=0.02, temperature=2.0, top_p=0.9),
    dict(top_p=0.6, top_k=4),
    dict(top_p=0.6, top_k=4, top_p_order="rwkv"),
    dict(top_p=0.95, top_k=200, min_p=1e-3, temperature=1.5),
    dict(top_p=0.7, temperature=2.0, top_p_order="rwkv"),
    dict(top_p=0.85, top_k=7, temperature=0.6, top_p_order="rwkv"),
    dict(top_p=0.8, top_p_order="rwkv", **PENALTIES),
]


def random_settings(generator: np.random.Generator, size: int) -> dict[str, Any]:
    """One row's settings: of everything that there is, most of the time a little."""

    def one_of(*choices: Any) -> Any:
        return choices[generator.integers(len(choices))]

    def ids(most: int) -> list[int]:
        return generator.choice(size, generator.integers(1, most + 1), replace=False).tolist()

    settings = dict(
        temperature=one_of(0.0, 0.6, 1.0, 1.0, 1.7),
        top_p=one_of(1.0, 1.0, 0.9, 0.5),
        top_k=one_of(0, 0, 3, 20, 10**6),
        min_p=one_of(0.0, 0.0, 0.05),
        top_p_order=one_of("standard", "rwkv"),
    )
    if generator.random() < 0.6:
        settings |= PENALTIES | dict(penalty_decay=one_of(1.0, 0.8), repetition_penalty=one_of(1.0, 1.3))
    if generator.random() < 0.5:
        settings["logit_bias"] = {i: float(generator.normal()) * 3 for i in ids(10)}
    if generator.random() < 0.4:
        settings["bad_token_ids"] = ids(5)
    if generator.random() < 0.3:
        settings["allowed_token_ids"] = ids(size)
    if generator.random() < 0.4:
        settings |= dict(min_tokens=2, stop_token_ids=ids(12))
    return settings


def random_logits(generator: np.random.Generator, rows: int, size: int) -> torch.Tensor:
    return torch.from_numpy(generator.normal(size=(rows, size)) * 3).float()


@pytest.mark.parametrize(("size", "seed"), [(40, 1), (300, 2), (301, 3), (512, 4)])
def test_equals_the_definition_while_the_tables_evolve(size, seed):
    generator = np.random.default_rng(seed)
    slots = Slots(vocabulary(size), [random_settings(generator, size) for _ in range(8)], seed=seed)
    for step in range(4):
        logits = random_logits(generator, 8, size)
        if step == 1:
            slots.reserve(100)
        slots.step(logits)


@pytest.mark.parametrize("seed", range(2))
def test_penalties(seed):
    """Of nearly equal logits each takes its turn, as long as the penalties are right."""
    settings = [
        dict(presence_penalty=0.3),
        dict(presence_penalty=-0.05),
        dict(frequency_penalty=0.2),
        dict(frequency_penalty=0.2, penalty_decay=0.8, top_p_order="rwkv"),
        dict(repetition_penalty=1.5),
        dict(presence_penalty=0.1, frequency_penalty=0.1, repetition_penalty=0.8),
    ]
    slots = Slots(vocabulary(12), [dict(temperature=0.0, **s) for s in settings])
    logits = random_logits(np.random.default_rng(seed), len(settings), 12) * 0.1
    for _ in range(8):
        slots.step(logits)


def test_a_token_sampled_again_is_counted_again():
    settings = [dict(temperature=0.0, frequency_penalty=0.1, penalty_decay=d, top_p_order=o)
                for d, o in ((1.0, "standard"), (0.5, "standard"), (0.5, "rwkv"))]  # fmt: skip
    slots = Slots(vocabulary(40), settings)
    logits = torch.zeros(3, 40)
    logits[:, 4] = 5.0  # not counted in ChatRWKV's order
    logits[:, 6] = 4.75
    for _ in range(8):
        slots.step(logits)
    counts = to_cpu(slots.twin).seen_count[slots.slots.long()]
    assert counts[0, :2].tolist() == [5.0, 3.0]
    assert slots.twin.integers[slots.slots.long(), Integer.NUM_SEEN].tolist() == [2, 1, 1]


@pytest.mark.parametrize("constants", [dict(CAP=32), dict(CAP=512)], ids=str)
def test_vocabularies_of_several_tiles(constants, monkeypatch):
    for name, value in dict(TILE=128, CHUNK=64, BLOCK=128, LIST=16, **constants).items():
        monkeypatch.setattr(module, name, value)
    generator = np.random.default_rng(7)
    settings = [SETTINGS[i] for i in (0, 2, 5, 8, 12, 13, 14, 16)]
    slots = Slots(vocabulary(333), settings, prompt=range(0, 333, 4))
    for scale in (3.0, 0.2):
        slots.step(random_logits(generator, len(settings), 333) * scale)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (dict(top_p=0.1), 0.5),  # many near the top: they are looked for nearer
        (dict(top_k=40), 40.0),  # few near the top: they are looked for farther
        (dict(top_k=40, allowed_token_ids=[3, 17, 200]), 3.0),  # never so many
        (dict(min_p=1e-12, temperature=0.5), 5.0),
        (dict(min_p=1e-12, top_k=9, temperature=50.0, top_p_order="rwkv"), 5.0),
    ],
    ids=str,
)
def test_tokens_near_the_top_are_found_in_one_of_several_attempts(settings, scale, monkeypatch):
    monkeypatch.setattr(module, "CAP", 64)
    generator = np.random.default_rng(3)
    slots = Slots(vocabulary(256), [settings] * 2)
    slots.step(random_logits(generator, 2, 256) * scale)


def test_lists_longer_than_what_is_read_together():
    settings = [
        dict(temperature=0.0, **PENALTIES),
        dict(top_p=0.9, **PENALTIES, logit_bias=dict.fromkeys(range(300), 0.5)),
    ]
    slots = Slots(vocabulary(1000), settings, prompt=range(0, 1000, 2))
    assert slots.tables.seen_ids.shape[1] > module.LIST
    slots.step(random_logits(np.random.default_rng(0), 2, 1000))


def expected_probabilities(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    top_p_order: str = "standard",
) -> np.ndarray:
    """The distribution that a row is drawn from, in float64 [V], by sorting everything."""
    x = logits.double().numpy()
    if temperature == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    untempered = top_p_order == "rwkv"
    p = np.exp((x - x.max()) / (1.0 if untempered else temperature))
    p /= p.sum()
    ranked = sorted(range(len(p)), key=lambda i: (-x[i], i))
    keep = [i for i in ranked if p[i] >= min_p * p.max()][: top_k or None]
    if top_p < 1:
        share = p if untempered else p / p[keep].sum()
        reached = np.cumsum(share[ranked if untempered else keep])
        lowest = x[(ranked if untempered else keep)[int((reached < top_p).sum())]]
        keep = [i for i in keep if x[i] >= lowest]
    weights = np.zeros_like(p)
    weights[keep] = np.exp((x[keep] - x.max()) / temperature)
    return weights / weights.sum()


NUM_STREAMS = 200_000


@pytest.fixture(scope="module")
def streams() -> tuple[torch.Tensor, torch.Tensor]:
    """The first uniform number of each of many streams, from small to large, and whose it is."""
    words = torch.zeros(NUM_STREAMS, 5, dtype=torch.int64)
    words[:, 0] = 5
    words[:, 2] = torch.arange(NUM_STREAMS)
    return definition.uniform(words, torch.zeros(NUM_STREAMS, dtype=torch.int64)).sort()


@pytest.mark.parametrize("settings", [s for s in SETTINGS if "penalty_decay" not in s], ids=str)
def test_distribution(settings, streams):
    """Uniform numbers just before and after the places where one token's share ends and the next one's begins.

    The cumulative distribution is right there to 1e-4, which frequencies could not show.
    """
    numbers, rows = streams
    logits = torch.randn(1, 10)
    p = expected_probabilities(logits[0], **settings)
    ends = np.cumsum(p)[p > 0][:-1]
    if len(ends) > 4:
        ends = ends[np.random.default_rng(0).choice(len(ends), 4, replace=False)]
    wanted = torch.from_numpy(np.concatenate([[2e-5, 1 - 2e-5], ends - 2e-5, ends + 2e-5]))
    found = torch.searchsorted(numbers, wanted).clamp(max=NUM_STREAMS - 1)
    expected = np.searchsorted(np.cumsum(p), numbers[found].numpy(), side="right")
    assert (numbers[found] - wanted).abs().max() < 1e-4
    tables = SlotTables(len(found), Vocabulary.plain(10), CPU)
    for slot, row in enumerate(rows[found].tolist()):
        tables.assign([slot], [request(settings, [1], row=row)])
    index = torch.arange(len(found), dtype=torch.int32, device=DEVICE)
    token_ids, logprobs = sample(logits.repeat(len(found), 1).to(DEVICE), index, to_device(tables), None)
    assert token_ids.tolist() == expected.tolist()
    assert (logprobs.cpu() - logits[0].double().log_softmax(0)[expected]).abs().max() < 2e-6


def test_frequencies():
    """Chi-square over tokens, of draws at many positions of many streams."""
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    counts = torch.zeros(5)
    tables = SlotTables(32, Vocabulary.plain(5), CPU)
    for slot in range(32):
        tables.assign([slot], [request({}, [1], row=slot)])
    twin = to_device(tables)
    logits = probabilities.log().repeat(32, 1).to(DEVICE)
    for _ in range(6):
        token_ids, _ = sample(logits, torch.arange(32, dtype=torch.int32, device=DEVICE), twin, None)
        counts += torch.bincount(token_ids.cpu(), minlength=5)
    expected = counts.sum() * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # exceeded once in a thousand


def test_uniform_numbers_are_the_definition_s():
    @triton.jit
    def kernel(p_streams, p_position, p_out):
        i = tl.program_id(0)
        tl.store(p_out + i, philox_uniform(p_streams + i * 5, tl.load(p_position + i)))

    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 2**32, (40, 5), generator=generator)
    words[0], words[1] = 0, 2**32 - 1
    position = torch.randint(0, 2**31, (40,), generator=generator)
    out = torch.empty(40, dtype=torch.float64, device=DEVICE)
    kernel[(40,)](words.to(DEVICE), position.to(DEVICE), out)
    assert torch.equal(out.cpu(), definition.uniform(words, position))


philox_uniform = philox.uniform


def test_ties():
    """Top-k keeps the lowest ids of equal logits, top-p all of them; greedy takes the first; 0 and -0 are equal."""
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, -0.0, -1.0, -9.0]).repeat(6, 1)
    settings = [
        dict(top_k=3),
        dict(top_p=0.5),
        dict(top_k=3, top_p=0.5),
        dict(top_k=6),
        dict(top_k=5),
        dict(min_p=0.35),
    ]
    slots = Slots(Vocabulary.plain(8), settings)
    support = [set[int]() for _ in settings]
    for _ in range(6):
        for row, token in enumerate(slots.step(logits)[0].tolist()):
            support[row].add(token)
    allowed = [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, {0, 1, 2, 3}]
    assert all(got <= want for got, want in zip(support, allowed, strict=True))
    greedy = Slots(Vocabulary.plain(8), [dict(temperature=0.0)] * 2)
    zeros = torch.tensor([-1.0, -0.0, 0.0, -1, -1, -1, -1, -1]).repeat(2, 1)
    assert greedy.step(zeros)[0].tolist() == [1, 1]


def test_all_logits_equal(monkeypatch):
    """Thousands of ties in the cut, and all of them near the top."""
    monkeypatch.setattr(module, "CAP", 64)
    slots = Slots(Vocabulary.plain(200), [dict(top_k=150), dict(top_p=0.5), dict()])
    for _ in range(2):
        slots.step(torch.zeros(3, 200))


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.inf])
@pytest.mark.parametrize("where", [slice(None), slice(17, 18)], ids=["everywhere", "once"])
def test_logits_that_are_no_numbers(value, where):
    """A row with nothing to sample gives token 0; where the model's numbers are broken, the log-probability says so."""
    settings = [SETTINGS[i] for i in (0, 2, 3, 7, 9, 16)]
    slots = Slots(vocabulary(100), settings)
    logits = random_logits(np.random.default_rng(0), len(settings), 100)
    logits[:, where] = value
    token_ids, logprobs = slots.step(logits)
    if value == -torch.inf and where == slice(17, 18):
        assert logprobs.isfinite().all()
        assert 17 not in token_ids
    else:
        assert token_ids.eq(0).all()
        assert not logprobs.isfinite().any()


def test_rows_in_which_everything_is_banned():
    settings = [dict(allowed_token_ids=[7, 9], bad_token_ids=[7, 9], **SETTINGS[i]) for i in (0, 2, 3, 7)]
    slots = Slots(Vocabulary.plain(70), settings)
    token_ids, logprobs = slots.step(random_logits(np.random.default_rng(0), 4, 70))
    assert token_ids.tolist() == [0] * 4
    assert logprobs.isfinite().all()


def test_a_vocabulary_of_one_token():
    slots = Slots(Vocabulary.plain(1), [SETTINGS[i] for i in (0, 2, 3, 7, 9)], prompt=[0])
    token_ids, logprobs = slots.step(torch.randn(5, 1))
    assert token_ids.tolist() == [0] * 5
    assert logprobs.tolist() == [0.0] * 5


def test_a_row_depends_on_its_slot_alone():
    """Bit for bit, at another place among other neighbours."""
    generator = np.random.default_rng(11)
    settings = [random_settings(generator, 200) for _ in range(6)]
    logits = random_logits(generator, 6, 200)
    one, other = Slots(vocabulary(200), settings), Slots(vocabulary(200), settings)
    together = one.step(logits)
    place = torch.tensor([4, 1, 5])
    apart = other.step(logits[place], other.slots[place])
    assert together[0][place].tolist() == apart[0].tolist()
    assert together[1][place].tolist() == apart[1].tolist()


def test_padding_touches_nothing():
    slots = Slots(vocabulary(64), [SETTINGS[i] for i in (16, 0)])
    logits = torch.randn(4, 64)
    logits[1] = torch.nan
    rows = torch.tensor([slots.slots[0], -1, slots.slots[1], -1], dtype=torch.int32)
    token_ids, _ = slots.step(logits, rows)
    assert token_ids[[1, 3]].tolist() == [0, 0]


def test_no_rows():
    tables = to_device(SlotTables(2, Vocabulary.plain(9), CPU))
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    token_ids, logprobs = sample(torch.zeros(0, 9, device=DEVICE), empty, tables, None)
    assert (token_ids.shape, token_ids.dtype) == ((0,), torch.int64)
    assert (logprobs.shape, logprobs.dtype) == ((0,), torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logits=torch.zeros(2, 9, dtype=torch.bfloat16)), "logits: got torch.bfloat16"),
        (dict(logits=torch.zeros(2, 8)), r"logits: got torch.float32 \[2, 8\]"),
        (dict(logits=torch.zeros(9, 2).t()), r"strides \(1, 2\)"),
        (dict(slots=torch.zeros(2, dtype=torch.int64)), "slot_index: got torch.int64"),
        (dict(slots=torch.zeros(3, dtype=torch.int32)), r"slot_index: got torch.int32 \[3\]"),
    ],
)
def test_refuses_what_it_cannot_read(changes, message):
    given = dict(logits=torch.zeros(2, 9), slots=torch.zeros(2, dtype=torch.int32)) | changes
    tables = to_device(SlotTables(2, Vocabulary.plain(9), CPU))
    with pytest.raises(ValueError, match=message):
        sample(given["logits"].to(DEVICE), given["slots"].to(DEVICE), tables, None)


def test_vocabularies_whose_masses_would_overflow_are_refused():
    assert unsupported_reason(DEVICE, torch.float32, {"V": module.MAX_V}) is None
    assert "larger than" in str(unsupported_reason(DEVICE, torch.float32, {"V": module.MAX_V + 1}))
    assert module.MAX_V * sample_select.ONE.value < 2**63
    assert math.exp(-sample_select.FAR.value) * sample_select.ONE.value < 1
    assert module.TILE % module.CHUNK == 0


def test_columns_are_those_of_the_tables():
    for column in (*Float, *Integer):
        assert getattr(sample_row, column.name).value == column, column
    tables = SlotTables(1, Vocabulary.plain(2), CPU)
    assert tables.floats.shape[1] == sample_row.NUM_FLOATS.value
    assert tables.integers.shape[1] == sample_row.NUM_INTEGERS.value


def test_specializations_name_every_argument():
    for spec in module.specializations():
        assert dataclasses.is_dataclass(spec)
        assert {*spec.signature, *spec.constexprs} == set(spec.kernel.arg_names), spec.label
