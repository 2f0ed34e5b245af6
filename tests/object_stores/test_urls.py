"""Addresses in object stores."""

from __future__ import annotations

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.object_stores.urls import Address, checked_url, is_url, split_url


def test_an_address_is_split() -> None:
    assert split_url("gs://bucket/a b/c") == Address("gs", "bucket", "a b/c")
    assert is_url("s3://a/b") and not is_url("file:///a/b") and not is_url("/a/b")
    assert checked_url("az://container/a//", "output.path") == "az://container/a"


def test_an_error_names_the_setting_and_what_it_takes() -> None:
    with pytest.raises(ConfigurationError, match=r"model: got 's3://b': expected a file in a bucket, such as s3://b"):
        checked_url("s3://b", "model", "file", "m.pth")
    with pytest.raises(ConfigurationError, match=r"output\.path: got 'ftp://b/a': .* or a folder on a local disk"):
        checked_url("ftp://b/a", "output.path")
