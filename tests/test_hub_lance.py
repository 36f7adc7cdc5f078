"""Lance datasets on the Hub: as the source of a build, in `info`, `show` and `verify`, each at one commit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.errors import SourceNotFound
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.sources import plan_of
from tests.sources import rows_of as rows_read

URL = "hf://datasets/owner/name/data/train.lance"


def files_of(folder: Path, at: str) -> dict[str, bytes]:
    """Return the files of a dataset, with their paths in a repository."""
    return {f"{at}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def noise(seed: int) -> str:
    """Return text that does not compress."""
    return hashlib.sha512(str(seed).encode()).hexdigest() * 2


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"text": noise(i), "source": "rare" if i % 500 == 7 else "web", "n": i, "x": noise(-i)} for i in range(count)
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset of 4,000 records, most of whose bytes are in `text` and `x`."""
    home = tmp_path_factory.mktemp("raw")
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(4000)))
    lance_prep.build(home / "a.jsonl", output=home / "train.lance", layout="raw", shuffle=False)
    return home / "train.lance"


@pytest.mark.parametrize("filter", [None, "source = 'rare'", "n >= 3000 AND n < 3010", "n < 0"])
def test_a_build_equals_that_of_a_local_copy(
    hub: LoopbackHub, raw: Path, tmp_path: Path, tokenizer: str, filter: str | None
) -> None:
    hub.add_dataset("owner/name", files_of(raw, "data/train.lance"))
    options: dict[str, Any] = {"tokenizer": tokenizer, "layout": "documents", "keep_columns": ["n"], "filter": filter}
    remote = lance_prep.build(URL, output=tmp_path / "r.lance", shard_size=100_000, **options)
    local = lance_prep.build(str(raw), output=tmp_path / "l.lance", shard_size=100_000, **options)
    assert remote.content_hash == local.content_hash
    assert remote.ledger == local.ledger
    assert remote.ledger.rows_in == 4000
    assert lance.dataset(remote.uri).to_table() == lance.dataset(local.uri).to_table()


def test_only_the_columns_and_rows_that_are_needed_are_asked_for(
    hub: LoopbackHub, raw: Path, tmp_path: Path, tokenizer: str
) -> None:
    hub.add_dataset("owner/name", files_of(raw, "data/train.lance"))
    sent = {}
    for name, options in {
        "all": {"layout": "raw"},
        "text": {"tokenizer": tokenizer, "text_column": "text"},
        "rare": {"tokenizer": tokenizer, "text_column": "text", "filter": "n >= 3000 AND n < 3010"},
    }.items():
        hub.log.clear()
        lance_prep.build(URL, output=tmp_path / f"{name}.lance", **options)
        sent[name] = hub.bytes_sent("GET .*/data/train.lance/data/")
    assert sent["text"] < 0.7 * sent["all"]
    assert sent["rare"] < 0.4 * sent["text"]


@pytest.mark.parametrize("source", ["owner/name", "hf://datasets/owner/name/data/*.lance", "hf://datasets/owner/name"])
def test_a_dataset_is_found_by_the_repository_and_by_a_glob(hub: LoopbackHub, raw: Path, source: str) -> None:
    paths = "[data/train.lance/_versions/*.manifest, data/train.lance/data/*.lance]"
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {paths}\n---\n".encode()
    sha = hub.add_dataset("owner/name", {"README.md": card, **files_of(raw, "data/train.lance")})
    (file,) = plan_of(source, layout="raw").files
    assert (file.format, file.url) == ("lance", f"hf://datasets/owner/name@{sha}/data/train.lance")


def test_a_build_reads_the_commit_that_was_planned(hub: LoopbackHub, raw: Path, tmp_path: Path) -> None:
    first = hub.add_dataset("owner/name", files_of(raw, "data/train.lance"))
    plan = plan_of(URL, layout="raw")
    lance.write_dataset(pa.table({"other": [1]}), str(tmp_path / "o.lance"))
    repo = hub.repos["datasets/owner/name"]
    second = hub.add_dataset("owner/name", {})
    repo.commits[second] = files_of(tmp_path / "o.lance", "data/train.lance")
    rows, _ = rows_read(plan)
    assert [row["n"] for row in rows] == list(range(4000))
    (file,) = plan_of(URL, layout="raw", revision=first).files
    assert file == plan.files[0]
    with pytest.raises(SourceNotFound, match="no revision 'nosuch'"):
        plan_of(URL, revision="nosuch")


def test_info_show_versions_and_verify(
    hub: LoopbackHub, raw: Path, tmp_path: Path, tokenizer: str, capsys: Any
) -> None:
    built = lance_prep.build(
        str(raw), output=tmp_path / "t.lance", tokenizer=tokenizer, text_column="text", block_size=64
    )
    first = hub.add_dataset("owner/name", files_of(tmp_path / "t.lance", "data/train.lance"))
    hub.repos["datasets/owner/name"].commits[hub.add_dataset("owner/name", {})] = {}
    at = f"hf://datasets/owner/name@{first}/data/train.lance"
    assert lance_prep.info(at).metadata.content_hash == built.content_hash
    assert lance_prep.verify(at).problems == []
    assert [version.number for version in lance_prep.versions(at)] == [1]
    shown = {}
    for place in (at, str(tmp_path / "t.lance")):
        capsys.readouterr()
        assert run(["show", place, "--limit", "2"]) == 0
        shown[place] = capsys.readouterr().out
    assert shown[at] == shown[str(tmp_path / "t.lance")]
    assert run(["info", URL]) == 1
    assert "there is no dataset at hf://datasets/owner/name" in (err := capsys.readouterr().err)
    assert "hf://datasets/owner/name/data/train.lance" in err.partition("try: ")[2]


def test_a_private_dataset_is_read_with_a_token(
    hub: LoopbackHub, raw: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_dataset("owner/name", files_of(raw, "data/train.lance"), private=True)
    counting = ["sql", URL, "select count(*) as n from dataset", "--json"]
    assert run(counting) == 1
    assert "hf auth login" in capsys.readouterr().err
    assert run([*counting, "--storage-option", f"hf_token={TOKEN}"]) == 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(counting) == 0
    assert capsys.readouterr().out.count('{"n": 4000}') == 2


def test_no_command_writes_to_a_dataset_on_the_hub(hub: LoopbackHub, raw: Path, capsys: Any) -> None:
    hub.add_dataset("owner/name", files_of(raw, "data/train.lance"))
    hub.log.clear()
    for arguments in (
        ["tag", URL, "v1"],
        ["compact", URL],
        ["prune", URL, "--older-than", "7d"],
        ["restore", URL, "1"],
    ):
        assert run(arguments) == 2, arguments
        assert "is on the Hub, where datasets are only read" in capsys.readouterr().err
    assert run(["build", "sample", "--tokenizer", "lance-prep:sample", "-o", URL]) == 2
    assert "lance-prep push" in capsys.readouterr().err
    assert {request["method"] for request in hub.log} <= {"GET", "HEAD"}
