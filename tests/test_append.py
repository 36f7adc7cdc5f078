"""Append, overwrite and what counts as a change: files are known by what they hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import open_version, verify
from lance_prep.engine import Silent
from lance_prep.errors import OutputExists, SourceChanged, UsageError
from tests import tokenizers_made as made
from tests.helpers import rows_of
from tests.loopback_hub import LoopbackHub
from tests.sources import parquet_bytes


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    return {"tokenizer": tokenizer, "layout": "documents", "shuffle_batch_size": 50, "shard_size": 2000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a", "b"):
        write(folder / f"{name}.parquet", name)
    return folder


def write(path: Path, word: str, rows: int = 200) -> None:
    pq.write_table(pa.table({"text": [f"{word} {i}" for i in range(rows)]}), path, row_group_size=50)


def test_append_reads_only_what_is_new(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    first = lance_prep.build(folder, output=output, **fields)
    before = rows_of(output)
    write(folder / "c.parquet", "c")
    with pytest.raises(SourceChanged, match=r"1 new \(.*c.parquet\)") as caught:
        lance_prep.build(folder, output=output, **fields)
    assert "append=True" in caught.value.advice
    second = lance_prep.build(folder, output=output, append=True, **fields)
    assert (second.version, second.rows, second.ledger.rows_in) == (2, 600, 600)
    assert second.content_hash != first.content_hash
    after = rows_of(output)
    assert after[:400] == before
    assert rows_of(output, version=1) == before
    version = open_version(output)
    assert [[file.url for file in version.files_of_build(build)] for build in version.builds] == [
        [str(folder / "a.parquet"), str(folder / "b.parquet")],
        [str(folder / "c.parquet")],
    ]
    shards = {row["doc_id"] >> 40 for row in after[400:]}
    assert min(shards) == version.builds[0].shards
    assert verify(output).problems == []
    again = lance_prep.build(folder, output=output, append=True, **fields)
    assert (again.status, again.version) == ("unchanged", 2)
    assert lance_prep.build(folder, output=output, **fields).status == "unchanged"


def test_appended_rows_are_those_of_a_build_of_their_own(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    lance_prep.build(folder, output=tmp_path / "o.lance", **fields)
    write(folder / "c.parquet", "c")
    lance_prep.build(folder, output=tmp_path / "o.lance", append=True, **fields)
    alone = lance_prep.build(folder / "c.parquet", output=tmp_path / "c.lance", **fields)
    texts = sorted(row["input_ids"] for row in rows_of(tmp_path / "o.lance")[400:])
    assert texts == sorted(row["input_ids"] for row in rows_of(alone.uri))


def test_a_file_that_was_touched_or_renamed_is_the_same(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    os.utime(folder / "a.parquet", ns=(1, 1))
    assert lance_prep.build(folder, output=output, **fields).status == "unchanged"
    (folder / "a.parquet").rename(folder / "c.parquet")
    assert lance_prep.build(folder, output=output, append=True, **fields).status == "unchanged"


def test_a_second_copy_is_a_new_file(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    """As many rows as a fresh build of the same folder has, whatever was copied, touched, renamed or removed."""
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    shutil.copy2(folder / "a.parquet", folder / "aa.parquet")
    with pytest.raises(SourceChanged, match=r"1 new \(.*aa.parquet\)"):
        lance_prep.build(folder, output=output, **fields)
    assert lance_prep.build(folder, output=output, append=True, **fields).rows == 600
    os.utime(folder / "a.parquet", ns=(1, 1))
    (folder / "aa.parquet").rename(folder / "z.parquet")
    assert lance_prep.build(folder, output=output, **fields).status == "unchanged"
    shutil.copy(folder / "z.parquet", folder / "0.parquet")
    assert lance_prep.build(folder, output=output, append=True, **fields).rows == 800
    assert lance_prep.build(folder, output=tmp_path / "fresh.lance", **fields).rows == 800
    (folder / "z.parquet").unlink()
    with pytest.raises(SourceChanged, match="1 gone") as caught:
        lance_prep.build(folder, output=output, **fields)
    assert "append" not in caught.value.advice  # there is nothing to add


def test_files_that_trade_places_are_the_same(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (folder / f"{old}.parquet").rename(folder / f"{new}.parquet")
    assert lance_prep.build(folder, output=output, **fields).status == "unchanged"
    (folder / "a.parquet").rename(folder / "a.1.parquet")
    write(folder / "a.parquet", "z")
    assert lance_prep.build(folder, output=output, append=True, **fields).rows == 600  # rotated, as logs are
    write(folder / "b.parquet", "y")
    with pytest.raises(SourceChanged, match="1 changed"):
        lance_prep.build(folder, output=output, append=True, **fields)


def test_a_file_that_changed_in_place_is_refused(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    write(folder / "a.parquet", "z")
    for append in (False, True):
        with pytest.raises(SourceChanged, match=r"1 changed \(.*a.parquet\)") as caught:
            lance_prep.build(folder, output=output, append=append, **fields)
        assert "overwrite=True" in caught.value.advice
    assert lance_prep.build(folder, output=output, overwrite=True, **fields).version == 2
    assert verify(output).problems == []
    assert verify(output, 1).problems == []


def test_a_file_that_is_gone(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    (folder / "a.parquet").unlink()
    with pytest.raises(SourceChanged, match="1 gone"):
        lance_prep.build(folder, output=output, **fields)


def test_append_of_another_recipe_is_refused(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    write(folder / "c.parquet", "c")
    with pytest.raises(OutputExists, match="seed was 1337, now 5"):
        lance_prep.build(folder, output=output, append=True, seed=5, **fields)
    with pytest.raises(UsageError, match="exclude each other"):
        lance_prep.build(folder, output=output, append=True, overwrite=True, **fields)


def test_force_replaces_a_dataset_of_other_options(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    arguments = ["build", str(folder), "-o", str(tmp_path / "o.lance"), "--tokenizer", fields["tokenizer"]]
    assert run(arguments) == 0
    write(folder / "c.parquet", "c")
    assert run(arguments) == 1
    assert run([*arguments, "--block-size", "64"]) == 1
    assert run([*arguments, "--block-size", "64", "--force"]) == 0
    assert lance.dataset(str(tmp_path / "o.lance")).version == 2


def test_skip_existing_leaves_a_dataset_alone(
    tmp_path: Path, folder: Path, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(folder), "-o", str(tmp_path / "o.lance"), "--tokenizer", fields["tokenizer"]]
    assert run([*arguments, "--skip-existing"]) == 0
    capsys.readouterr()
    write(folder / "c.parquet", "c")
    assert run([*arguments, "--block-size", "64", "--skip-existing"]) == 0
    assert "exists and was left alone: version 1" in capsys.readouterr().out
    assert lance.dataset(str(tmp_path / "o.lance")).version == 1
    assert run([*arguments, "--skip-existing", "--append"]) == 2
    assert "--append and --skip-existing exclude each other" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert run([*arguments, "--skip-existing"]) == 0


def test_an_unfinished_build_of_another_recipe_is_not_thrown_away(
    tmp_path: Path, folder: Path, fields: dict[str, Any]
) -> None:
    output = tmp_path / "o.lance"
    (folder / "z.parquet").write_bytes((folder / "a.parquet").read_bytes())
    damage(folder / "z.parquet")
    with pytest.raises(lance_prep.LancePrepError):
        lance_prep.build(folder, output=output, **fields)
    assert not (output / "_versions").exists()
    assert list((output / ".lance_prep" / "builds").glob("*/shard-*.json"))
    with pytest.raises(OutputExists, match="unfinished build by another recipe: seed was 1337, now 5"):
        lance_prep.build(folder, output=output, seed=5, **fields)
    (folder / "z.parquet").unlink()
    lance_prep.build(folder, output=output, overwrite=True, seed=5, **fields)
    used = {file for fragment in lance.dataset(str(output)).get_fragments() for file in _files(fragment)}
    assert {path.name for path in (output / "data").iterdir()} == used


def _files(fragment: Any) -> list[str]:
    return [file["path"] for file in fragment.metadata.to_json()["files"]]


def damage(path: Path) -> None:
    """Break the pages of a Parquet file, not its footer: found only when it is read."""
    data = bytearray(path.read_bytes())
    data[8:60] = bytes(52)
    path.write_bytes(bytes(data))


def test_a_newer_revision_of_a_hub_dataset(tmp_path: Path, hub: LoopbackHub, fields: dict[str, Any]) -> None:
    files = {f"data/train-{i}.parquet": parquet_bytes({"text": [f"{i} {k}" for k in range(100)]}) for i in range(2)}
    old = hub.add_dataset("owner/grows", files)
    output = tmp_path / "o.lance"
    lance_prep.build("owner/grows", output=output, **fields)
    extra = {"data/train-2.parquet": parquet_bytes({"text": [f"2 {k}" for k in range(100)]})}
    new = hub.add_dataset("owner/grows", {**files, **extra})
    with pytest.raises(SourceChanged, match="1 new"):
        lance_prep.build("owner/grows", output=output, **fields)
    sent = len(hub.requests("train-0|train-1"))
    report = lance_prep.build("owner/grows", output=output, append=True, **fields)
    assert (report.version, report.rows) == (2, 300)
    version = open_version(output)
    assert [build.commit for build in version.builds] == [old, new]
    assert version.metadata.source.commit == new
    # Of the files that are in already, nothing but footers is asked for again.
    assert len(hub.requests("train-0|train-1")) - sent <= 4


def test_appended_rows_take_the_types_of_those_that_are_there(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"title": "T1", "text": "X1"}\n')
    raw = {"layout": "raw", "shuffle": False}
    lance_prep.build(folder, output=tmp_path / "raw.lance", **raw)
    lance_prep.build(folder, output=tmp_path / "kept.lance", keep_columns=("title",), **fields)
    # It comes first in the folder, with its keys in another order.
    (folder / "a.jsonl").write_text('{"text": "X2", "title": "T2"}\n')
    lance_prep.build(folder, output=tmp_path / "raw.lance", append=True, **raw)
    assert rows_of(tmp_path / "raw.lance") == [{"title": "T1", "text": "X1"}, {"title": "T2", "text": "X2"}]
    lance_prep.build(folder, output=tmp_path / "kept.lance", append=True, keep_columns=("title",), **fields)
    assert [row["title"] for row in rows_of(tmp_path / "kept.lance")] == ["T1", "T2"]
    for name in ("raw", "kept"):
        assert verify(tmp_path / f"{name}.lance").problems == []


def test_a_file_that_changes_after_it_was_read_is_noticed(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    class Meddler(Silent):
        """Rewrites a source file, to the same size, once its shards are done."""

        def finished(self, receipt: Any) -> None:
            stat = (folder / "a.parquet").stat()
            os.utime(folder / "a.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    with pytest.raises(SourceChanged):
        lance_prep.build(folder, output=tmp_path / "o.lance", progress=Meddler(), workers=1, **fields)
    assert not (tmp_path / "o.lance" / "_versions").exists()


def test_an_append_without_rows_takes_no_shard_numbers(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    lance_prep.build(folder, output=output, **fields)
    empty = pa.table({"text": pa.array([], pa.string())})
    for name, rows in (("c", empty), ("d", None)):
        if rows is not None:
            pq.write_table(rows, folder / f"{name}.parquet")
        else:
            write(folder / f"{name}.parquet", name)
        lance_prep.build(folder, output=output, append=True, **fields)
    ids = [row["doc_id"] for row in rows_of(output)]
    assert len(ids) == 600
    assert len(set(ids)) == len(ids)


def test_back_to_an_earlier_recipe(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    output = tmp_path / "o.lance"
    for version, seed in enumerate((1, 2, 1), start=1):
        assert lance_prep.build(folder, output=output, seed=seed, overwrite=version > 1, **fields).version == version
    for version in (1, 2, 3):
        assert verify(output, version).problems == []


def test_the_quarantine_file_is_of_the_whole_version(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\nbad {name}\n')
        report = lance_prep.build(folder, output=tmp_path / "o.lance", append=name == "b", **fields)
    assert report.ledger.rejected == 2
    lines = [json.loads(line)["text"] for line in Path(str(report.rejected_file)).read_text().splitlines()]
    assert lines == ["bad a", "bad b"]
    assert lance_prep.build(folder, output=tmp_path / "o.lance", **fields).rejected_file == report.rejected_file


def test_a_copy_in_the_place_of_its_original(tmp_path: Path, folder: Path, fields: dict[str, Any]) -> None:
    lance_prep.build(folder, output=tmp_path / "o.lance", **fields)
    shutil.copy(folder / "a.parquet", folder / "z.parquet")
    (folder / "a.parquet").unlink()
    assert lance_prep.build(folder, output=tmp_path / "o.lance", **fields).status == "unchanged"
