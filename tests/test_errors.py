"""Other libraries' errors as ours, and what a message may show."""

from __future__ import annotations

import pytest

from lance_prep import errors
from lance_prep.errors import (
    BadFile,
    HubUnreachable,
    LancePrepError,
    OutputError,
    SourceNotFound,
    StoreUnreachable,
    translate,
    translate_output,
    translating,
    without_credentials,
)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    classes = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, Exception)}
    assert classes <= set(errors.__doc__.split())


def test_errors_are_translated_with_their_cause() -> None:
    original = EOFError("short")
    with pytest.raises(BadFile) as caught, translating("reading a.gz"):
        raise original
    assert str(caught.value) == "reading a.gz: cut short (short)"
    assert caught.value.__cause__ is original
    with pytest.raises(OutputError) as caught, translating("/x.lance", translate_output):
        raise OSError("boom")
    assert str(caught.value) == "writing /x.lance: boom"


@pytest.mark.parametrize("error", [ZeroDivisionError(), HubUnreachable("x", "y"), KeyboardInterrupt()])
def test_what_is_ours_or_unknown_passes_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translating("reading x"):
        raise error
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError("slow"), OSError(16, "SlowDown")])
def test_connections_fail_to_what_was_asked(error: Exception) -> None:
    store = translate(error, "reading s3://bucket/x.parquet")
    assert isinstance(store, StoreUnreachable)
    assert "HF_ENDPOINT" not in store.advice
    if not isinstance(error, ConnectionError | TimeoutError):
        return
    assert isinstance(translate(error, "reading hf://datasets/o/n@main/x.parquet"), HubUnreachable)
    assert isinstance(translate(error, "dataset o/n"), HubUnreachable)


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "https"])
def test_a_server_has_no_bucket(scheme: str) -> None:
    error = translate(ConnectionRefusedError(111, "refused"), f"listing {scheme}://host/x.jsonl")
    assert isinstance(error, StoreUnreachable)
    assert "the server does not answer" in str(error)
    assert "bucket" not in error.advice


def test_a_missing_object_is_not_a_missing_local_file() -> None:
    error = translate(FileNotFoundError(2, "x", "bucket/x"), "reading s3://bucket/x")
    assert isinstance(error, SourceNotFound)
    assert "bucket" in str(error)
    assert "bucket" in error.advice


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("reading sftp://user:pa@ss@host:22/a/b.jsonl: gone", "reading sftp://host:22/a/b.jsonl: gone"),
        ("https://host/a.parquet?X-Amz-Signature=abc&b=c#frag", "https://host/a.parquet#frag"),
        ("s3://key@bucket/a?.jsonl and s3://b/*.csv", "s3://bucket/a?.jsonl and s3://b/*.csv"),
        ("hf://datasets/owner/name@refs%2Fpr%2F1/a", "hf://datasets/owner/name@refs%2Fpr%2F1/a"),
        ("a local/path?x=y@z", "a local/path?x=y@z"),
    ],
)
def test_urls_lose_user_password_and_query(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_a_library_that_says_the_url_does_not_say_its_password() -> None:
    error = translate(ConnectionError("cannot reach sftp://u:secret@h/x"), "reading sftp://u:secret@h/x")
    assert isinstance(error, StoreUnreachable)
    assert "secret" not in str(error)


def test_errors_keep_their_advice_through_a_pickle() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(StoreUnreachable("what", "how")))
    assert isinstance(error, LancePrepError)
    assert (str(error), error.advice) == ("what", "how")
