"""What a dataset says of itself: small, typed, distrusted when read, the same for each version whatever came later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import (
    SourceCheck,
    compact,
    diff_versions,
    list_versions,
    open_version,
    prune,
    restore,
    show_rows,
    verify,
)
from lance_prep.errors import DamagedDataset, DatasetError, StateMismatch
from lance_prep.store.journal import Receipt
from lance_prep.store.metadata import FileRecord, Metadata, with_metadata
from lance_prep.store.output import Output
from lance_prep.store.version import portable_path, resolved_path, write_list
from lance_prep.train import LanceDataset, TokenLoader
from tests import tokenizers_made as made
from tests.metadata import metadata_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a tokenizer and a source of two files."""
    made.save(tmp_path / "tokenizer", made.byte_level(), eos_token="<|endoftext|>")
    (tmp_path / "source").mkdir()
    for name in "ab":
        write(tmp_path / "source" / f"{name}.jsonl", name)
    return tmp_path


def write(path: Path, word: str, rows: int = 60) -> None:
    path.write_text("".join(json.dumps({"text": f"{word} row {i}"}) + "\n" for i in range(rows)))


def build(home: Path, source: object = None, **fields: Any) -> lance_prep.BuildReport:
    stated = {"tokenizer": str(home / "tokenizer"), "layout": "documents", "shard_size": 1000, **fields}
    return lance_prep.build(source or home / "source", output=home / "o.lance", **stated)


def schema_json(uri: object, version: int | None = None) -> dict[str, Any]:
    return dict(json.loads(lance.dataset(str(uri), version=version).schema.metadata[b"lance_prep"]))


# Small.

OPEN = """
import sys, time
import lance, numpy, torch
from lance_prep.train import LanceDataset
def read(): return int(open("/proc/self/io").read().split()[1])
LanceDataset(sys.argv[1]).version  # imports
before, start = read(), time.process_time()
for _ in range(20): LanceDataset(sys.argv[1]).version
print((read() - before) // 20, (time.process_time() - start) / 20)
"""


def test_a_hundred_thousand_source_files_cost_nothing_when_a_dataset_is_opened(home: Path) -> None:
    uri = build(home).uri
    one = open_version(uri)
    files = [FileRecord(f"./source/{i:06}.jsonl", "jsonl", i, str(i), None, f"{i:032x}") for i in range(100_000)]
    recorded = replace(one.metadata.build, files=len(files), sources=write_list(one.files, files))
    many = replace(one.metadata, files=len(files), build=recorded, builds=write_list(one.files, [recorded]))
    shutil.copytree(uri, home / "many.lance")
    schema = with_metadata(one.dataset.schema.remove_metadata(), many)
    Output(str(home / "many.lance")).commit(schema, one.fragments(), on=1, why={})
    assert len(lance.dataset(str(home / "many.lance")).schema.metadata[b"lance_prep"]) < 4096
    measured = {}
    for name in ("o", "many"):
        said = subprocess.run(
            [sys.executable, "-c", OPEN, str(home / f"{name}.lance")], capture_output=True, text=True, check=True
        )
        measured[name] = [float(word) for word in said.stdout.split()]
    assert abs(measured["many"][0] - measured["o"][0]) < 2000, measured  # bytes read
    assert measured["many"][1] < 2 * measured["o"][1] + 0.01, measured  # CPU seconds
    opened = open_version(home / "many.lance")
    assert len(opened.source_files) == 100_000
    assert opened.source_files[7].url == str(home / "source" / "000007.jsonl")


def test_metadata_does_not_grow_with_appends(home: Path) -> None:
    build(home)
    sizes = []
    for i in range(6):
        write(home / "source" / f"c{i}.jsonl", f"c{i}", rows=1)
        uri = build(home, append=True).uri
        sizes.append(len(json.dumps(schema_json(uri))))
    assert max(sizes) - min(sizes) < 20  # digits of numbers
    last = open_version(uri)
    assert [build.how for build in last.builds] == ["build", *["append"] * 6]
    assert sorted(Path(file.url).name for file in last.source_files) == sorted(
        path.name for path in (home / "source").iterdir()
    )
    # Each append writes a list of its own files alone.
    lists = {path.stat().st_size for path in Path(uri, ".lance_prep", "lists").iterdir()}
    assert max(lists) < 1000
    assert verify(uri).problems == []


def test_a_reader_needs_no_list(home: Path) -> None:
    uri = build(home).uri
    shutil.rmtree(Path(uri) / ".lance_prep" / "lists")
    assert len(LanceDataset(uri)) == 120
    assert run(["info", uri]) == 0
    assert any("is missing" in problem for problem in verify(uri).problems)
    with pytest.raises(DamagedDataset, match=r"lists/.* is missing"):
        build(home)


def test_a_worker_loads_neither_pydantic_nor_the_journal() -> None:
    code = "import sys, lance_prep.store.version as v; print([m for m in sys.modules if m in %r])"
    ours = ("lance_prep.store.journal", "lance_prep.model", "lance_prep.plan", "lance_prep.recipe")
    heavy = ("pydantic", "pydantic_core", "lance", *ours)
    said = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# Each version stands alone.


def two_tokenizers(home: Path) -> str:
    """A dataset whose second version was built with another tokenizer, in which ids mean other words."""
    uri = build(home).uri
    made.save(home / "other", made.word_piece(), eos_token="[SEP]")
    build(home, overwrite=True, tokenizer=str(home / "other"), seed=2)
    return uri


def test_every_version_is_decoded_with_its_own_tokenizer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = build(home).uri
    texts = [row.text for row in show_rows(open_version(uri), range(10))]
    assert sorted(texts)[0].startswith("a row")
    two_tokenizers(home)
    later = LanceDataset(uri)
    assert later.version == 2
    first = LanceDataset(uri, version=1)
    assert [first.text(i) for i in range(10)] == texts
    assert [row.text for row in show_rows(open_version(uri, 1), range(10))] == texts
    assert [later.text(i) for i in range(10)] != texts
    assert [later.text(i) for i in range(10)] == [row.text for row in show_rows(open_version(uri), range(10))]
    assert run(["show", uri, "--version", "1", "--limit", "1"]) == 0
    assert texts[0] in capsys.readouterr().out
    for version in (1, 2):
        assert verify(uri, version, against=SourceCheck(rows=20)).problems == []
        assert run(["info", uri, "--version", str(version)]) == 0
        assert open_version(uri, version).metadata.tokenizer.sha256[:16] in capsys.readouterr().out  # type: ignore[union-attr]
    restore(uri, 1)
    assert [LanceDataset(uri).text(i) for i in range(10)] == texts


def test_decoding_in_a_forked_worker(home: Path) -> None:
    uri = build(home).uri
    want = [LanceDataset(uri).text(i) for i in range(8)]

    class Texts(LanceDataset):
        def __getitems__(self, rows: list[int]) -> list[str]:  # type: ignore[override]
            return [self.text(i) for i in rows]

    loader = DataLoader(Texts(uri), batch_size=8, num_workers=1, multiprocessing_context="fork", collate_fn=list)
    assert next(iter(loader)) == want


def test_a_damaged_tokenizer_is_found(home: Path) -> None:
    uri = build(home).uri
    path = next(Path(uri).glob(".lance_prep/tokenizers/*.json"))
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"', 1))
    with pytest.raises(DamagedDataset, match=r"tokenizers/.* is damaged"):
        LanceDataset(uri).text(0)
    build(home, overwrite=True, seed=3)  # writes it again
    assert verify(uri).problems == []


def test_prune_keeps_what_a_kept_version_needs_and_removes_the_rest(home: Path) -> None:
    uri = two_tokenizers(home)
    sidecar = Path(uri) / ".lance_prep"
    for version in (1, 2):
        assert len(LanceDataset(uri, version=version)) > 0  # makes a cache
    assert len(list((sidecar / "cache").iterdir())) == 2
    counts = {name: len(list((sidecar / name).iterdir())) for name in ("tokenizers", "builds")}
    assert counts == {"tokenizers": 2, "builds": 2}
    kept = LanceDataset(uri).text(0)
    assert prune(uri, timedelta(0)).removed == (1,)
    left = {name: [p for p in (sidecar / name).rglob("*") if p.is_file()] for name in ("tokenizers", "lists", "cache")}
    assert [path.stem for path in left["tokenizers"]] == [open_version(uri).metadata.tokenizer.sha256]  # type: ignore[union-attr]
    assert len(left["lists"]) == 2
    assert {path.relative_to(sidecar / "cache").parts[0].split("-")[0] for path in left["cache"]} == {"v2"}
    assert len(list((sidecar / "builds").glob("*/plan.json"))) == 1
    assert LanceDataset(uri).text(0) == kept
    assert verify(uri).problems == []


@pytest.mark.parametrize("change", ["restore", "compact"])
def test_training_goes_on_after_a_restore_or_compaction(home: Path, change: str) -> None:
    uri = build(home).uri

    def state_at(step: int) -> tuple[dict[str, Any], list[list[int]]]:
        loader = TokenLoader(LanceDataset(uri, block_size=16), global_batch_size=4, seed=1)
        batches = [batch["input_ids"].flatten().tolist() for batch in loader]
        loader = TokenLoader(LanceDataset(uri, block_size=16), global_batch_size=4, seed=1)
        iterator = iter(loader)
        for _ in range(step):
            next(iterator)
        return loader.state_dict(), batches[step:]

    state, rest = state_at(3)
    if change == "restore":
        build(home, overwrite=True, seed=5)
        with pytest.raises(StateMismatch, match="content_hash"):
            TokenLoader(LanceDataset(uri, block_size=16), global_batch_size=4, seed=1).load_state_dict(state)
        restore(uri, 1)
    else:
        compact(uri)
    later = LanceDataset(uri, block_size=16)
    assert later.version > 1
    loader = TokenLoader(later, global_batch_size=4, seed=1)
    loader.load_state_dict(state)
    assert [batch["input_ids"].flatten().tolist() for batch in loader] == rest


# Distrusted.

WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "key is '../../../x', not 16": lambda data: data["build"].update(key="../../../x"),
    "unknown field 'surprise'": lambda data: data.update(surprise=1),
    "unknown field 'source.surprise'": lambda data: data["source"].update(surprise=1),
    "missing field content_hash": lambda data: data.pop("content_hash"),
    "rows is '1', not int": lambda data: data.update(rows="1"),
    "rows is True, not int": lambda data: data.update(rows=True),
    "layout is 'tensors', not one of lines": lambda data: data.update(layout="tensors"),
    r"tokenizer.prefix\[\] is '1', not int": lambda data: data["tokenizer"].update(prefix=["1"]),
    "sha256 is '../x', not 64": lambda data: data["tokenizer"].update(sha256="../x"),
    "builds is '..', not 64": lambda data: data.update(builds=".."),
    "ledger is 1, not an object": lambda data: data.update(ledger=1),
    "layout 'documents' does not go with block_size 8": lambda data: data.update(block_size=8),
    "has format 1; this version of lance-prep reads format 2": lambda data: data.update(format=1),
    "has format 3; this version of lance-prep reads format 2": lambda data: data.update(format=3),
    "has format None": lambda data: data.pop("format"),
}


@pytest.mark.parametrize("message", WRONG)
def test_metadata_of_a_stranger_is_refused(home: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = build(home).uri
    version = open_version(uri)
    data = schema_json(uri)
    WRONG[message](data)
    schema = version.dataset.schema.with_metadata({b"lance_prep": json.dumps(data)})
    operation = lance.LanceOperation.Overwrite(schema, [f.metadata for f in version.dataset.get_fragments()])
    lance.LanceDataset.commit(uri, operation, read_version=1)
    before = everything_below(home)
    for action in (lambda: LanceDataset(uri).version, lambda: build(home), lambda: compact(uri)):
        with pytest.raises(DatasetError, match=message) as caught:
            action()
        assert caught.value.advice
    assert run(["info", uri]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert everything_below(home) == before
    assert open_version(uri, 1).metadata == version.metadata


def everything_below(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.name != "lock"}


@pytest.mark.parametrize(
    "name", ["../../../victim.lance", "/etc/passwd.lance", "a/b.lance", "..", ".lance", "x.txt", 7, None]
)
def test_a_receipt_that_names_a_file_outside_is_refused(home: Path, name: object) -> None:
    uri = build(home).uri
    path = next(Path(uri).glob(".lance_prep/builds/*/shard-000000.json"))
    receipt = Receipt.from_bytes(path.read_bytes())
    assert receipt.fragment is not None
    receipt.fragment["files"][0]["path"] = name
    with pytest.raises(ValueError, match="is not a valid name of a data file"):
        Receipt.from_bytes(receipt.to_bytes())
    path.write_bytes(receipt.to_bytes())
    (home / "victim.lance").write_text("mine")
    assert any("not a valid name" in problem for problem in verify(uri).problems)
    write(home / "source" / "c.jsonl", "c")
    with pytest.raises(DatasetError, match="receipts of 1 shards are missing"):
        build(home, append=True)
    assert (home / "victim.lance").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"not zstd", b"(\xb5/\xfd" + bytes(40)])
def test_a_damaged_list_is_found(home: Path, content: bytes) -> None:
    uri = build(home).uri
    path = Path(uri) / ".lance_prep" / "lists" / f"{open_version(uri).metadata.builds}.zst"
    path.write_bytes(content)
    with pytest.raises(DamagedDataset, match="is damaged"):
        list(open_version(uri).builds)
    assert any("is damaged" in problem for problem in verify(uri).problems)


def test_metadata_goes_both_ways() -> None:
    data = metadata_of(recipe={"layout": "raw", "filter": None})
    assert Metadata.from_json(json.loads(json.dumps(data.as_json()))) == data


# Paths.

names = st.lists(st.text("ab.~ ", min_size=1, max_size=3).filter(lambda n: n not in (".", "..")), max_size=5)


@given(names, names.filter(bool))
def test_portable_paths_come_back(file: list[str], dataset: list[str]) -> None:
    path, uri = "/" + "/".join(file), "/" + "/".join(dataset)
    written = portable_path(path, uri)
    assert resolved_path(written, uri) == os.path.normpath(path)
    if written.startswith("."):
        # Moved together, they still find each other.
        assert resolved_path(written, "/new/place" + uri) == os.path.normpath("/new/place" + path)


@pytest.mark.parametrize(
    ("path", "uri", "written"),
    [
        ("/data/raw/a.txt", "/data/sets/x.lance", "../raw/a.txt"),
        ("/data/a.txt", "/data/x.lance", "./a.txt"),
        ("/data/src/a.txt", "/data/x.lance", "./src/a.txt"),
        ("/other/a.txt", "/data/sets/x.lance", "/other/a.txt"),
        ("/other/a.txt", "/data/x.lance", "/other/a.txt"),
        ("/a.txt", "/x.lance", "/a.txt"),
        ("/database/a.txt", "/data/x.lance", "/database/a.txt"),
        ("/data/a.txt", "s3://bucket/x.lance", "/data/a.txt"),
    ],
)
def test_which_paths_are_relative(path: str, uri: str, written: str) -> None:
    assert portable_path(path, uri) == written


def test_a_dataset_moved_with_its_source(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = build(home)
    old = str(home)
    for path in (*Path(first.uri).glob(".lance_prep/builds/*/plan.json"),):
        assert old not in path.read_text()
    assert old not in json.dumps(schema_json(first.uri))
    new = tmp_path_factory.mktemp("new") / "home"
    home.rename(new)
    assert verify(new / "o.lance", against=SourceCheck(rows=30)).problems == []
    assert build(new).status == "unchanged"
    assert open_version(new / "o.lance").recipe["source"] == str(new / "source")
    write(new / "source" / "c.jsonl", "c")
    second = build(new, append=True)
    assert (second.version, second.rows) == (2, 180)
    assert list_versions(second.uri)[1].files_new == (str(new / "source" / "c.jsonl"),)
    assert diff_versions(second.uri, 1, 2).files_added == (str(new / "source" / "c.jsonl"),)
    assert verify(second.uri).problems == []


def test_a_dataset_moved_away_from_its_source(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    far = tmp_path_factory.mktemp("far") / "deep"
    fields = {"tokenizer": str(home / "tokenizer"), "layout": "documents"}
    lance_prep.build(home / "source", output=far / "o.lance", **fields)
    moved = (far / "o.lance").rename(far.parent / "moved.lance")
    assert verify(moved, against=SourceCheck(rows=30)).problems == []
    assert lance_prep.build(home / "source", output=moved, **fields).status == "unchanged"


def test_a_dataset_moved_alone_is_the_same_by_content(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    build(home)
    moved = tmp_path_factory.mktemp("alone") / "o.lance"
    (home / "o.lance").rename(moved)
    fields = {"tokenizer": str(home / "tokenizer"), "layout": "documents", "shard_size": 1000}
    assert lance_prep.build(home / "source", output=moved, **fields).status == "unchanged"
    assert verify(moved).problems == []
    problems = verify(moved, against=SourceCheck(rows=5)).problems
    assert all("a.jsonl is missing" in problem or "b.jsonl is missing" in problem for problem in problems), problems
    assert problems


def test_an_interrupted_build_continues_where_it_was_moved(home: Path, tmp_path: Path) -> None:
    write(home / "source" / "z.jsonl", "z", rows=200)
    (home / "source" / "z.jsonl").open("a").write("not json\n")
    with pytest.raises(lance_prep.LancePrepError):
        build(home, strict=True, workers=1)
    done = len(list(home.glob("o.lance/.lance_prep/builds/*/shard-*.json")))
    assert done
    new = home.with_name(home.name + "-moved")
    home.rename(new)
    with pytest.raises(lance_prep.LancePrepError):
        build(new, strict=True, workers=1)
    assert len(list(new.glob("o.lance/.lance_prep/builds/*"))) == 1
    assert len(list(new.glob("o.lance/.lance_prep/builds/*/shard-*.json"))) == done


def test_the_way_a_source_is_spelt_makes_no_other_recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    monkeypatch.chdir(home)
    assert build(home, source="source").status == "unchanged"
    assert build(home, source="./source", tokenizer="tokenizer").status == "unchanged"


# The commit.

WATCH = """
import builtins, os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import lance_prep
lance_prep.build(sys.argv[1], output=sys.argv[2], tokenizer=sys.argv[3], layout="documents", shard_size=1000,
                 append=True)
print("\\n".join(opened))
"""


def opens(home: Path, source: str = "source") -> list[str]:
    """Paths that an appending build opens."""
    arguments = [str(home / source), str(home / "o.lance"), str(home / "tokenizer")]
    said = subprocess.run([sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def test_a_commit_touches_no_old_manifest(home: Path) -> None:
    build(home)
    for i in range(3):
        write(home / "source" / f"c{i}.jsonl", f"c{i}", rows=2)
        paths = opens(home)
        manifests = {path for path in paths if path.endswith((".manifest", ".txn"))}
        number = f"{(1 << 64) - 1 - (i + 2):020}.manifest"
        assert {Path(path).name for path in manifests if path.endswith(".manifest")} == {number}
    assert verify(home / "o.lance").problems == []


def test_an_append_hashes_each_new_file_once(home: Path) -> None:
    build(home)
    write(home / "source" / "d.jsonl", "dd")  # of another size: hashed for the record alone
    other = opens(home).count(str(home / "source" / "d.jsonl"))
    # A file was renamed, and the new one is as long as it: their content decides which is which.
    (home / "source" / "a.jsonl").rename(home / "source" / "renamed.jsonl")
    write(home / "source" / "c.jsonl", "c")
    assert len({(home / "source" / name).stat().st_size for name in ("renamed.jsonl", "c.jsonl")}) == 1
    assert opens(home).count(str(home / "source" / "c.jsonl")) == other
    assert open_version(home / "o.lance").metadata.rows == 240
