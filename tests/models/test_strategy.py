"""Strategy strings: the clause of each layer; and models on several devices, which compute what whole models do."""

import random
import re

import pytest
import torch
from running import Session
from tolerances import TOLERANCES, assert_close
from versions import VERSIONS

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.sizing import plan_memory
from rwkv_batch.engine.state_pool import Record
from rwkv_batch.errors import BackendError, CapacityError, ConfigurationError
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.layer_stream import LayerStream
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.placement import LayerPlacement, Placement, describe_layers, place, stages
from rwkv_batch.models.strategy import distribute, parse

MODEL_FACTOR = 20
CPU, OTHER = torch.device("cpu"), torch.device("cpu:1")
"""The second stands for another device: it is not equal to the first, and `to` makes a copy."""


def shares(strategy, num_layers):
    return "".join(
        str(parse(strategy).index(share.clause)) + "s" * share.is_streamed
        for share in distribute(parse(strategy), num_layers)
    )


@pytest.mark.parametrize(
    ("strategy", "num_layers", "expected"),
    [
        ("cuda fp16", 3, "0000"),
        ("cuda fp16 *2 -> cpu fp32", 3, "0011"),
        ("cuda fp16 -> cuda bf16 -> cpu fp32", 4, "01122"),
        ("cuda fp16 *2 -> cpu fp32 *1", 4, "00111"),
        ("cuda fp16 *9 -> cpu fp32", 4, "00000"),
        ("cuda fp16 *1 -> cuda bf16 -> cpu fp32 *1", 4, "01112"),
        ("cuda fp16 *2+", 4, "000s0s0s"),
        ("cuda fp16 *0+ -> cpu fp32 *2", 4, "0s0s0s11"),
        ("cuda fp16 *9+", 4, "00000"),
    ],
)
def test_layers_are_given_out(strategy, num_layers, expected):
    assert shares(strategy, num_layers) == expected


def test_layers_are_given_out_as_the_rwkv_package_does(oracle, checkpoint_file):
    path = checkpoint_file("4", n_layer=6, n_embd=16, n_ffn=16, vocab=13, head_size=16)
    draw = random.Random(3)
    for _ in range(12):
        parts = [
            draw.choice(["cpu fp32", "cpu bf16", "cpu fp32i8"]) + draw.choice(["", f" *{draw.randrange(1, 5)}"])
            for _ in range(draw.randrange(1, 5))
        ]
        strategy = " -> ".join(parts)
        placement = place(strategy=strategy, num_layers=6)
        got = [
            [str(layer.device), str(layer.dtype), "torch.uint8" if layer.quantization else str(layer.dtype)]
            for layer in placement.of_layers(6)
        ]
        assert got == oracle("4", path, strategy).layers(), strategy


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [
        ("", "in part 1, it is empty"),
        ("cpu fp32 ->", "in part 2, it is empty"),
        ("gpu fp16", "in part 1, the device is 'gpu', expected cuda, cuda:N, cpu, mps or dml"),
        ("cuda:x fp16", "in part 1, the device is 'cuda:x'"),
        ("cpu", "in part 1, there is no dtype"),
        ("cpu fp32 -> cpu fp8", "in part 2, the dtype is 'fp8', expected fp32, fp16, bf16, or one of them with i8"),
        ("cpu fp16i4", "in part 1, the dtype is 'fp16i4'"),
        ("cpu fp32 12", "in part 1, it ends with '12', expected *N or *N+ after the dtype"),
        ("cpu fp32 *3 *4", "in part 1, it ends with '*4'"),
        ("cuda fp16 *3+ -> cuda bf16 *1+", "only one part can stream"),
    ],
)
def test_malformed_strategies(strategy, complaint):
    with pytest.raises(ConfigurationError, match=re.escape(complaint)) as raised:
        place(strategy=strategy, num_layers=4)
    assert "'cuda fp16i8 *12 -> cpu fp32'" in str(raised.value)


@pytest.mark.parametrize(
    ("strategy", "name"), [("cuda:7 fp16", "cuda:7"), ("mps fp16", "mps"), ("dml fp16", "torch-directml")]
)
def test_devices_that_are_not_there(strategy, name):
    with pytest.raises(CapacityError, match=name):
        place(strategy=f"cpu fp32 *1 -> {strategy}", num_layers=4)


def test_descriptions():
    placement = place(strategy="cpu fp32i8 *2 -> cpu bf16 *1 -> cpu fp32", num_layers=4)
    assert describe_layers(placement, 4) == (
        "layers 0-1 cpu float32 int8, layer 2 cpu bfloat16, layer 3 and head cpu float32"
    )
    assert describe_layers(place(strategy="cpu fp32", num_layers=4), 4) == "layers 0-3 and head cpu float32"
    assert [stage.layers for stage in stages(placement, 4)] == [range(2), range(2, 3), range(3, 4)]


def split(*layers, head=None):
    head = head or layers[-1]
    return Placement(head.device, head.dtype, head.quantization, torch.float32, tuple(layers))


def feed(session):
    """Prompt chunks and decode rows in several slots."""
    steps = ({2: [3, 5, 7, 1], 0: [9]}, {0: [4], 2: [8], 4: [1, 2, 3]}, {4: [6, 6], 2: [2], 0: [2, 7]})
    return torch.cat([torch.cat(list(session.feed(step).values())) for step in steps])


@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_equal_the_whole(version, checkpoint_file):
    """Layers alternate between two devices. Only the copies between them differ from a model on one device."""
    path = checkpoint_file(version)
    whole, pieces = Session(path), None
    here, there = (LayerPlacement(device, torch.float32) for device in (CPU, OTHER))
    pieces = Session(path, placement=split(here, there, here, head=there))
    assert len(pieces.pool.parts) == 3
    assert torch.equal(feed(pieces), feed(whole))
    for slot in (0, 2, 4):
        for a, b in zip(pieces.pool.layers, whole.pool.layers, strict=True):
            for name, value in vars(b).items():
                assert torch.equal(getattr(a, name)[slot], value[slot]), name


def test_a_device_that_does_not_sample(checkpoint_file):
    """All layers and the head's matrix are on the other device; the head's norm and the logits are on the CPU."""
    there = (LayerPlacement(OTHER, torch.float32),) * 3
    placement = Placement(CPU, torch.float32, None, torch.float32, there, head_device=OTHER)
    path = checkpoint_file("7.0")
    session = Session(path, placement=placement)
    assert type(session.model._head).__name__ == "RemoteLinear"
    assert torch.equal(feed(session), feed(Session(path)))
    assert describe_layers(placement, 3) == "layers 0-2 and head cpu:1 float32"


@pytest.mark.parametrize("strategy", ["cpu fp32 *1 -> cpu fp32i8 *1 -> cpu bf16", "cpu bf16i8 *2 -> cpu fp32"])
@pytest.mark.parametrize("version", VERSIONS)
def test_mixed_dtypes_stay_near(version, strategy, checkpoint_file):
    path = checkpoint_file(version)
    exact = feed(Session(path))
    coarse = feed(Session(path, dtype="bfloat16", quantization="int8"))
    mixed = feed(Session(path, strategy=strategy))
    error, allowed = ((got - exact).pow(2).mean().sqrt() for got in (mixed, coarse))
    assert 0 < error < 1.5 * allowed


@pytest.mark.parametrize("strategy", ["cpu fp32 *2 -> cpu fp32i8", "cpu fp32i8 *1 -> cpu fp32 *1 -> cpu fp32i8"])
@pytest.mark.parametrize("version", ["4", "5.2", "6.0"])
def test_mixed_formats_equal_the_rwkv_package(version, strategy, oracle, checkpoint_file):
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    want, _ = oracle(version, None, strategy).forward(ids, full_output=True)
    got = Session(checkpoint_file(version), strategy=strategy).feed({1: ids})[1]
    assert_close("logits", got, want, "float32", 10 * MODEL_FACTOR)


@pytest.mark.parametrize("version", ["4", "5.2", "6.0"])
def test_rescaling_is_for_all_layers_or_none(version, oracle, checkpoint_file):
    """Where any layer is float16, the residual stream is halved after layer 5, whose own dtype makes no difference."""
    path = checkpoint_file(version, n_layer=8, n_embd=32, n_ffn=48, vocab=41, head_size=16)
    exact = Session(path).feed({0: [7, 3, 11]})[0]
    for strategy in ("cpu fp16 *2 -> cpu fp32", "cpu fp32 *7 -> cpu fp16"):
        got = Session(path, strategy=strategy).feed({0: [7, 3, 11]})[0]
        assert (got - exact).pow(2).mean().sqrt() < MODEL_FACTOR * TOLERANCES["float16"] * exact.std()
    _, state = oracle(version, path, "cpu fp16 *2 -> cpu fp32").forward([7, 3, 11])
    session = Session(path, strategy="cpu fp16 *2 -> cpu fp32")
    session.feed({0: [7, 3, 11]})
    shift = session.pool.layers[7].ffn_shift[0]  # of the last layer, past the halving
    assert_close("shift", shift, state[-1], "float16", MODEL_FACTOR)


@pytest.mark.parametrize("num_streamed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_streamed_layers(num_streamed, quantization, checkpoint_file):
    """Layers share buffers on the device; each step must fetch the copy in host memory."""
    path = checkpoint_file("7.0", n_layer=6, n_embd=32, n_ffn=48, vocab=41, head_size=16)
    whole = Session(path, backend="reference", quantization=quantization)
    kept = LayerPlacement(CPU, torch.float32, quantization)
    streamed = LayerPlacement(CPU, torch.float32, quantization, is_streamed=True)
    layers = [kept] * (5 - num_streamed) + [streamed] * num_streamed + [kept]
    session = Session(path, backend="reference", placement=split(*layers))
    assert torch.equal(feed(session), feed(whole))
    stream = session.model.pipeline.stream
    assert len(stream) == num_streamed
    per_layer = sum(copy.host.nbytes for copy in stream._copies[0])
    assert stream.device_bytes == min(num_streamed, 2) * per_layer
    assert stream.nbytes == (num_streamed * per_layer if num_streamed > 2 else 0)


def test_a_place_is_not_overwritten_while_its_layer_runs():
    stream = LayerStream(CPU)
    places = []
    for i in range(5):
        assert stream.add_layer() == i
        places.append(stream.keep(torch.full((3,), float(i))))
    assert len({place.data_ptr() for place in places}) == 2
    for number in [0, 1, 2, 3, 4] * 3:
        with stream.running(number):
            assert (places[number] == number).all()


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_the_index_of_the_current_device_is_kept(name, monkeypatch):
    """Programs with several GPUs change the current device later, and the model stays where it is."""
    for function, answer in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, function, lambda answer=answer: answer)
    assert place(device=name, dtype="float32").device == torch.device("cuda", 1)


def test_each_matrix_of_a_stack_has_a_host_buffer_of_its_own():
    """Pinned buffers are rounded up, one matrix at a time, and so does the memory plan count them."""
    stream = LayerStream(CPU)
    stacks = [torch.arange(24.0).reshape(3, 2, 4) + 100 * i for i in range(3)]
    places = []
    for stack in stacks:
        stream.add_layer()
        places.append(stream.keep(stack.clone()))
    assert [len(copies) for copies in stream._copies] == [3, 3, 3]
    for number in (0, 1, 2, 0):
        with stream.running(number):
            assert torch.equal(places[number], stacks[number])


def llm(path, **settings):
    return LLM(str(path), tokenizer=None, max_batch_size=4, max_batch_tokens=24, **settings)


def test_a_split_model_serves_requests(checkpoint_file):
    path = checkpoint_file("6.0")
    prompts = [{"prompt_token_ids": [5, 6, 7, 8] * 3 + [i]} for i in range(7)]
    params = SamplingParams(max_tokens=6, temperature=1.0)
    split_llm = llm(path, strategy="cpu fp32 *1 -> cpu fp32i8", batch_invariant=True)
    shared = split_llm.generate(prompts, params)
    apart = llm(path, strategy="cpu fp32 *1 -> cpu fp32i8", batch_invariant=True, prefix_sharing=False)
    assert [o.outputs[0].token_ids for o in shared] == [o.outputs[0].token_ids for o in apart.generate(prompts, params)]
    assert split_llm._engine.stats.prompt_tokens < apart._engine.stats.prompt_tokens
    about = split_llm.summary.describe()
    assert about["layers"] == "layer 0 cpu float32, layers 1-2 and head cpu float32 int8"
    mixed = llm(path, strategy="cpu bf16 *1 -> cpu fp32").summary.describe()
    assert {entry["on"] for entry in mixed["backends"]} == {"cpu bfloat16", "cpu float32"}


@pytest.mark.parametrize("version", ["6.0", "7.0"])
def test_an_initial_state_reaches_every_part_of_a_split_pool(version, checkpoint_file, tmp_path):
    path = checkpoint_file(version)
    shape = ModelFile.open(open_checkpoint(path)).sizes
    torch.manual_seed(0)
    names = [f"blocks.{i}.att.time_state" for i in range(shape["L"])]
    torch.save({name: torch.randn(shape["H"], shape["N"], shape["N"]) for name in names}, tmp_path / "state.pth")
    here, there = (LayerPlacement(device, torch.float32) for device in (CPU, OTHER))
    tokens, state = {0: [5, 6, 7]}, tmp_path / "state.pth"
    whole = Session(path, init_state=state).feed(tokens)[0]
    for layers in ((here, there, there), (here, there, here)):
        assert torch.equal(Session(path, placement=split(*layers), init_state=state).feed(tokens)[0], whole)


def test_records_of_a_split_pool(checkpoint_file):
    here, there = (LayerPlacement(device, torch.float32) for device in (CPU, OTHER))
    session = Session(checkpoint_file("7.0"), placement=split(here, there, there))
    feed(session)
    pool = session.pool
    before = [{name: value[2].clone() for name, value in vars(layer).items()} for layer in pool.layers]
    for record in (pool.record(2).clone(), pool.record(2).to_host()):
        assert isinstance(record, Record)
        pool.free([1])
        (slot,) = pool.allocate(1)
        pool.fill(torch.tensor([slot], device=session.model.device), record)
        for layer, want in zip(pool.layers, before, strict=True):
            assert all(torch.equal(getattr(layer, name)[slot], value) for name, value in want.items())
    assert pool.record_bytes == sum(part.numel() for part in pool.record(2))


def test_a_named_backend_must_serve_every_device(checkpoint_file):
    with pytest.raises(BackendError, match="cuda"):
        llm(checkpoint_file("4"), strategy="cpu fp32 *1 -> cpu bf16", backend="cuda")


def test_memory_is_planned_for_each_device(checkpoint_file, monkeypatch):
    """The device that is full first decides the number of slots; it holds two of the streamed layers."""
    file = ModelFile.open(open_checkpoint(checkpoint_file("7.0", n_layer=6, n_embd=64, n_ffn=96, vocab=41)))
    here, there = (LayerPlacement(device, torch.float32) for device in (CPU, OTHER))
    roomy, cramped = 1 << 30, 8 << 20
    monkeypatch.setattr("rwkv_batch.engine.sizing.available_memory", lambda d: cramped if d == OTHER else roomy)
    whole = plan_memory(file, split(*[here] * 6))
    plan = plan_memory(file, split(*[here] * 5, there, head=here), max_batch_tokens=600)
    assert plan.max_batch_size < whole.max_batch_size
    assert "available on cpu:1" in str(plan) and "available on" not in str(whole)
    streamed = LayerPlacement(OTHER, torch.float32, is_streamed=True)
    both = [plan_memory(file, split(*[kind] * 5, there), 1, 8) for kind in (streamed, there)]
    assert both[0].weights < both[1].weights


def test_streaming_everything(monkeypatch):
    """With the single clause `*0+`, all layers are streamed and the head is not."""
    monkeypatch.setattr("rwkv_batch.models.placement._device", lambda name: torch.device("cuda", 0))
    placement = place(strategy="cuda fp16 *0+", num_layers=3)
    assert describe_layers(placement, 3) == "layers 0-2 cuda:0 float16 streamed, head cuda:0 float16"
