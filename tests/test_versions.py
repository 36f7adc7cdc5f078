"""A dataset's history: versions, tags, restore, diff, compact and prune, through the command line and the library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import (
    compact,
    delete_tag,
    diff_versions,
    list_versions,
    open_version,
    prune,
    restore,
    tag,
    verify,
)
from lance_prep.errors import DatasetError, LancePrepError, OutputLocked, UsageError
from lance_prep.store.stores import output_lock
from tests import tokenizers_made as made
from tests.helpers import check_whole, rows_of

NOW = timedelta(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source of two files, which cut into several shards."""
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(2):
        write(folder / f"{i}.jsonl", range(i * 1000, i * 1000 + 300))
    return folder


def write(path: Path, rows: range) -> None:
    path.write_text("\n".join(json.dumps({"text": f"row {i} of words"}) for i in rows))


def build(folder: Path, tmp_path: Path, **fields: Any) -> lance_prep.BuildReport:
    tokenizer = made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    given = {"layout": "lines", "tokenizer": tokenizer, "shard_size": 4000, **fields}
    if given["layout"] == "raw":
        del given["tokenizer"]
    return lance_prep.build(folder, output=tmp_path / "o.lance", **given)


def test_versions_say_what_made_them(tmp_path: Path, folder: Path, capsys: Any) -> None:
    first = build(folder, tmp_path)
    uri = first.uri
    write(folder / "2.jsonl", range(5000, 5100))
    second = build(folder, tmp_path, append=True)
    build(folder, tmp_path, overwrite=True, layout="blocks", block_size=16)
    restore(uri, 2)
    compact(uri)
    tag(uri, "gold", 2)
    tag(uri, "also", 2)
    versions = list_versions(uri)
    assert [v.number for v in versions] == [1, 2, 3, 4, 5]
    assert [v.made for v in versions] == ["build", "append", "overwrite", "restore", "compact"]
    assert [v.rows for v in versions] == [600, 700, versions[2].rows, 700, 700]
    assert [v.content_hash for v in versions][1::2] == [second.content_hash] * 2
    assert versions[4].content_hash == second.content_hash
    assert versions[0].files_new == tuple(str(folder / f"{i}.jsonl") for i in range(2))
    assert versions[1].files_new == (str(folder / "2.jsonl"),)
    assert versions[3].of == "version 2"
    assert versions[1].tags == ("also", "gold")
    assert [v.time for v in versions] == sorted(v.time for v in versions)
    for version in versions:
        check_whole(uri, version.number)
    capsys.readouterr()
    assert run(["versions", uri, "--json"]) == 0
    assert [v["made"] for v in json.loads(capsys.readouterr().out)] == [v.made for v in versions]
    assert run(["versions", uri]) == 0
    said = capsys.readouterr().out
    assert f"+ {folder / '2.jsonl'}" in said
    assert "[also, gold]" in said


def test_versions_of_a_dataset_with_a_damaged_one(tmp_path: Path, folder: Path) -> None:
    uri = build(folder, tmp_path).uri
    build(folder, tmp_path, overwrite=True, seed=1)
    manifest = Path(uri) / "_versions" / f"{(1 << 64) - 2:020}.manifest"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert [v.made for v in list_versions(uri)] == ["cannot be read", "overwrite"]
    assert open_version(uri, 2).dataset.version == 2
    with pytest.raises(DatasetError, match="damaged"):
        prune(uri, NOW)
    with pytest.raises(DatasetError, match="has no version 9"):
        open_version(uri, 9)


def test_tags_name_versions_and_are_not_moved_unasked(tmp_path: Path, folder: Path, capsys: Any) -> None:
    uri = build(folder, tmp_path).uri
    build(folder, tmp_path, overwrite=True, seed=1)
    assert run(["tag", uri, "gold", "1"]) == 0
    assert open_version(uri, "gold").dataset.version == 1
    assert run(["tag", uri, "gold"]) == 1
    assert "points to version 1 already" in capsys.readouterr().err
    assert run(["tag", uri, "gold", "--force"]) == 0
    assert open_version(uri, "gold").dataset.version == 2
    assert tag(uri, "gold", "gold").was == 2
    for name in ("17", "two words", "a/b", ""):
        with pytest.raises(UsageError, match="invalid tag name"):
            tag(uri, name)
    with pytest.raises(DatasetError, match="has no version 9"):
        tag(uri, "new", 9)
    capsys.readouterr()
    assert run(["tag", uri, "gold", "--delete", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "gold", "version": None, "was": 2}
    with pytest.raises(DatasetError, match="there is no tag gold"):
        delete_tag(uri, "gold")


def test_restore_equals_the_old_version(tmp_path: Path, folder: Path, capsys: Any) -> None:
    first = build(folder, tmp_path)
    other = made.save(tmp_path / "other", made.with_template())
    build(folder, tmp_path, overwrite=True, tokenizer=other)
    assert run(["restore", first.uri, "1", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["version"], done["content_hash"]) == (3, first.content_hash)
    assert rows_of(first.uri) == rows_of(first.uri, 1)
    assert lance.dataset(first.uri).schema.metadata == lance.dataset(first.uri, version=1).schema.metadata
    check_whole(first.uri)  # the tokenizer at hand is that of version 1 again
    assert restore(first.uri, 3).version == 3
    assert build(folder, tmp_path).status == "unchanged"


def test_diff_says_what_changed(tmp_path: Path, folder: Path, capsys: Any) -> None:
    uri = build(folder, tmp_path).uri
    write(folder / "0.jsonl", range(300, 500))
    (folder / "1.jsonl").rename(folder / "2.jsonl")
    build(folder, tmp_path, overwrite=True, seed=5)
    found = diff_versions(uri, 1, 2)
    assert found.rows == (600, 500)
    assert not found.same_content
    assert (found.files_added, found.files_gone, found.files_changed) == (
        (str(folder / "2.jsonl"),),
        (str(folder / "1.jsonl"),),
        (str(folder / "0.jsonl"),),
    )
    assert found.recipe == {"seed": (1337, 5)}
    assert run(["diff", uri, "1", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"rows +600 +500 +-100  -16\.7%", said)
    assert re.search(r"seed +1337 +5\n", said)
    assert run(["diff", uri, "2", "2", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["same_content"]
    assert (same["recipe"], same["other"]) == ({}, {})
    assert run(["diff", uri, "1", "7"]) == 1
    assert "use versions 1 to 2" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["lines", "blocks", "raw"])
def test_compact_keeps_rows_and_order(tmp_path: Path, folder: Path, layout: str) -> None:
    fields = {"layout": layout} | ({"block_size": 16} if layout == "blocks" else {})
    built = build(folder, tmp_path, **fields)
    before = rows_of(built.uri)
    fragments = len(lance.dataset(built.uri).get_fragments())
    assert fragments > 3
    done = compact(built.uri)
    assert (done.version, done.fragments_before, done.fragments_after) == (2, fragments, 1)
    assert done.rows_rewritten == len(before)
    assert rows_of(built.uri) == before
    found = verify(built.uri)
    assert found.problems == []
    assert found.checks["data files by hash"] == 1
    assert found.checks["shards by content hash"] == built.shards
    assert compact(built.uri).version == 2  # nothing left to do
    assert build(folder, tmp_path, **fields).status == "unchanged"


def test_compact_keeps_files_below_the_target(tmp_path: Path, folder: Path) -> None:
    built = build(folder, tmp_path)
    sizes = [f.metadata.files[0].file_size_bytes for f in lance.dataset(built.uri).get_fragments()]
    compact(built.uri, target_bytes=max(sizes) * 2)
    fragments = lance.dataset(built.uri).get_fragments()
    assert 1 < len(fragments) < len(sizes)
    assert all(f.metadata.files[0].file_size_bytes <= max(sizes) * 2 for f in fragments)
    write(folder / "2.jsonl", range(5000, 5100))
    build(folder, tmp_path, append=True)  # shards go on after merged fragments
    check_whole(built.uri)
    check_whole(built.uri, 1)


def test_prune_keeps_the_latest_and_the_tagged(tmp_path: Path, folder: Path, capsys: Any) -> None:
    uri = build(folder, tmp_path).uri
    for seed in (1, 2, 3):
        build(folder, tmp_path, overwrite=True, seed=seed)
    tag(uri, "gold", 2)
    rows = {n: rows_of(uri, n) for n in (2, 4)}
    assert prune(uri, timedelta(days=1)).removed == ()
    dry = prune(uri, NOW, dry_run=True)
    assert (dry.removed, dry.kept, dry.kept_for_tag) == ((1, 3), (2, 4), (2,))
    assert len(list_versions(uri)) == 4
    data = sum(path.stat().st_size for path in Path(uri, "data").iterdir())
    capsys.readouterr()
    assert run(["prune", uri, "--older-than", "0d", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["removed"], done["files"], done["bytes"]) == ([1, 3], dry.files, dry.bytes)
    freed = data - sum(path.stat().st_size for path in Path(uri, "data").iterdir())
    assert 0 < freed <= done["bytes"]
    assert [v.number for v in list_versions(uri)] == [2, 4]
    with pytest.raises(DatasetError, match="has no version 3") as caught:
        open_version(uri, 3)
    assert caught.value.advice == "use versions 2, 4, or a tag: gold"
    assert not [path for path in Path(uri, ".lance_prep").rglob("*") if path.is_dir() and not any(path.iterdir())]
    for number, want in rows.items():
        assert rows_of(uri, number) == want
        check_whole(uri, number)
    # What was removed can be built again.
    assert build(folder, tmp_path, overwrite=True).version == 5
    check_whole(uri)


def test_prune_after_compact_and_append(tmp_path: Path, folder: Path) -> None:
    uri = build(folder, tmp_path).uri
    write(folder / "2.jsonl", range(5000, 5100))
    build(folder, tmp_path, append=True)
    compact(uri)
    want = rows_of(uri)
    assert prune(uri, NOW).removed == (1, 2)
    assert rows_of(uri) == want
    check_whole(uri)
    build(folder, tmp_path, overwrite=True, seed=9)
    assert build(folder, tmp_path, overwrite=True).status != "unchanged"
    check_whole(uri)


def test_prune_leaves_what_an_unfinished_build_has_written(tmp_path: Path, folder: Path) -> None:
    uri = build(folder, tmp_path).uri
    build(folder, tmp_path, overwrite=True, seed=1)
    (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text() + "\nnot json")
    with pytest.raises(LancePrepError):  # stops in its last shard
        build(folder, tmp_path, overwrite=True, seed=2, strict=True, workers=1)
    tracked = set(lance.dataset(uri).tracked_files().read_all()["path"].to_pylist())
    pending = [p for p in Path(uri, "data").iterdir() if f"data/{p.name}" not in tracked]
    assert len(pending) > 2
    for path in pending:
        os.utime(path, (1e9, 1e9))  # as if it had been there for years
    assert prune(uri, NOW).removed == (1,)
    receipts = [json.loads(path.read_bytes()) for path in Path(uri).glob(".lance_prep/builds/*/shard-*.json")]
    named = {file["path"] for receipt in receipts for file in receipt["fragment"]["files"]}
    assert {path.name for path in pending} & named <= {path.name for path in Path(uri, "data").iterdir()}
    assert {path.name for path in pending} & named


@pytest.mark.parametrize(
    "command",
    [["tag", "gold"], ["tag", "gold", "--delete"], ["restore", "1"], ["compact"], ["prune", "--older-than", "0d"]],
)
def test_commands_that_write_fail_at_once_if_the_dataset_is_locked(
    tmp_path: Path, folder: Path, command: list[str], capsys: Any
) -> None:
    uri = build(folder, tmp_path).uri
    name, *rest = command
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from lance_prep.store.stores import output_lock\n"
            "with output_lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()",
            uri,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run([name, uri, *rest]) == 1
        assert f"process {holder.pid}" in capsys.readouterr().err
        with pytest.raises(OutputLocked), output_lock(uri):
            pass
    finally:
        holder.communicate("")
    assert [v.number for v in list_versions(uri)] == [1]


@pytest.mark.parametrize("command", ["versions", "tag", "restore", "diff", "compact", "prune"])
def test_commands_name_a_dataset_that_does_not_exist(tmp_path: Path, command: str, capsys: Any) -> None:
    rest = {"tag": ["x"], "restore": ["1"], "diff": ["1", "2"], "prune": ["--older-than", "1d"]}
    assert run([command, str(tmp_path / "none.lance"), *rest.get(command, [])]) == 1
    assert "there is no dataset at" in capsys.readouterr().err
    assert not (tmp_path / "none.lance").exists()


@pytest.mark.parametrize("span", ["30", "d", "-1d", "1y", "1.5h"])
def test_an_invalid_duration_is_refused(tmp_path: Path, span: str, capsys: Any) -> None:
    assert run(["prune", str(tmp_path), "--older-than", span]) == 2
    assert "is not a valid duration" in capsys.readouterr().err


def test_another_program_s_version_is_listed(tmp_path: Path, folder: Path) -> None:
    uri = build(folder, tmp_path).uri
    lance.dataset(uri).delete("doc_id < 3")
    assert [v.made for v in list_versions(uri)] == ["build", "delete"]
    assert any("deleted by another program" in problem for problem in verify(uri).problems)
