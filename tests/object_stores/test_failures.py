"""What went wrong at an object store, in words."""

from __future__ import annotations

import errno

import pytest

from rwkv_batch.object_stores.failures import failure, is_final, status_of

QUERY = "https://x/y?sv=1&sig=SECRET"
ANSWER = "Server returned non-2xx status code: {}: <?xml?><Error><Code>{}</Code><Message>some words</Message></Error>"


def test_a_reason_has_no_query_of_an_address() -> None:
    text = f"Generic Azure error: Error performing GET {QUERY} in 1ms - failed at {QUERY}"
    found = failure("az://bucket/a", Exception(text))
    assert "SECRET" not in f"{found.reason} {found.advice}" and "https://x/y" in found.reason


@pytest.mark.parametrize(
    ("scheme", "error", "code", "advice"),
    [
        ("s3", ANSWER.format(403, "AccessDenied"), errno.EACCES, "AWS_ACCESS_KEY_ID"),
        ("gs", ANSWER.format(403, "AccessDenied"), errno.EACCES, "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az", ANSWER.format(404, "ContainerNotFound"), errno.ENOTDIR, "make the bucket first"),
        ("s3", ANSWER.format(412, "PreconditionFailed"), errno.ESTALE, "another process has replaced it"),
        ("s3", ANSWER.format(503, "SlowDown"), errno.EREMOTEIO, "see the log of the store"),
        ("az", "connection refused", errno.EHOSTUNREACH, "AZURE_STORAGE_ENDPOINT"),
    ],
)
def test_each_failure_has_a_number_and_advice(scheme: str, error: str, code: int, advice: str) -> None:
    found = failure(f"{scheme}://bucket/a", Exception(error))
    assert found.code == code and advice in found.advice and found.reason


def test_a_reason_is_one_line() -> None:
    text = ANSWER.format(404, "ContainerNotFound").replace("some words", "No such one.\nRequestId:1\nTime:2")
    assert failure("az://box/a", Exception(text)).reason == "ContainerNotFound: No such one."


@pytest.mark.parametrize(("status", "expected"), [(400, True), (403, True), (409, False), (429, False), (503, False)])
def test_another_try_may_help(status: int, expected: bool) -> None:
    error = Exception(ANSWER.format(status, "Code"))
    assert (status_of(error), is_final(error)) == (status, expected)
