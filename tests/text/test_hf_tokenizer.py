"""`HfTokenizer` does what the tokenizer of transformers does with the same vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_batch.text.chat import ChatSettings, open_chat
from rwkv_batch.text.hf_tokenizer import END_OF_TEXT_NAME, HfTokenizer
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.tokenizer import BytesTokenizer
from rwkv_batch.text.tokenizer_json import open_tokenizer_json

TEXTS = ["def mean(values):", "Zoë – 你好", "", " a  b\n\n", "import os"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[HfTokenizer, Any]:
    """(ours, that of transformers) for one tokenizer.json with a byte-level BPE of 300 tokens."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = trainers.BpeTrainer(vocab_size=300, special_tokens=[END_OF_TEXT_NAME], initial_alphabet=alphabet)
    backend.train_from_iterator(["def mean(values): import os", "return sum(values) / len(values)"], special)
    backend.save(str(path))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), eos_token=END_OF_TEXT_NAME, bos_token=END_OF_TEXT_NAME, pad_token=END_OF_TEXT_NAME
    )
    return HfTokenizer(open_tokenizer_json(path)), theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest", "truncation": True, "max_length": 5},
        {"padding": "max_length", "max_length": 30},
        {"truncation": True, "max_length": 3, "return_attention_mask": False},
        {"padding": True, "padding_side": "left"},
        {"add_special_tokens": False, "return_token_type_ids": False},
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_call_gives_what_transformers_gives(
    both: tuple[HfTokenizer, Any], options: dict[str, Any], side: Any
) -> None:
    for one in both:
        one.padding_side = one.truncation_side = side
    ours, theirs = (dict(one(TEXTS, **options)) for one in both)
    theirs.pop("token_type_ids", None)
    assert ours == theirs
    assert dict(both[0](TEXTS[0])) == {k: v for k, v in both[1](TEXTS[0]).items() if k != "token_type_ids"}


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_are_those_of_transformers(both: tuple[HfTokenizer, Any], kind: str) -> None:
    ours, theirs = (one(TEXTS, padding=True, return_tensors=kind).to("cpu") for one in both)
    assert type(ours.input_ids) is type(theirs.input_ids)
    assert ours.input_ids.dtype == theirs.input_ids.dtype
    assert (ours.input_ids == theirs.input_ids).all()
    assert (ours.attention_mask == theirs.attention_mask).all()
    assert both[0].encode("ab", return_tensors="pt").shape == (1, 2)
    padded = [one.pad([one("import"), one("a b c d e")], return_tensors=kind) for one in both]
    assert (padded[0].input_ids == padded[1].input_ids).all()


def test_texts_and_tokens_are_those_of_transformers(both: tuple[HfTokenizer, Any]) -> None:
    ours, theirs = both
    ids = [theirs.encode(text) for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == ids
    for form in (ids[1], np.array(ids[1]), torch.tensor(ids[1]), [*ids[1], 0]):
        assert ours.decode(form, skip_special_tokens=True) == theirs.decode(form, skip_special_tokens=True) == TEXTS[1]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids) == TEXTS
    assert ours.decode(ids[0][0]) == theirs.decode(ids[0][0])
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    for name in ("eos_token", "eos_token_id", "bos_token_id", "pad_token", "pad_token_id", "special_tokens_map"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.all_special_ids) == theirs.all_special_ids


def test_every_id_of_world_has_a_token_of_its_own() -> None:
    tokenizer = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert tokenizer is not None
    ours = HfTokenizer(tokenizer)
    assert ours.vocab_size == 65530
    tokens = ours.convert_ids_to_tokens(range(ours.vocab_size))
    assert ours.convert_tokens_to_ids(tokens) == list(range(ours.vocab_size))
    assert ours.get_vocab() == {token: i for i, token in enumerate(tokens)}
    assert ours.tokenize("User: 你好") == ["User", ":", " ", "你", "好"]
    text = "naïve 🦊 \x00"
    assert ours.convert_tokens_to_string(ours.tokenize(text)) == text


def test_token_names_of_bytes_and_of_ids_without_bytes() -> None:
    ours = HfTokenizer(BytesTokenizer())
    assert ours.tokenize("é!") == ["<0xC3>", "<0xA9>", "!"]
    assert ours.convert_ids_to_tokens(0) == END_OF_TEXT_NAME
    assert ours.convert_ids_to_tokens([0, 34], skip_special_tokens=True) == ["!"]
    assert ours.convert_tokens_to_ids(["!", "nonsense"]) == [34, None]
    with pytest.raises(ValueError, match="'nonsense' is no token of bytes"):
        ours.convert_tokens_to_string(["!", "nonsense"])


def test_a_chat_template_is_the_chat_format() -> None:
    ours = HfTokenizer(BytesTokenizer(), open_chat(ChatSettings("rwkv"), None))
    messages = [{"role": "user", "content": "a"}]
    text = "User: a\n\nAssistant:"
    assert ours.chat_template is None
    assert ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    assert ours.apply_chat_template(messages, add_generation_prompt=True) == ours.encode(text)
    assert ours.apply_chat_template([messages, messages], tokenize=False) == ["User: a"] * 2
    found = ours.apply_chat_template(messages, return_dict=True, return_tensors="pt")
    assert ours.decode(found.input_ids[0]) == "User: a"
    begun = [*messages, {"role": "assistant", "content": "b"}]
    assert ours.apply_chat_template(begun, tokenize=False, continue_final_message=True) == f"{text} b"
    with pytest.raises(ValueError, match="got both"):
        ours.apply_chat_template(messages, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(ValueError, match="no chat format"):
        HfTokenizer(BytesTokenizer()).apply_chat_template(messages)


def test_a_chat_template_of_jinja_gets_tools_and_further_names(tmp_path: Path) -> None:
    template = "{{ messages[0].content }} {{ tools | length }} {{ enable_thinking }} {{ add_generation_prompt }}"
    (tmp_path / "chat.jinja").write_text(template)
    settings = ChatSettings("template", template=str(tmp_path / "chat.jinja"))
    ours = HfTokenizer(BytesTokenizer(), open_chat(settings, None))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    given: dict[str, Any] = {"tools": [tool], "enable_thinking": False, "add_generation_prompt": True}
    assert ours.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, **given) == "a 1 False True"
    assert ours.chat_template == template


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda one: one("a", return_offsets_mapping=True), TypeError, "no argument 'return_offsets_mapping'"),
        (lambda one: one(["a", "bc"], return_tensors="pt"), ValueError, "pass padding=True"),
        (lambda one: one(["a"], return_tensors="tf"), ValueError, "got 'tf', expected 'pt', 'np' or None"),
        (lambda one: one("\ud800"), ValueError, "lone surrogate"),
        (lambda one: one("a").offsets, AttributeError, "no attribute 'offsets', expected one of input_ids"),
        (lambda one: one.apply_chat_template([], chat_template="{}"), ValueError, "name it where the model is opened"),
    ],
)
def test_what_is_not_there_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(HfTokenizer(BytesTokenizer(), open_chat(ChatSettings("rwkv"), None)))


def test_a_program_may_set_the_padding() -> None:
    ours = HfTokenizer(BytesTokenizer())
    ours.pad_token, ours.pad_token_id = "!", 34
    assert ours(["a", "bc"], padding=True).input_ids == [[98, 34], [99, 100]]
    ours.pad_token_id = None
    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token_id = 0"):
        ours(["a", "bc"], padding=True)
