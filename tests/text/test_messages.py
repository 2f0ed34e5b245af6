"""Conversations in every form that tables hold them in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.text.messages import plain_messages

PLAIN = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "é"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a", "image_url": None}, "b"], "name": None},
    {"role": "assistant", "content": [{"type": "output_text", "text": "é"}]},
]
LISTS = {"role": ["user", "assistant"], "content": ["ab", "é"]}


@pytest.mark.parametrize(
    "messages",
    [
        PLAIN,
        PARTS,
        LISTS,
        {"role": [message["role"] for message in PARTS], "content": [message["content"] for message in PARTS]},
        json.dumps(PLAIN),
        json.dumps(PARTS, ensure_ascii=False).encode(),
        json.dumps(LISTS),
        [{name: text.encode() for name, text in message.items()} for message in PLAIN],
    ],
    ids=["plain", "parts", "lists", "lists of parts", "JSON text", "JSON bytes", "JSON of lists", "bytes"],
)
def test_every_form_has_the_same_messages(messages: Any):
    assert plain_messages(messages) == PLAIN


@pytest.mark.parametrize(
    ("messages", "code", "named"),
    [
        (None, "bad_messages", "NoneType"),
        ("{", "bad_messages", "not JSON"),
        ("[" * 100_000, "bad_messages", "not JSON"),
        ("5", "bad_messages", "type int"),
        (b"[\xff]", "invalid_text", "UTF-8"),
        ({"role": ["user"], "content": []}, "bad_messages", "one length"),
        ({"role": "user", "content": "x"}, "bad_messages", "a list of messages"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "bad_messages", "text only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "bad_messages", "NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": b"\xff"}]}], "invalid_text", "UTF-8"),
        ([{"role": "assistant", "content": None}], "bad_messages", "message 0 (role 'assistant')"),
        ([{"role": "user", "content": {"type": "text"}}], "bad_messages", "type dict"),
    ],
)
def test_what_is_no_conversation_of_texts(messages: Any, code: str, named: str):
    with pytest.raises(RowError) as caught:
        plain_messages(messages)
    assert caught.value.code == code
    assert named in str(caught.value)
