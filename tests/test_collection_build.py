"""`build --recursive` and `build_collection`: a dataset for each source, a manifest, and what a second run does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lance_prep
from lance_prep.cli.main import run
from lance_prep.collection import download
from lance_prep.collection.unfinished import Parts, State
from lance_prep.errors import DamagedDataset, DatasetError, OutputExists, SourceNotFound, UsageError
from lance_prep.store import Manifest, read_manifest
from lance_prep.train import LanceDataset, Mixture
from tests import test_download
from tests import tokenizers_made as made
from tests.helpers import check_whole, ids_of
from tests.loopback_hub import LoopbackHub
from tests.processes import finish, start, wait_for, write_texts

Out = pytest.CaptureFixture[str]
NAMES = ["chat-turns", "code-part9", "code-part10", "own"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three sources in two categories, and one in none."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_texts(folder / "code", files=2, rows=60, seed=1)
    write_texts(folder / "chat", files=1, rows=40, seed=2)
    (folder / "code" / "0.jsonl").rename(folder / "code" / "part10.jsonl")
    (folder / "code" / "1.jsonl").rename(folder / "code" / "part9.jsonl")
    (folder / "chat" / "0.jsonl").rename(folder / "chat" / "turns.jsonl")
    (folder / "own.jsonl").write_text('{"text": "hello world"}\n')
    return folder


def build(data: Path, tokenizer: str, *more: object) -> int:
    out = data.parent / "out"
    arguments = [data, "-o", out, "--recursive", "--tokenizer", tokenizer, "--max-seq-length", 64, *more]
    return run(["build", *map(str, arguments)])


def manifest_of(data: Path) -> dict[str, Any]:
    return dict(json.loads((data.parent / "out" / "manifest.json").read_text()))


def test_a_dataset_for_each_file_and_a_manifest(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[:5]] == ["source", *NAMES]
    manifest, out = manifest_of(data), data.parent / "out"
    assert list(manifest["splits"]) == sorted(NAMES)
    assert (manifest["max_seq_length"], manifest["files_processed"]) == (64, 4)
    assert (manifest["input_path"], manifest["output_path"]) == (str(data), str(out))
    for name, split in manifest["splits"].items():
        check_whole(out / split["path"])
        path = data / f"{name.replace('-', '/')}.jsonl"
        alone = lance_prep.build(path, output=data.parent / "alone" / name, tokenizer=tokenizer, block_size=64)
        assert split["content_hash"] == alone.content_hash
        assert (split["sequences"], split["samples"], split["tokens"], split["shards"]) == (
            *(alone.rows, alone.ledger.rows_used, alone.tokens),
            1,
        )
        assert split.get("category") == ("own" if name == "own" else path.parent.name)
    assert len(ids_of(out / "code-part9.lance")) == manifest["splits"]["code-part9"]["sequences"]


def test_a_second_run_does_what_is_new_or_changed(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    first = manifest_of(data)
    assert build(data, tokenizer, "--skip-existing", "--json") == 0
    states = {source["name"]: source["status"] for source in last_json(capsys)["sources"]}
    assert set(states.values()) == {"unchanged"}
    assert manifest_of(data) == first
    (data / "own.jsonl").open("a").write('{"text": "and more"}\n')
    (data / "math").mkdir()
    (data / "math" / "sums.jsonl").write_text('{"text": "1 + 1 = 2"}\n')
    assert build(data, tokenizer, "--json") == 0
    states = {source["name"]: source["status"] for source in last_json(capsys)["sources"]}
    assert states == {**dict.fromkeys(NAMES, "unchanged"), "own": "rebuilt", "math-sums": "built"}
    second = manifest_of(data)
    assert (second["splits"]["own"]["version"], second["splits"]["own"]["samples"]) == (2, 2)
    assert [second["splits"][name] for name in NAMES[:3]] == [first["splits"][name] for name in NAMES[:3]]


def test_the_output_may_be_a_file_uri(data: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    uri = f"file://{data.parent}/out"
    for more in (["--dry-run"], [], ["--skip-existing"]):
        assert build(data, tokenizer, "-o", uri, *more) == 0
    assert sorted(manifest_of(data)["splits"]) == sorted(NAMES)
    assert {path.name for path in data.parent.iterdir()} >= {"data", "out"}
    assert not (data.parent / "file:").exists()


def last_json(capsys: Out) -> dict[str, Any]:
    out = capsys.readouterr().out
    return dict(json.loads(out[out.index("{\n") :]))


def test_another_recipe_needs_force(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    before = (data.parent / "out" / "manifest.json").read_bytes()
    assert build(data, tokenizer, "--seed", 7) == 1
    err = capsys.readouterr().err
    assert f"failed: {', '.join(NAMES)}: its dataset was built by another recipe: seed was 1337, now 7" in err
    assert "--overwrite" in err
    assert f"4 of 4 sources failed, so {data.parent}/out/manifest.json was not written" in err
    assert (data.parent / "out" / "manifest.json").read_bytes() == before
    assert build(data, tokenizer, "--seed", 7, "--force") == 0
    assert {split["version"] for split in manifest_of(data)["splits"].values()} == {2}
    again = (data.parent / "out" / "manifest.json").read_bytes()
    assert build(data, tokenizer, "--seed", 7, "--force") == 0
    assert (data.parent / "out" / "manifest.json").read_bytes() == again


def test_a_source_that_is_gone_leaves_the_manifest_and_is_reported(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    shutil.rmtree(data / "chat")
    for _ in range(2):  # as long as the dataset is there
        capsys.readouterr()
        assert build(data, tokenizer) == 0
        err = capsys.readouterr().err
        assert "warning: chat-turns has no source" in err
        assert "  try: remove " in err
        assert list(manifest_of(data)["splits"]) == ["code-part10", "code-part9", "own"]
    assert (data.parent / "out" / "chat-turns.lance").is_dir()


def test_a_renamed_source_is_reported(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    (data / "own.jsonl").rename(data / "mine.jsonl")
    assert build(data, tokenizer) == 0
    assert "warning: own is now mine, which has the same rows" in capsys.readouterr().err
    assert list(manifest_of(data)["splits"]) == ["chat-turns", "code-part10", "code-part9", "mine"]
    report = lance_prep.build_collection(data, output=data.parent / "out", tokenizer=tokenizer, block_size=64)
    assert [(each.name, each.same_as, each.listed_before) for each in report.unlisted] == [("own", "mine", False)]


def test_a_dry_run_says_what_would_be_done(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer, "--dry-run", "--json") == 0
    total = last_json(capsys)["total"]
    assert build(data, tokenizer, "--dry-run") == 0
    assert not (data.parent / "out").exists()
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:5]] == ["build"] * 4
    assert build(data, tokenizer) == 0
    # Sources this small are read whole, so what they give is known.
    splits = read_manifest(data.parent / "out").splits.values()
    assert total["tokens"] == {"value": sum(split.tokens for split in splits), "error": 0}
    assert total["rows"]["value"] == sum(split.sequences for split in splits)
    (data / "own.jsonl").write_text('{"text": "other"}\n')
    (data / "code" / "part9.jsonl").unlink()
    (data / "new.jsonl").write_text('{"text": "new"}\n')
    before = (data.parent / "out" / "manifest.json").read_bytes()
    assert build(data, tokenizer, "--dry-run", "--json") == 0
    would = {source["name"]: source["build"]["action"] for source in last_json(capsys)["sources"]}
    assert would == {"chat-turns": "nothing", "code-part10": "nothing", "new": "build", "own": "overwrite"}
    assert (data.parent / "out" / "manifest.json").read_bytes() == before
    assert build(data, tokenizer, "--dry-run", "--seed", 3) == 1
    assert "3 of 4 sources would fail" in capsys.readouterr().err


def test_validation_sets_are_in_the_manifest(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer, "--val-fraction", 0.2) == 0
    first, out = read_manifest(data.parent / "out"), data.parent / "out"
    assert list(first.validation) == list(first.splits) == sorted(NAMES)
    for name, split in first.validation.items():
        assert split.path == f"{name}.val.lance"
        assert split.category == first.splits[name].category
        check_whole(out / split.path)
        path = data / f"{name.replace('-', '/')}.jsonl"
        assert split.samples + first.splits[name].samples == len(path.read_text().splitlines())
    assert sum(split.samples for split in first.validation.values()) > 10
    before = (out / "manifest.json").read_bytes()
    assert build(data, tokenizer, "--val-fraction", 0.2) == 0
    assert (out / "manifest.json").read_bytes() == before
    assert "no source" not in capsys.readouterr().err
    (data / "own.val.jsonl").write_text('{"text": "a"}\n')
    assert build(data, tokenizer, "--val-fraction", 0.2) == 2
    assert "own.val would be a source and the validation set of own" in capsys.readouterr().err


def test_a_manifest_of_something_else_is_not_replaced(data: Path, tokenizer: str, capsys: Out) -> None:
    out = data.parent / "out"
    out.mkdir()
    for text, said in (
        ('{"name": "an app"}', "is not a manifest of lance-prep"),
        (Manifest("t", 64, "a", "b", 0, {}, data_format="parquet").text(), "manifest of an export to parquet"),
    ):
        (out / "manifest.json").write_text(text)
        assert build(data, tokenizer) == 1
        assert said in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["manifest.json"]
        assert (out / "manifest.json").read_text() == text


def test_options_that_a_collection_has_no_use_for(data: Path, tokenizer: str, capsys: Out) -> None:
    for more, said in (
        (["--append"], "--append has no effect on a collection"),
        ([str(data)], "a collection is one folder or recipe, got 2 sources"),
        (["--layout", "raw"], "has no effect with --layout 'raw'"),
        (["--revision", "main"], "--revision has no effect on a folder"),
    ):
        assert build(data, tokenizer, *more) == 2, more
        assert said in capsys.readouterr().err, more


def test_one_source_that_fails_does_not_stop_the_others(data: Path, tokenizer: str, capsys: Out) -> None:
    (data / "chat" / "turns.jsonl").write_text('{"words": 1}\n')
    assert build(data, tokenizer, "--text-column", "text") == 1
    err = capsys.readouterr().err
    assert "failed: chat-turns: " in err
    assert f"1 of 4 sources failed, so {data.parent}/out/manifest.json was not written" in err
    out = data.parent / "out"
    assert not (out / "manifest.json").exists()
    for name in ("own", "code-part9", "code-part10"):
        check_whole(out / f"{name}.lance")
    (data / "chat" / "turns.jsonl").write_text('{"text": "one"}\n')
    report = lance_prep.build_collection(data, output=out, tokenizer=tokenizer, block_size=64, text_column="text")
    assert report.ok
    assert [source.status for source in report.sources] == ["built", "unchanged", "unchanged", "unchanged"]
    assert read_manifest(out) == report.manifest


def test_a_full_disk(
    data: Path, tokenizer: str, small_disk: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.chdir(data.parent)
    out, arguments = Path("disk/out"), ["build", "data", "-o", "disk/out", "--recursive", "--tokenizer", tokenizer]
    assert run([*arguments, "--block-size", "64"]) == 0
    expected = (out / "manifest.json").read_bytes()
    blocks = sum((path.stat().st_size + 4095) // 4096 for path in out.rglob("*") if path.is_file())
    for part in (0.1, 0.4, 0.6, 0.9):
        shutil.rmtree(out)
        small_disk(f"size={int(blocks * part) * 4}k")
        capsys.readouterr()
        assert run([*arguments, "--block-size", "64"]) == 1
        assert "no space left on the disk" in (err := capsys.readouterr().err)
        assert "free some space" in err
        assert not (out / "manifest.json").exists()
        small_disk("size=50%")
        assert run([*arguments, "--block-size", "64"]) == 0
        assert (out / "manifest.json").read_bytes() == expected
        for path in out.glob("*.lance"):
            check_whole(path)


def test_a_disk_that_is_too_small_is_found_before_the_start(
    data: Path, tokenizer: str, small_disk: Callable[[str], None], capsys: Out
) -> None:
    small_disk("size=8k")
    out = data.parent / "disk" / "out"
    assert run(["build", str(data), "-o", str(out), "--recursive", "--tokenizer", tokenizer]) == 1
    err = capsys.readouterr().err
    assert f"{out} needs about" in err
    assert "are free on the disk" in err
    assert not out.exists()


def test_two_files_with_the_name_of_one_source_are_refused(data: Path, tokenizer: str) -> None:
    shutil.copy(data / "own.jsonl", data / "chat-turns.jsonl")
    with pytest.raises(DatasetError, match=r"chat/turns\.jsonl and .*chat-turns\.jsonl would both be the source"):
        lance_prep.build_collection(data, output=data.parent / "out", tokenizer=tokenizer)
    assert not (data.parent / "out").exists()


def test_no_jsonl(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(SourceNotFound, match=r"no \.jsonl file with text in .* it is empty"):
        lance_prep.build_collection(tmp_path, tokenizer=tokenizer)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("text")
    with pytest.raises(SourceNotFound, match=r"deep/a\.txt \(not a \.jsonl file\)"):
        lance_prep.build_collection(tmp_path, tokenizer=tokenizer)
    (tmp_path / "deep" / "b.jsonl").write_text("")
    with pytest.raises(SourceNotFound, match=r"deep/b\.jsonl \(empty\)"):
        lance_prep.build_collection(tmp_path, tokenizer=tokenizer)
    for name in (tmp_path / "none", tmp_path / "deep" / "b.jsonl"):
        with pytest.raises(SourceNotFound, match=r"no such folder|a file, not a folder"):
            lance_prep.build_collection(name, tokenizer=tokenizer)


def test_a_build_of_one_dataset_suggests_recursive(data: Path, tokenizer: str, capsys: Out) -> None:
    (data / "own.jsonl").unlink()
    assert run(["build", f"{data}/*.jsonl", "-o", f"{data.parent}/o.lance", "--tokenizer", tokenizer]) == 1
    err = capsys.readouterr().err
    assert f"there are .jsonl files in {data}/c" in err
    assert f"run `lance-prep build {data} --recursive`" in err
    (data / "code" / "a.txt").write_text("text")
    assert run(["build", str(data), "-o", f"{data.parent}/o.lance", "--tokenizer", tokenizer]) == 2
    assert "; or run `lance-prep build" in capsys.readouterr().err


def test_an_empty_file_is_left_out_and_named(data: Path, tokenizer: str, capsys: Out) -> None:
    (data / "math.jsonl").write_text("")
    assert build(data, tokenizer) == 0
    assert "left out of" in (err := capsys.readouterr().err)
    assert "math.jsonl (empty)" in err
    assert list(manifest_of(data)["splits"]) == sorted(NAMES)


def test_a_file_of_blank_lines_is_left_out_and_named(data: Path, tokenizer: str, capsys: Out) -> None:
    (data / "math.jsonl").write_text("\n\n  \n")
    assert build(data, tokenizer) == 0
    assert "math.jsonl (empty)" in capsys.readouterr().err
    assert list(manifest_of(data)["splits"]) == sorted(NAMES)


def test_an_export_inside_the_folder_is_not_a_source(data: Path, tokenizer: str, capsys: Out) -> None:
    assert build(data, tokenizer) == 0
    before = manifest_of(data)["splits"]
    assert run(["export", str(data.parent / "out"), "-o", str(data / "texts"), "--format", "jsonl"]) == 0
    assert build(data, tokenizer) == 0
    assert "texts (an export)" in capsys.readouterr().err
    assert manifest_of(data)["splits"] == before


def test_workers_do_not_change_the_manifest(data: Path, tokenizer: str) -> None:
    texts = set()
    for workers in (1, 2, 5):
        shutil.rmtree(data.parent / "out", ignore_errors=True)
        assert build(data, tokenizer, "--workers", workers) == 0
        texts.add((data.parent / "out" / "manifest.json").read_bytes())
    assert len(texts) == 1


def test_a_download_and_the_hub_give_the_same_tokens(hub: LoopbackHub, tmp_path: Path, tokenizer: str) -> None:
    collection = {**test_download.seed(hub), "defaults": {"tokenizer": tokenizer, "block_size": 64}}
    for name, share in (("pages", 1), ("wiki", 2)):
        collection["categories"]["web"]["sources"][name]["share"] = share
    (tmp_path / "mine.yaml").write_text(json.dumps(collection))
    assert run(["build", str(tmp_path / "mine.yaml"), "-o", str(tmp_path / "direct")]) == 0
    direct = read_manifest(tmp_path / "direct")
    assert direct.splits["wiki"].samples == 120  # its max_rows
    assert direct.categories == {"web": 0.75, "questions": 0.25}
    assert {name: (split.category, split.share) for name, split in direct.splits.items()} == {
        "pages": ("web", 1),
        "trivia": ("questions", None),
        "wiki": ("web", 2),
    }
    assert not download(tmp_path / "mine.yaml", tmp_path / "text").failed
    (tmp_path / "text" / "mine").mkdir()
    (tmp_path / "text" / "mine" / "notes.jsonl").write_text('{"text": "a note"}\n')
    assert run(["build", str(tmp_path / "text"), "-o", str(tmp_path / "tokens")]) == 0  # --recursive is implied
    tokens = read_manifest(tmp_path / "tokens")
    assert list(tokens.splits) == ["mine-notes", "pages", "trivia", "wiki"]
    assert (tokens.categories, tokens.max_seq_length) == (direct.categories, 64)
    for name, split in direct.splits.items():
        there = tokens.splits[name]
        assert (there.samples, there.tokens, there.category, there.share) == (
            *(split.samples, split.tokens, split.category, split.share),
        )


def test_a_source_of_the_collection_that_was_not_downloaded_is_named(
    hub: LoopbackHub, tmp_path: Path, tokenizer: str, capsys: Out
) -> None:
    collection = {**test_download.seed(hub), "defaults": {"tokenizer": tokenizer, "block_size": 64}}
    hub.repos["datasets/owner/qa"].gated = True
    assert [each.name for each in download(collection, tmp_path / "text").failed] == ["trivia"]
    assert run(["build", str(tmp_path / "text"), "-o", str(tmp_path / "tokens")]) == 0
    assert "questions/trivia of the collection is not in" in capsys.readouterr().err
    assert run(["build", str(tmp_path / "text"), "--split", "train"]) == 2
    assert "--split has no effect" in capsys.readouterr().err


def grown(data: Path, tokenizer: str) -> list[str]:
    """Build a collection in `data/../before`, change it, and return the arguments that bring it up to date."""
    shape = ["--tokenizer", tokenizer, "--block-size", "64", "--shard-size", "6000", "--shuffle-batch-size", "20"]
    arguments = ["build", str(data), "-o", "out", "--recursive", "--val-fraction", "0.2", *shape]
    os.chdir(data.parent / "before")
    assert run(arguments) == 0
    (data / "code" / "part9.jsonl").unlink()
    write_texts(data / "chat" / "turns", files=1, rows=150, seed=3)
    (data / "chat" / "turns" / "0.jsonl").replace(data / "chat" / "turns.jsonl")
    write_texts(data / "math", files=2, rows=100, seed=4)
    return arguments


def state_of(out: Path) -> tuple[int, int, int]:
    """Return the number of datasets, of receipts and of versions in an output, all of which only grow in a build."""
    receipts, versions = ".lance_prep/builds/*/shard-*", "_versions/*.manifest"
    return (
        len(list(out.glob("*.lance"))),
        len(list(out.glob(f"*.lance/{receipts}"))),
        len(list(out.glob(f"*.lance/{versions}"))),
    )


@pytest.mark.timeout(240)
def test_killed_at_any_instant_and_run_again(
    data: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    (data.parent / "before").mkdir()
    monkeypatch.chdir(data.parent)
    arguments = grown(data, tokenizer)
    whole = Path(shutil.copytree(data.parent / "before", data.parent / "whole"))
    os.chdir(whole)
    before = state_of(whole / "out")
    assert run(arguments) == 0
    after = state_of(whole / "out")
    expected = (whole / "out" / "manifest.json").read_bytes()
    killed = 0
    for number in range(6):
        draw = random.Random(number)
        folder = Path(shutil.copytree(data.parent / "before", data.parent / f"round-{number}"))
        os.chdir(folder)
        for _ in range(1 + number % 2):
            which = draw.randrange(3)
            count = draw.randint(before[which], after[which])
            process = start(*arguments)
            wait_for(lambda: state_of(folder / "out")[which] >= count, process)  # noqa: B023
            wait_for(lambda: False, process, draw.uniform(0, 0.05))
            process.kill()
            killed += finish(process)[0] != 0
            # Also after a kill, what the manifest names can be read.
            for split in read_manifest("out").splits.values():
                assert lance_prep.info(f"out/{split.path}", split.version).metadata.content_hash == split.content_hash
        assert run(arguments) == 0, (number, capsys.readouterr().err)
        assert (folder / "out" / "manifest.json").read_bytes() == expected, number
        for path in (folder / "out").glob("*.lance"):
            check_whole(path)
        shutil.rmtree(folder)
    assert killed >= 4


def test_limits_for_all_sources_of_a_collection(tmp_path: Path, tokenizer: str, capsys: Out) -> None:
    write_texts(tmp_path / "texts", files=1, rows=60, seed=1)
    source = {"source": str(tmp_path / "texts" / "0.jsonl"), "max_tokens": 200}
    collection = {"name": "mine", "categories": {"web": {"share": 1, "sources": {"pages": source}}}}
    (tmp_path / "c.yaml").write_text(json.dumps(collection))
    arguments = ["build", str(tmp_path / "c.yaml"), "--tokenizer", tokenizer, "--block-size", "16"]
    for number, limit in enumerate(["--max-rows", "--max-source-rows", "--max-tokens"]):
        out = tmp_path / f"out{number}"
        assert run([*arguments, "-o", str(out), limit, "1"]) == 0
        assert read_manifest(out / "manifest.json").splits["pages"].samples == 1
    assert run([*arguments, "-o", str(tmp_path / "no"), "--text-column", "text"]) != 0
    assert "--text-column differs between the sources of mine" in capsys.readouterr().err


def test_advice_about_a_source_of_a_recipe_names_its_fields(tmp_path: Path, tokenizer: str, capsys: Out) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"a": "x", "b": "y"}\n')
    source = {"source": str(tmp_path / "data" / "a.jsonl")}
    collection = {"name": "mine", "categories": {"web": {"share": 1, "sources": {"pages": source}}}}
    (tmp_path / "c.yaml").write_text(json.dumps(collection))
    more = ["-o", str(tmp_path / "out"), "--tokenizer", tokenizer]
    for dry in ([], ["--dry-run"]):
        assert run(["build", str(tmp_path / "c.yaml"), *more, *dry]) == 1
        assert "try: choose one with text_column: a (string), b (string)" in capsys.readouterr().err
        assert run(["build", str(tmp_path / "data"), "--recursive", *more, *dry]) == 1  # here the option helps
        assert "try: choose one with --text-column: a (string), b (string)" in capsys.readouterr().err


def test_a_second_build_into_the_same_folder_is_refused(data: Path, tokenizer: str, capsys: Out) -> None:
    out = data.parent / "out"
    arguments = [data, "-o", out, "--recursive", "--tokenizer", tokenizer, "--max-seq-length", 64]
    first = start("build", *arguments)
    lock = out / ".lance_prep" / "lock"
    assert wait_for(lambda: lock.exists() and lock.stat().st_size > 0, first)
    first.send_signal(signal.SIGSTOP)
    assert build(data, tokenizer) == 1
    assert f"{out} is being built by process {first.pid} on " in capsys.readouterr().err
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert build(data, tokenizer) == 0
    assert all(split["version"] == 1 for split in manifest_of(data)["splits"].values())
    with pytest.raises(OutputExists, match="is a folder with other things in it"):
        lance_prep.build("sample", output=out)


def test_an_unfinished_download_that_cannot_be_opened_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_bytes(b"")
    state = State({}, rejected_bytes=5)
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(DamagedDataset, match="has 0 bytes, and 5 were written"):
        Parts(tmp_path / "text", tmp_path / "rejected", state)
    assert len(list(Path("/dev/fd").iterdir())) == before


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
MIXED = """
name: mixed
defaults:
  tokenizer: {tokenizer}
  chat_template: own.jinja
  add_special_tokens: true
  block_size: 64
categories:
  text:
    share: 30
    sources:
      prose: {{source: prose.jsonl}}
      spoken: {{source: talks.jsonl, messages: messages}}
  talk:
    share: 70
    chat: true
    sources:
      talks: {{source: talks.jsonl, messages: messages}}
      pairs: {{source: pairs.jsonl, messages: "prompt,completion"}}
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A collection recipe of text, of conversations as text, and of conversations for a chat template."""
    tokenizer = made.save(tmp_path / "model", made.chat(("<|im_start|>", "<|im_end|>"), ()), eos_token="<|im_end|>")
    (tmp_path / "own.jinja").write_text(CHAT_TEMPLATE)
    write_texts(tmp_path / "texts", files=1, rows=40, seed=1)
    (tmp_path / "texts" / "0.jsonl").rename(tmp_path / "prose.jsonl")
    asked = [(f"What is {i}?", f"It is {i}, <|im_end|> of course.") for i in range(30)]
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in asked))
    (tmp_path / "mixed.yaml").write_text(MIXED.format(tokenizer=tokenizer))
    return tmp_path / "mixed.yaml"


def test_a_category_of_conversations(mixed: Path, capsys: Out) -> None:
    """Each dataset is what a build by itself gives, and the mixture learns what the assistant wrote."""
    out, folder = mixed.parent / "out", mixed.parent
    for status in ("built", "unchanged"):
        assert run(["build", str(mixed), "-o", str(out), "--json"]) == 0
        assert {source["status"] for source in last_json(capsys)["sources"]} == {status}
    options: dict[str, Any] = {"tokenizer": str(folder / "model"), "block_size": 64}
    chat = {**options, "chat_template": str(folder / "own.jinja")}
    alone = {
        "prose": ("prose.jsonl", {**options, "add_special_tokens": True}),
        "spoken": ("talks.jsonl", {**options, "add_special_tokens": True, "template": "{{ messages | turns }}"}),
        "talks": ("talks.jsonl", {**chat, "messages": "messages"}),
        "pairs": ("pairs.jsonl", {**chat, "messages": "prompt,completion"}),
    }
    splits = read_manifest(out / "manifest.json").splits
    for name, (file, fields) in alone.items():
        one = lance_prep.build(folder / file, output=folder / "alone" / f"{name}.lance", **fields)
        assert splits[name].content_hash == one.content_hash, name
    assert splits["talks"].content_hash == splits["pairs"].content_hash

    mixture = Mixture({str(out / "talks.lance"): 0.5, str(out / "pairs.lance"): 0.5}, labels="assistant")
    learned = [sample["labels"][sample["labels"] != -100] for sample in map(mixture.__getitem__, range(20))]
    assert all(len(each) for each in learned)
    data = LanceDataset(out / "talks.lance", labels="assistant")
    labels = data[0]["labels"]
    assert data.decode(labels[labels != -100]).startswith("It is ")


def test_a_manifest_of_conversations_makes_a_mixture(mixed: Path) -> None:
    text = mixed.read_text()
    text = text[: text.index("  text:")] + text[text.index("  talk:") :]
    mixed.write_text(text.replace("add_special_tokens: true", "add_special_tokens: false"))
    with pytest.raises(UsageError, match="add_special_tokens has no effect: all sources of mixed are conversations"):
        lance_prep.build_collection(mixed, output=mixed.parent / "out")
    mixed.write_text(text)
    with pytest.raises(UsageError, match="special_tokens has no effect"):
        lance_prep.build_collection(mixed, output=mixed.parent / "out", special_tokens="parse")
    lance_prep.build_collection(mixed, output=mixed.parent / "out")
    mixture = Mixture.from_manifest(mixed.parent / "out", labels="assistant")
    assert all(0 < int((mixture[i]["labels"] != -100).sum()) < 64 for i in range(20))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("messages: messages}\n      pairs", "text_column: messages}\n      pairs", "chat needs messages"),
        ("chat: true", "chat: maybe", "categories.talk.chat"),
        ('"prompt,completion"', '"a,b,c,d"', "at most 3"),
        ("chat_template: own.jinja", "chat_template: none.jinja", "none.jinja"),
    ],
)
def test_errors_of_conversations(mixed: Path, capsys: Out, before: str, after: str, said: str) -> None:
    text = mixed.read_text()
    assert before in text
    mixed.write_text(text.replace(before, after))
    assert run(["build", str(mixed), "-o", str(mixed.parent / "out"), "--dry-run"]) == 1
    assert said in capsys.readouterr().err


def test_conversations_for_a_chat_template_are_not_downloaded(mixed: Path, capsys: Out) -> None:
    assert run(["download", str(mixed), "-o", str(mixed.parent / "raw")]) == 2
    assert "talk.talks, talk.pairs of mixed cannot be downloaded as text" in capsys.readouterr().err
    assert run(["download", str(mixed), "-o", str(mixed.parent / "raw"), "--category", "text"]) == 0
