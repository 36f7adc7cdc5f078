"""`verify` finds what is wrong: a flipped byte in any file, a file gone or cut, rows that the source does not have."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lance.file import LanceFileReader

import lance_prep
from lance_prep.cli.main import run
from lance_prep.dataset import SourceCheck, Verification, open_version, verify
from lance_prep.dataset.check_source import LONGEST_TEXT, SampledEncoder
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe
from lance_prep.store.journal import Receipt
from lance_prep.store.output import Output
from lance_prep.tokenizer import ReferenceEncoder, TokenLists, load_tokenizer
from tests import tokenizers_made as made

#: The kinds of files of a dataset, and where they lie.
KINDS = {
    "data": "data/*.lance",
    "manifest": "_versions/*.manifest",
    "transaction": "_transactions/*.txn",
    "seal": ".lance_prep/seals/1.json",
    "receipt": ".lance_prep/builds/*/shard-000001.json",
    "plan": ".lance_prep/builds/*/plan.json",
    "committed": ".lance_prep/builds/*/committed.json",
    "list": ".lance_prep/lists/*.zst",
    "tokenizer": ".lance_prep/tokenizers/*.json",
}
#: Those of a dataset that has rejected rows and was used for training.
MORE_KINDS = {
    "rejected rows": ".lance_prep/builds/*/rejected-000000.jsonl",
    "quarantine note": ".lance_prep/quarantine.json",
    "version hint": "_versions/latest_version_hint.json",
    "index": ".lance_prep/cache/*/index.npz",
    "offsets": ".lance_prep/cache/*/offsets.npy",
    "seal of the index": ".lance_prep/cache/*/index.npz.seal",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a source of 900 rows in three row groups, and a whole dataset of it."""
    home = tmp_path_factory.mktemp("verify")
    made.save(home / "tokenizer", made.with_template(), eos_token="<|endoftext|>", bos_token="<s>")
    texts = [f"row {i} of words\nand its line {i * 7}" if i % 10 else None for i in range(900)]
    table = pa.table({"text": texts, "n": range(900)})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}  # each text stands in it once
    pq.write_table(table, home / "a.parquet", row_group_size=300, **plain)
    build(home, "whole", layout="lines", keep_columns=("n",))
    return home


def build(home: Path, name: str, **fields: Any) -> str:
    given = {
        "tokenizer": str(home / "tokenizer"),
        "shard_size": 9000,
        "shuffle_batch_size": 100,
        "block_size": 32,
        **fields,
    }
    unread = LAYOUTS[given.get("layout", "blocks")].unread
    given = {name: value for name, value in given.items() if name in fields or name not in unread}
    report = lance_prep.build(home / "a.parquet", output=home / f"{name}.lance", **given)
    assert report.shards == 3
    return report.uri


@pytest.fixture
def whole(home: Path, tmp_path: Path) -> Path:
    """A copy of the whole dataset, to be damaged, and of its source."""
    shutil.copy2(home / "a.parquet", tmp_path / "a.parquet")
    return Path(shutil.copytree(home / "whole.lance", tmp_path / "whole.lance"))


def flip(path: Path, at: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


def problems(uri: object, **fields: Any) -> list[str]:
    return verify(str(uri), **fields).problems


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with rejected rows and a cached index, for tests that damage and repair it."""
    from lance_prep.train import LanceDataset

    home = tmp_path_factory.mktemp("used")
    made.save(home / "tokenizer", made.with_template(), eos_token="<|endoftext|>", bos_token="<s>")
    (home / "a.jsonl").write_text("".join(f'{{"text": "row {i}"}}\n' if i % 20 else "bad\n" for i in range(200)))
    lance_prep.build(home / "a.jsonl", output=home / "o.lance", layout="documents", tokenizer=str(home / "tokenizer"))
    assert len(LanceDataset(home / "o.lance", block_size=16))
    return home / "o.lance"


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_a_flipped_byte_beside_the_rows_is_found(used: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    check_flips(used, next(used.glob(MORE_KINDS[kind])), capfd)


def test_a_tag_is_checked_against_its_version(used: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tag", str(used), "gold"]) == 0
    path = used / "_refs/tags/gold.json"
    data = path.read_bytes()
    for wrong in (data.replace(b'"version": 1', b'"version": 3'), data.replace(b"Size", b"Site"), data[:-1], b""):
        path.write_bytes(wrong)
        assert any("gold.json: " in problem for problem in problems(used)), wrong
    path.unlink()
    assert problems(used) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found(whole: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    check_flips(whole, next(whole.glob(KINDS[kind])), capfd)


def check_flips(whole: Path, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Flip a bit in up to 25 places of a file, one at a time: each is found, and without it the dataset is whole."""
    good = path.read_bytes()
    places = np.linspace(0, len(good) - 1, 25).astype(int).tolist() if len(good) > 60 else range(len(good))
    for at in places:
        flip(path, at)
        assert run(["verify", str(whole)]) == 1, f"byte {at} of {len(good)}"
        said = capfd.readouterr()
        assert "wrong: " in said.out, f"byte {at} of {len(good)}"
        assert "Traceback" not in said.err
        path.write_bytes(good)
    assert run(["verify", str(whole)]) == 0


def test_the_fragment_and_its_rows_are_named(whole: Path) -> None:
    fragment = lance.dataset(str(whole)).get_fragments()[1]
    name = fragment.metadata.files[0].path
    first = lance.dataset(str(whole)).get_fragments()[0].count_rows()
    flip(whole / "data" / name, 100)
    assert [p.split(" has changed since it was written")[0] for p in problems(whole)] == [
        f"data/{name} (rows {first:,} to {first + fragment.count_rows() - 1:,})"
    ]


def without_hashes(whole: Path) -> None:
    """As a dataset in an object store is, whose files are not hashed."""
    for path in whole.glob(KINDS["receipt"].replace("000001", "*")):
        path.write_bytes(replace(Receipt.from_bytes(path.read_bytes()), file_hashes={}).to_bytes())


def page_bytes(path: Path) -> list[int]:
    """Places of a data file that hold rows."""
    columns = LanceFileReader(str(path)).metadata().columns
    buffers = [buffer for column in columns for page in column.pages for buffer in page.buffers]
    return [at for buffer in buffers for at in range(buffer.position, buffer.position + buffer.size)]


def test_without_a_hash_of_the_file_the_rows_tell(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    without_hashes(whole)
    path = next(whole.glob(KINDS["data"]))
    good, rows = path.read_bytes(), lance.dataset(str(whole)).to_table()
    pages = page_bytes(path)
    assert len(pages) > len(good) // 3
    places = [*np.linspace(0, len(good) - 1, 40).astype(int).tolist(), *pages[:: len(pages) // 40]]
    for at in places:
        flip(path, at, 0x10)
        if not problems(whole):
            # Padding, statistics, versions of the format: no row depends on them.
            assert at not in pages
            assert lance.dataset(str(whole)).to_table().equals(rows)
        path.write_bytes(good)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "were written"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "has changed since it was written"),
    ],
)
def test_a_data_file_that_is_not_there_or_cut(whole: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(sorted(whole.glob("data/*"))[0])
    found = problems(whole)
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("data", "seal", "committed")])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\x00", b"[1, 2]", b'{"files": 3, "recipe": 1}'])
def test_other_files_that_are_gone_or_rubbish(
    whole: Path, kind: str, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = next(whole.glob(KINDS[kind]))
    path.unlink() if content is None else path.write_bytes(content)
    assert run(["verify", str(whole)]) == 1
    said = capfd.readouterr()
    assert "wrong: " in said.out or "error: " in said.err
    assert "Traceback" not in said.err
    assert "defect of lance-prep" not in said.err


def tampered(uri: str, change: Callable[[pa.Table], pa.Table]) -> Verification:
    """The dataset with other rows under the same metadata, as a program that goes wrong would leave it."""
    opened = open_version(uri)
    schema = opened.dataset.schema
    table = change(opened.dataset.to_table()).cast(schema.remove_metadata())
    output = Output(uri)
    rows = iter(table.combine_chunks().to_batches())
    fragment = output.write(rows, table.schema, layout=opened.metadata.layout).fragment
    assert fragment is not None
    output.commit(schema, [fragment], on=opened.number, why={})
    return verify(uri)


def column(table: pa.Table, name: str, change: Callable[[list[Any]], Any]) -> pa.Table:
    values = table[name].to_pylist()
    change(values)
    i = table.schema.get_field_index(name)
    return table.set_column(i, table.schema.field(i), pa.array(values, table.schema.field(i).type))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("input_ids", lambda v: v[700].__setitem__(0, 60_000), "row 700: an id is beyond the vocabulary"),
        ("num_tokens", lambda v: v.__setitem__(700, 1), "row 700: num_tokens is 1"),
        ("doc_id", lambda v: v.__setitem__(700, 5), "row 700: doc_id 5 is not of this shard"),
        ("doc_id", lambda v: v.__setitem__(3, 300), "row 3: doc_id says source row 300, but the shard has 300"),
        ("n", lambda v: v.__setitem__(700, 0), "content hash is"),
    ],
)
def test_a_wrong_row_is_named(whole: Path, name: str, change: Callable[[list[Any]], Any], says: str) -> None:
    found = tampered(str(whole), lambda table: column(table, name, change))
    shard = "shard 0" if "row 3:" in says else "shard 1"
    assert any(problem.startswith(shard) and says in problem for problem in found.problems), found.problems
    assert any("content hash is" in problem for problem in found.problems)
    assert not any("shard 2" in problem for problem in found.problems)


def test_padding_that_is_no_padding(home: Path) -> None:
    uri = build(home, "padding", packing="best-fit", overwrite=True)
    stated = lance.dataset(uri).to_table()["num_tokens"].to_pylist()
    row = next(i for i, n in enumerate(stated) if n < 32)
    found = tampered(uri, lambda t: column(t, "input_ids", lambda ids: ids[row].__setitem__(31, 77)))
    assert any(f"row {row:,}: its padding holds other ids" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("seq_lengths", lambda v: v[2].__setitem__(0, v[2][0] + 1), "row 2: its seq_lengths add up to"),
        ("seq_lengths", lambda v: v[2].append(0), "row 2: its seq_lengths name an empty document"),
        ("doc_ids", lambda v: v[2].append(v[2][-1]), "row 2: {} doc_ids for {} seq_lengths"),
        ("doc_ids", lambda v: v[2].__setitem__(-1, (5 << 40) | 1), "row 2: doc_id 5497558138881 is not of this shard"),
        ("doc_ids", lambda v: v[2].__setitem__(-1, 300), "row 2: doc_id says source row 300, but the shard has 300"),
    ],
)
def test_wrong_document_boundaries_are_named(
    home: Path, tmp_path: Path, name: str, change: Callable[[list[Any]], Any], says: str
) -> None:
    uri = build(home, tmp_path.name)
    pieces = len(lance.dataset(uri).take([2])["doc_ids"][0])
    found = tampered(uri, lambda table: column(table, name, change))
    said = says.format(pieces + 1, pieces)
    assert any(problem.startswith("shard 0") and said in problem for problem in found.problems), found.problems


BUILDS = {
    "lines": {"layout": "lines", "keep_columns": ("n",)},
    "documents": {"layout": "documents", "keep_columns": ("n",)},
    "concat": {"layout": "blocks"},
    "best-fit": {"layout": "blocks", "packing": "best-fit"},
    "raw": {"layout": "raw"},
    "limited": {"layout": "raw", "max_rows": 750},
}


@pytest.mark.parametrize("name", BUILDS)
def test_rows_made_again_from_the_source(home: Path, tmp_path: Path, name: str) -> None:
    shutil.copy2(home / "a.parquet", tmp_path / "a.parquet")
    made.save(tmp_path / "tokenizer", made.with_template(), eos_token="<|endoftext|>", bos_token="<s>")
    uri = build(tmp_path, "o", **BUILDS[name])
    found = verify(uri, against=SourceCheck(10_000))
    assert found.problems == []
    assert found.checks["rows against the source"] == found.checks["rows"]
    everything = verify(uri, against=SourceCheck(None))
    assert everything.checks == found.checks
    some = verify(uri, against=SourceCheck(20, seed=4))
    assert some.problems == []
    assert some.checks["rows against the source"] == some.checks["rows"]
    one = verify(uri, against=SourceCheck(1))
    assert one.problems == []
    assert 0 < one.checks["rows against the source"] <= one.checks["rows"] // 2
    if "raw" not in BUILDS[name].values():
        texts = "texts encoded with tokenizers"
        assert 0 < some.checks[texts] < everything.checks[texts] // 2
    row = 555
    if name != "raw" and name != "limited":
        table = lance.dataset(uri).to_table()
        docs = (
            table["doc_id"].to_pylist()
            if "doc_id" in table.schema.names
            else [d[0] for d in table["doc_ids"].to_pylist()]
        )
        row = 300 + (docs[len(docs) // 2] & ((1 << 40) - 1))
    changed(tmp_path / "a.parquet", b"row %d of words" % row, b"row %d of wurds" % row)
    found = verify(uri, against=SourceCheck(10_000))
    assert [problem.split(", row ")[0] for problem in found.problems] == ["shard 1"]
    check_first_difference(uri, found.problems[0], row)
    assert verify(uri, against=SourceCheck(20, seed=4)).problems == found.problems
    assert problems(uri) == []


def check_first_difference(uri: str, problem: str, source_row: int) -> None:
    """The row that is named came from the changed text, and what is said to be in it is in it."""
    said = re.fullmatch(r"shard 1, row ([\d,]+)(?: \(doc_id (\d+), source row ([\d,]+)\))?: (.*)", problem)
    assert said is not None, problem
    row = lance.dataset(uri).take([int(said[1].replace(",", ""))]).to_pylist()[0]
    if "n" in row and "doc_id" not in row:
        text = f"row {source_row} of words\\nand its line {source_row * 7}"
        assert said[4] == f"text is '{text}', the source gives '{text.replace('words', 'wurds')}'"
        return
    doc = row["doc_id"] if "doc_id" in row else row["doc_ids"][0]
    assert (said[2], said[3]) == (str(doc), str(doc - (1 << 40)))
    if "doc_id" in row:
        assert doc == 1 << 40 | (source_row - 300)
    place = re.match(r"input_ids has (\[.+?\]) from place (\d+) on, the source gives (\[.+?\])", said[4])
    assert place is not None, problem
    assert json.loads(place[1]) == row["input_ids"][int(place[2]) :][:3]
    assert place[1] != place[3]


def changed(path: Path, old: bytes, new: bytes) -> None:
    """Change a file's content, but not its size or times."""
    stat, data = path.stat(), path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"last", b"    ", "row 49: the source gives only 49 of the 50 rows"),
        (b"    ", b"more", "row 50: the source gives more rows than the 50 that were written"),
    ],
)
def test_a_source_with_fewer_or_more_rows(home: Path, tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    texts = [*(f"text {i}" for i in range(49)), "last", "    "]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    uri = str(tmp_path / "o.lance")
    fields = {"tokenizer": str(home / "tokenizer"), "layout": "documents", "shuffle": False}
    lance_prep.build(tmp_path / "a.jsonl", output=uri, **fields)
    assert problems(uri, against=SourceCheck()) == []
    changed(tmp_path / "a.jsonl", b'"' + old + b'"', b'"' + new + b'"')
    assert problems(uri, against=SourceCheck()) == [f"shard 0, {says}"]


def test_a_shard_that_the_reference_encoded_is_the_sources(tmp_path: Path) -> None:
    """The recorded backend gives other ids; the check during the build had turned the shard over to `tokenizers`."""
    tokenizer = made.save(tmp_path / "tokenizer", made.without_regex())
    (tmp_path / "a.txt").write_text("\n".join(f"it's {i} spaces\tand   tabs: f(x)  return" for i in range(300)))
    fields = {"tokenizer": tokenizer, "tokenizer_backend": "gigatoken", "layout": "lines"}
    report = lance_prep.build(tmp_path / "a.txt", output=tmp_path / "o.lance", **fields)
    assert report.ledger.shards_by_reference == 1
    assert problems(report.uri, against=SourceCheck(3)) == []
    changed(tmp_path / "a.txt", b"it's 250", b"it's 205")
    assert len(problems(report.uri, against=SourceCheck(3))) == 1


class Wrong:
    name = "wrong"

    def encode(self, texts: pa.LargeStringArray) -> TokenLists:
        return TokenLists(np.arange(len(texts) + 1), np.full(len(texts), 7, np.uint16))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_reference_encodes_a_share_of_the_texts(home: Path, share: float) -> None:
    recipe = Recipe(source="any", tokenizer=str(home / "tokenizer"))
    reference = ReferenceEncoder(load_tokenizer(recipe), recipe)
    texts = pa.array([*(f"text number {i}" for i in range(99)), "long " * (LONGEST_TEXT // 5 + 1)], pa.large_string())
    encoder = SampledEncoder(Wrong(), reference, share, np.random.default_rng(3))
    got, want = encoder.encode(texts).as_arrow().to_pylist(), reference.encode(texts).as_arrow().to_pylist()
    right = [i for i in range(len(texts)) if got[i] == want[i]]
    assert all(got[i] == [7] for i in range(len(texts)) if i not in right)
    assert encoder.rows_checked == len(right)
    assert len(right) in {0.0: [0], 0.4: range(20, 60), 1.0: [99]}[share]


def test_a_touched_or_renamed_source_is_the_same(home: Path, tmp_path: Path, capsys: Any) -> None:
    """As `build` takes it: by content. A changed one is not, also under the same name and size."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(home / "a.parquet", folder / "a.parquet")
    uri = tmp_path / "o.lance"
    lance_prep.build(folder, output=uri, tokenizer=str(home / "tokenizer"), shard_size=9000, layout="lines")
    check = SourceCheck(50)
    os.utime(folder / "a.parquet", ns=(1, 1))
    assert verify(uri, against=check).problems == []
    (folder / "a.parquet").rename(folder / "b.parquet")
    assert verify(uri, against=check).problems == []
    (folder / "b.parquet").rename(folder / "deep" / "c.parquet")
    assert verify(uri, against=check).checks["rows against the source"] >= 50
    assert run(["verify", str(uri), "--against-source"]) == 0
    data = (folder / "deep" / "c.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data.replace(b"row 555 of words", b"row 555 of wurds"))
    assert verify(uri, against=check).problems == []
    (folder / "deep" / "c.parquet").unlink()
    found = verify(uri, against=check).problems
    assert found
    assert all("has other content than when it was built" in problem for problem in found)


def test_a_source_that_is_gone(home: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copy2(home / "a.parquet", tmp_path / "a.parquet")
    made.save(tmp_path / "tokenizer", made.with_template(), eos_token="<|endoftext|>", bos_token="<s>")
    uri = build(tmp_path, "o")
    (tmp_path / "a.parquet").unlink()
    assert run(["verify", uri]) == 0
    capsys.readouterr()
    assert run(["verify", uri, "--against-source", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["ok"]
    assert all("cannot be compared with the source" in problem for problem in said["problems"])


def test_verify_on_the_command_line(whole: Path, capsys: Any) -> None:
    assert run(["verify", str(whole), "--against-source", "--sample-rows", "30", "--seed", "7"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("whole: ")
    assert re.search(r"\b\d\d texts encoded with tokenizers, 1,620 rows against the source$", said.out.strip())
    assert "comparing" in said.err
    assert run(["verify", str(whole), "--against-source", "--sample-rows", "all"]) == 0
    assert "1,620 texts encoded with tokenizers, 1,620 rows against the source" in capsys.readouterr().out
    assert run(["verify", str(whole), "--against-source", "--sample-rows", "0"]) == 2
    assert run(["verify", str(whole), "--version", "3"]) == 1
    assert "has no version 3" in capsys.readouterr().err


#: Commands that read or change a dataset; "W" is the dataset.
READERS = [
    ["show", "W", "--limit", "900"],
    ["info", "W"],
    ["diff", "W", "1", "1"],
    ["compact", "W"],
    ["restore", "W", "1"],
    ["prune", "W", "--older-than", "0d"],
    ["tag", "W", "gold"],
]


@pytest.mark.parametrize("kind", ["data", "manifest", "list", "tokenizer"])
def test_a_damaged_dataset_is_a_dataset_error(
    home: Path, whole: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is damaged and whatever is done: it works, or it says so in a line. Damaged rows are not copied."""
    source = ["build", str(home / "a.parquet"), "--tokenizer", str(home / "tokenizer"), "--layout", "lines", "-o", "W"]
    path = sorted(whole.glob(KINDS[kind]))[0]
    good = path.read_bytes()
    kept = whole.with_name("kept")
    whole.rename(kept)
    for at in [0, len(good) * 5 // 8, len(good) - 1, None]:
        for arguments in [*READERS, source]:
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(kept, whole)
            path.write_bytes(good[:-5]) if at is None else flip(path, at)
            code = run([str(whole) if argument == "W" else argument for argument in arguments])
            said = capfd.readouterr().err
            assert "Traceback" not in said, (arguments, at)
            assert "defect of lance-prep" not in said, (arguments, at)
            assert "error: writing" not in said, (arguments, at)
            assert code == 0 or "  try: " in said, (arguments, at)
            assert (kind, arguments[0], code) != ("data", "compact", 0), at
