"""The options of an object store serve everything that a dataset there needs, and are never written or shown."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.engine import RunOptions
from lance_prep.errors import LancePrepError
from lance_prep.hub import PushOptions, push
from lance_prep.store import Output, open_version
from lance_prep.train import LanceDataset
from tests import tokenizers_made as made
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.processes import finish, start, write_texts
from tests.s3_server import S3, Flaky

URI = "s3://bucket/folder/x.lance"
KEY, SECRET, SESSION = "AKIAQ4MZXNOTAREALKEY", "wJalrXUtnFEMI+K7MDENG/bPxRfiCYNOTREAL", "FwoGZXIvYXdzENOTAREALTOKEN"
SECRETS = (KEY, SECRET, SESSION)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("s") / "texts", files=2, rows=100)


@pytest.fixture
def options(s3: S3) -> dict[str, str]:
    """As Lance names them; nothing is in the environment."""
    return {
        **s3.options,
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "aws_session_token": SESSION,
    }


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let temporary files and caches be in the test's folder, so that what is left of them is looked at."""
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


def as_arguments(options: dict[str, str]) -> list[str]:
    return [part for pair in options.items() for part in ("--storage-option", "=".join(pair))]


def check_absent(text: str | bytes, where: object) -> None:
    data = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in data, f"{where} has {secret}"


def check_stored(s3: S3, *folders: Path) -> None:
    """Check that no object and no file below these folders has a secret."""
    for name in s3.names("bucket"):
        check_absent(name, "a name")
        check_absent(s3.files.cat(name), name)
    for folder in folders:
        for path in folder.rglob("*"):
            check_absent(str(path), "a name")
            if path.is_file():
                check_absent(path.read_bytes(), path)


def test_secrets_are_neither_written_nor_shown(
    s3: S3, options: dict[str, str], texts: str, tokenizer: str, tmp_path: Path, capfd: Any
) -> None:
    s3.files.put(texts, "bucket/in", recursive=True)
    given = as_arguments(options)
    small = ["--tokenizer", tokenizer, "--block-size", "64"]
    for arguments in (
        ["build", "s3://bucket/in/0.jsonl", "-o", URI, *small, "--val-fraction", "0.2"],
        ["build", "s3://bucket/in/*", "-o", URI, *small, "--val-fraction", "0.2", "--append"],
        ["build", "s3://bucket/in/*", "-o", str(tmp_path / "local.lance"), *small],
        ["info", URI],
        ["show", URI, "--limit", "1"],
        ["versions", URI],
        ["tag", URI, "t"],
        ["sql", URI, "select count(*) from dataset"],
        ["verify", URI, "--deep", "--against-source"],
        ["export", URI, "-o", str(tmp_path / "export")],
        ["compact", URI],
        ["prune", URI, "--older-than", "0m"],
    ):
        code = run([*arguments, *given])
        out, err = capfd.readouterr()
        assert code == 0, (arguments, err)
        check_absent(out, arguments)
        check_absent(err, arguments)
    check_stored(s3, tmp_path)


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_does_not_show_them(
    s3: S3, flaky: Flaky, options: dict[str, str], texts: str, tokenizer: str, tmp_path: Path, capfd: Any, debug: bool
) -> None:
    """The answer of S3 to a wrong signature repeats the name of the key and the session token."""
    lance_prep.build(f"{texts}/0.jsonl", output=URI, tokenizer=tokenizer, block_size=64, storage_options=options)
    said = f"SignatureDoesNotMatch</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId>"
    said += f"<CanonicalRequest>x-amz-security-token:{SESSION}</CanonicalRequest><Code>"
    given = as_arguments({**options, "aws_endpoint_url": flaky.url})
    for arguments in (
        ["build", "s3://bucket/in", "-o", str(tmp_path / "y.lance"), "--tokenizer", tokenizer],
        ["build", texts, "-o", "s3://bucket/y.lance", "--tokenizer", tokenizer],
        ["build", texts, "-o", URI, "--tokenizer", tokenizer, "--append"],
        ["verify", URI],
        ["export", URI, "-o", str(tmp_path / "export")],
    ):
        flaky.faults = [(".", 403, said)] * 200
        if debug:
            with pytest.raises(LancePrepError, match="refuses access") as caught:
                run([*arguments, *given, "--debug"])
            check_absent("".join(traceback.format_exception(caught.value)), arguments)
        else:
            assert run([*arguments, *given]) == 1
        out, err = capfd.readouterr()
        assert debug or "refuses access" in err, (arguments, err)
        check_absent(out + err, arguments)
    flaky.faults = []
    check_stored(s3, tmp_path)


def test_a_process_that_fails_with_debug_does_not_print_them(
    flaky: Flaky, options: dict[str, str], texts: str, tokenizer: str
) -> None:
    flaky.faults = [(".", 403, "InvalidAccessKeyId")] * 200
    given = as_arguments({**options, "aws_endpoint_url": flaky.url})
    environment = {"LANCE_LOG": "debug", "RUST_BACKTRACE": "1"}
    process = start("build", texts, "-o", URI, "--tokenizer", tokenizer, "--debug", *given, environment=environment)
    code, out, err = finish(process)
    assert code == 1
    assert "Traceback" in err
    check_absent(out + err, "the output")


def test_no_object_shows_them(options: dict[str, str], texts: str, tokenizer: str) -> None:
    lance_prep.build(f"{texts}/0.jsonl", output=URI, tokenizer=tokenizer, block_size=64, storage_options=options)
    opened = open_version(URI, storage_options=options)
    shown: list[Any] = [
        RunOptions(URI, storage_options=options, source_storage_options=options),
        Output.at(URI, options),
        PushOptions(storage_options=options),
        opened,
        opened.transport,
        opened.files,
        LanceDataset(URI, block_size=64, storage_options=options),
    ]
    for one in shown:
        check_absent(f"{one!r} {one!s}", type(one))
    with pytest.raises(LancePrepError) as caught:
        open_version("s3://bucket/none.lance", storage_options=options)
    check_absent("".join(traceback.format_exception(caught.value)), "a traceback")


def test_one_set_of_options_reaches_everything(
    s3: S3, options: dict[str, str], texts: str, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer, the journal and the cached index of a dataset in a store that needs its options."""
    path = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    fields: dict[str, Any] = {"tokenizer": path, "layout": "documents"}
    local = lance_prep.build(texts, output=tmp_path / "x.lance", **fields)
    remote = lance_prep.build(texts, output=URI, storage_options=options, **fields)
    assert remote.content_hash == local.content_hash
    for file in Path(path).rglob("*.json"):
        file.unlink()  # nothing but the dataset has the tokenizer now
    theirs, ours = (
        LanceDataset(local.uri, block_size=64),
        LanceDataset(URI, block_size=64, storage_options=options),
    )
    assert ours.text(3) == theirs.text(3)
    assert len(ours) == len(theirs)
    for index in (0, len(ours) // 2, -1):
        assert {name: value.tolist() for name, value in ours[index].items()} == {
            name: value.tolist() for name, value in theirs[index].items()
        }
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for source, repo in ((local.uri, "owner/local"), (URI, "owner/remote")):
        assert not push(source, repo, PushOptions(storage_options=options if source == URI else None)).up_to_date
    sent, expected = hub.files("owner/remote"), hub.files("owner/local")
    # In a store, the name of a receipt has a hash of its content, and a list records which receipts count.
    random = r"[\w-]+(?=\.lance$|\.txn$)|builds/\w+|lists/\w+|(?<=/shard-000000)-\w+"
    assert {re.sub(random, "", name) for name in sent} == {re.sub(random, "", name) for name in expected}
    assert len(sent) == len(expected) + 1
    for name in s3.names("bucket/folder/x.lance/data"):
        assert sent[f"data/train.lance/data/{name.rpartition('/')[2]}"] == s3.files.cat(name)
    for name, data in sent.items():
        check_absent(data, name)
        assert s3.url.encode() not in data, name
    assert push(URI, "owner/remote", PushOptions(storage_options=options)).up_to_date
    assert LanceDataset("hf://datasets/owner/remote/data/train.lance", block_size=64).text(3) == theirs.text(3)
