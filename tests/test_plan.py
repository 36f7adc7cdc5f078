"""Plan stage: names to files, columns and shards; and each way in which it says no."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_prep.cli.main import run
from lance_prep.errors import (
    AccessDenied,
    BadFile,
    ColumnNotFound,
    HubUnreachable,
    LancePrepError,
    RecipeError,
    SourceError,
    SourceNotFound,
    UsageError,
    translate,
)
from lance_prep.model import Plan
from lance_prep.plan import SHARD_BYTES
from lance_prep.plan.cut import cut_shards
from lance_prep.recipe import Recipe
from lance_prep.transport import Transport
from tests.sources import parquet_bytes, plan_of, read

TEXTS = [f"text {i}" for i in range(1000)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.parquet", "a.parquet", "sub/c.parquet", ".hidden/d.parquet"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(parquet_bytes({"text": [name]}))
    (tmp_path / "README.md").write_text("no data")
    return tmp_path


def names(plan: Plan) -> list[str]:
    return [Path(file.url).name for file in plan.files]


def test_folder_is_recursive_sorted_and_without_hidden_files(folder: Path) -> None:
    assert names(plan_of(folder)) == ["a.parquet", "b.parquet", "c.parquet"]


def test_a_glob_names_the_files_that_match(folder: Path) -> None:
    assert names(plan_of(folder / "*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(plan_of(folder / "**/*.parquet")) == ["a.parquet", "b.parquet", "c.parquet"]


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a link to another, to one of its own and to itself, and what is no data."""
    source = tmp_path / "source"
    lines(source / "a.jsonl", "a")
    lines(source / "sub/b.jsonl", "b")
    lines(tmp_path / "other/c.jsonl", "c")
    lines(tmp_path / "other/deep/d.jsonl", "d")
    (source / "far").symlink_to("../other")
    (source / "again").symlink_to("../other/deep")
    (source / "twin").symlink_to("sub")
    (source / "sub/up").symlink_to("..")
    (source / "sub/above").symlink_to("../..")
    (source / "copy.jsonl").symlink_to("a.jsonl")
    (source / "notes.pdf").write_text("no data")
    (source / ".git").mkdir()
    os.mkfifo(source / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(source / "socket.jsonl"))
    return source


def test_each_real_folder_is_read_once_and_what_is_left_out_is_named(linked: Path) -> None:
    plan = plan_of(linked)
    found = [str(Path(file.url).relative_to(linked)) for file in plan.files]
    assert found == ["a.jsonl", "again/d.jsonl", "copy.jsonl", "far/c.jsonl", "sub/b.jsonl"]
    assert {each.path: each.reason for each in plan.skipped} == {
        ".git": "hidden",
        "far/deep": "a folder that is read already",
        "notes.pdf": "not a data file",
        "pipe.jsonl": "a FIFO",
        "socket.jsonl": "a socket",
        "sub/above": "a folder around the source",
        "sub/up": "a folder that is read already",
        "twin": "a folder that is read already",
    }
    assert plan.left_out.startswith(f"8 left out of {linked}: pipe.jsonl (a FIFO); ")


def test_a_pattern_reads_each_file_once_through_links(linked: Path) -> None:
    def found(pattern: str) -> list[str]:
        return [str(Path(file.url).relative_to(linked)) for file in plan_of(linked / pattern).files]

    assert found("**/*.jsonl") == ["a.jsonl", "again/d.jsonl", "copy.jsonl", "far/c.jsonl", "sub/b.jsonl"]
    assert found("*/*/d.jsonl") == ["far/deep/d.jsonl"]
    assert found("**/[cd].jsonl") == ["again/d.jsonl", "far/c.jsonl"]


def test_a_link_loop_under_a_pattern_repeats_nothing(tmp_path: Path) -> None:
    lines(tmp_path / "loop/b.jsonl", "only")
    (tmp_path / "loop/sub").mkdir()
    (tmp_path / "loop/sub/up").symlink_to("..")
    assert read(tmp_path / "loop/**/*.jsonl")[0] == ["only"]
    assert read(tmp_path / "loop")[0] == ["only"]


def test_broken_links_are_errors(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.jsonl").symlink_to("b.jsonl")
    for source in (tmp_path, tmp_path / "*.jsonl", tmp_path / "b.jsonl"):
        with pytest.raises(SourceNotFound, match=r"b\.jsonl is a link to itself"):
            plan_of(source)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    for source in (tmp_path, tmp_path / "*.jsonl", tmp_path / "b.jsonl"):
        with pytest.raises(SourceNotFound, match=r"b\.jsonl is a link to gone\.jsonl, which does not exist"):
            plan_of(source)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "latest").symlink_to("gone")
    assert [each.path for each in plan_of(tmp_path).skipped] == ["latest"]


def test_a_fifo_is_not_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(SourceNotFound, match="is a FIFO"):
        plan_of(tmp_path / "x.jsonl")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    lines(tmp_path / "source/a.jsonl", "a")
    lines(tmp_path / "source/secret/b.jsonl", "b")
    (tmp_path / "source/secret").chmod(0)
    # root may list any folder, unless it gives up the right to
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] if os.geteuid() == 0 else []
    for source in ("source", "source/**/*.jsonl", "source/*/*.jsonl"):
        build = [*command, sys.executable, "-m", "lance_prep", "build", source, "--layout", "raw", "--dry-run"]
        ran = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 1
        assert "source/secret: no permission to list this folder" in ran.stderr
        assert "\n  try: change its permissions" in ran.stderr
    (tmp_path / "source/secret").chmod(0o700)


def test_the_build_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(tmp_path / "source/a.jsonl", "a")
    (tmp_path / "source/notes.pdf").write_text("no data")
    command = ["build", str(tmp_path / "source"), "--layout", "raw", "-o", str(tmp_path / "x.lance")]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert "warning: 1 left out of" in said
    assert "notes.pdf (not a data file)" in said
    (tmp_path / "source/more.pdf").write_text("no data either")
    assert run(command) == 0
    assert "is up to date" in capsys.readouterr().out  # it decides no row, so nothing is built


def test_small_files_share_a_shard(folder: Path) -> None:
    (shard,) = plan_of(folder).shards
    assert [part.file for part in shard.parts] == [0, 1, 2]
    assert shard.rows == 3


def test_a_path_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/name").mkdir()
    Path("owner/name/x.txt").write_text("here\n")
    assert plan_of("owner/name").files[0].format == "text"


def test_a_plan_survives_json(folder: Path) -> None:
    plan = plan_of(folder, filter="text != 'x'")
    again = Plan.from_json(plan.as_json())
    assert again == plan
    assert again.schema == plan.schema
    assert again.read_schema == plan.read_schema


@pytest.mark.parametrize("target", [1, 2_000, 5_000, 1 << 30])
def test_row_groups_are_cut_once_each(tmp_path: Path, target: int) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes({"text": TEXTS, "other": ["x" * 100] * 1000}))
    plan = plan_of(path)
    shards = cut_shards(
        plan.files, plan.recipe.model_copy(update={"shard_size": target}), plan.read_schema, Transport()
    )
    groups = [g for shard in shards for part in shard.parts for g in range(part.start, part.stop)]
    assert groups == list(range(10))
    assert sum(shard.rows or 0 for shard in shards) == 1000
    assert [shard.index for shard in shards] == list(range(len(shards)))


def test_lines_are_cut_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' * 100)
    plan = plan_of(path)
    recipe = plan.recipe.model_copy(update={"shard_size": 300})
    shards = cut_shards(plan.files, recipe, plan.read_schema, Transport())
    edges = [(part.start, part.stop) for shard in shards for part in shard.parts]
    assert edges[0][0] == 0
    assert edges[-1][1] == 1400
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    assert SHARD_BYTES == 128 << 20


def test_text_column_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes({"n": [1], "body": ["b"]}))
    plan = plan_of(path, keep_columns=("n",))
    assert plan.recipe.text_column == "body"
    assert plan.schema == pa.schema([("body", pa.large_string()), ("n", pa.int64())])


def test_raw_takes_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes({"n": [1], "a": ["b"], "c": ["d"]}))
    assert plan_of(path, layout="raw").schema.names == ["n", "a", "c"]
    assert plan_of(path, layout="raw", keep_columns=("c", "n")).schema.names == ["n", "c"]


def test_topics_need_no_files() -> None:
    texts, tally, _ = read("pydoc:topics")
    assert tally.ledger.rows_in == len(texts) > 50


@pytest.mark.parametrize(
    ("fields", "error", "said", "advice"),
    [
        ({"text_column": "nope"}, ColumnNotFound, "no column 'nope'", "a (string), b (string), n (int64)"),
        ({"keep_columns": ("nope",)}, ColumnNotFound, "no column 'nope'", "a (string)"),
        ({}, ColumnNotFound, "several columns hold text", "text_column"),
        ({"text_column": "n"}, ColumnNotFound, "int64, not text", "text_column"),
        ({"template": "{{ nope }}"}, ColumnNotFound, "refers to an unknown column", "a (string)"),
        ({"template": "{{ a"}, UsageError, "not jinja2", "{{"),
        ({"text_column": "a", "filter": "nope = 1"}, ColumnNotFound, "no column 'nope'", "a (string)"),
        ({"text_column": "a", "filter": "a ="}, UsageError, "not an SQL condition", "BETWEEN"),
        ({"text_column": "a", "filter": "length(a) > 3"}, UsageError, "not understood", "BETWEEN"),
        ({"text_column": "a", "filter": "n % 2 = 0"}, UsageError, "'n % 2' is not understood", "over columns"),
        ({"text_column": "a", "filter": "5 < length(a)"}, UsageError, "'LENGTH(a)' is not understood", "over columns"),
        ({"text_column": "a", "filter": "lower(a) = 'x'"}, UsageError, "'LOWER(a)' is not understood", "over columns"),
        (
            {"text_column": "a", "filter": "n = 99999999999999999999"},
            UsageError,
            "so 99999999999999999999 can",
            "int64",
        ),
        (
            {"text_column": "a", "filter": "n in (-99999999999999999999)"},
            UsageError,
            "so -99999999999999999999",
            "int64",
        ),
        ({"text_column": "a", "filter": "u8 > -1"}, UsageError, "is uint8, so -1 cannot", "from 0 to 255"),
        ({"text_column": "a", "filter": "a = b"}, UsageError, "not understood", "literals"),
        ({"text_column": "a", "filter": "n = 'x'"}, UsageError, "is int64", "quotes"),
        ({"text_column": "a", "filter": "a = 3"}, UsageError, "is string", "quotes"),
        ({"text_column": "a", "filter": "a = NULL"}, UsageError, "not understood", "IS NULL"),
        ({"text_column": "a", "split": "train"}, UsageError, "take `split`", "remove"),
    ],
)
def test_fields_that_do_not_fit_the_source_are_refused(
    tmp_path: Path, fields: dict[str, object], error: type[LancePrepError], said: str, advice: str
) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes({"a": ["x"], "b": ["y"], "n": [1], "u8": pa.array([1], pa.uint8())}))
    with pytest.raises(error) as caught:
        plan_of(path, **fields)
    assert said in str(caught.value)
    assert advice in caught.value.advice


def test_several_kinds_of_files_are_refused_with_a_glob_that_works(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.csv"):
        lines(tmp_path / name, "a")
    with pytest.raises(UsageError, match="several kinds: 1 csv and 2 json") as caught:
        plan_of(tmp_path)
    assert "'*.jsonl'" in caught.value.advice
    assert len(plan_of(f"{tmp_path}/*.jsonl").files) == 2


def test_a_path_that_does_not_exist_is_named() -> None:
    with pytest.raises(SourceNotFound, match="no such file") as caught:
        plan_of("no/such/file.parquet")
    assert "Hub id" in caught.value.advice


def test_a_folder_or_glob_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no data file"):
        plan_of(tmp_path / "*.parquet")
    with pytest.raises(SourceNotFound, match="no data files"):
        plan_of(tmp_path)


def test_an_unknown_extension_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(b"x")
    with pytest.raises(SourceError, match="unknown file extension") as caught:
        plan_of(tmp_path / "x.pdf")
    assert ".parquet" in caught.value.advice


@pytest.mark.parametrize("data", [b"", b"no parquet at all, but long enough", b"PAR1" + b"\0" * 100, None])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes({"text": TEXTS})[:-100] if data is None else data)
    with pytest.raises(BadFile) as caught:
        plan_of(path)
    assert "x.parquet" in str(caught.value)
    assert caught.value.advice


def test_a_later_file_lacks_the_column(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"text": ["x"]}))
    (tmp_path / "b.parquet").write_bytes(parquet_bytes({"other": ["x"]}))
    with pytest.raises(ColumnNotFound, match=r"b\.parquet: no column 'text'"):
        plan_of(tmp_path)


def test_other_libraries_errors_become_ours() -> None:
    assert isinstance(translate(OSError(28, "No space left on device"), "x"), LancePrepError)
    assert isinstance(translate(PermissionError(13, "denied", "/x"), "x"), LancePrepError)
    assert isinstance(translate(MemoryError(), "x"), LancePrepError)
    assert isinstance(translate(pa.ArrowInvalid("broken"), "x"), BadFile)
    assert translate(ZeroDivisionError(), "x") is None


def test_hub_errors_become_ours() -> None:
    """Each error class of huggingface_hub that a reader may meet."""
    from huggingface_hub import errors

    class Answer:
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

        def __init__(self, status: int) -> None:
            self.status_code = status

    expected = {
        (errors.GatedRepoError, 403): AccessDenied,
        (errors.RepositoryNotFoundError, 401): SourceNotFound,
        (errors.RevisionNotFoundError, 404): SourceNotFound,
        (errors.RemoteEntryNotFoundError, 404): SourceNotFound,
        (errors.HfHubHTTPError, 401): AccessDenied,
        (errors.HfHubHTTPError, 404): SourceNotFound,
        (errors.HfHubHTTPError, 429): HubUnreachable,
        (errors.HfHubHTTPError, 502): HubUnreachable,
    }
    for (kind, status), ours in expected.items():
        error = kind("said", response=Answer(status))
        assert type(translate(error, "x")) is ours, (kind, status)
    assert type(translate(errors.OfflineModeIsEnabled("x"), "x")) is HubUnreachable
    assert type(translate(errors.LocalEntryNotFoundError("x"), "x")) is HubUnreachable


def test_errors_say_the_fields_of_a_recipe() -> None:
    with pytest.raises(ValueError, match="block_size") as caught:
        Recipe(source="x", block_size=1, nonsense=3)  # type: ignore[call-arg]
    ours = translate(caught.value, "recipe")
    assert isinstance(ours, RecipeError)
    assert "block_size" in str(ours)
    assert "nonsense" in str(ours)


def test_urls_that_fsspec_knows_are_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/data/a.parquet", parquet_bytes({"text": TEXTS[:500]}))
    memory.pipe("/bucket/data/b.parquet", parquet_bytes({"text": TEXTS[500:]}))
    assert read("memory://bucket/data")[0] == TEXTS
    assert read("memory://bucket/data/b*.parquet")[0] == TEXTS[500:]
    with pytest.raises(SourceNotFound):
        plan_of("memory://bucket/nothing")
    with pytest.raises(UsageError):
        plan_of("nosuch://bucket/x.parquet")


def test_schema_metadata_is_not_carried_over(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, tmp_path / "x.parquet")
    assert plan_of(tmp_path / "x.parquet").schema.metadata is None


MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("", pa.int64(), "no name"),
        ("a.b", pa.int64(), "'a.b' has a dot"),
        ("doc_id", pa.int64(), "'doc_id'"),
        ("num_tokens", pa.int64(), "'num_tokens'"),
        ("m", MAP, "hold no maps"),
        ("m", pa.list_(pa.struct([("deep", MAP)])), "hold no maps"),
        ("m", pa.list_(pa.string(), 2), "fixed-size lists"),
        ("m", pa.decimal32(5, 2), "decimals"),
        ("m", pa.month_day_nano_interval(), "intervals"),
        ("m", pa.struct([]), "structs without fields"),
    ],
)
def test_columns_that_cannot_be_written_are_refused(tmp_path: Path, name: str, kind: pa.DataType, said: str) -> None:
    path = tmp_path / "x.arrow"
    table = pa.table([pa.array(["a"]), pa.nulls(1, kind)], names=["text", name])
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UsageError, match=said) as caught:
        plan_of(path, keep_columns=(name,))
    assert caught.value.advice
    assert plan_of(path).schema.names == ["text"]
    assert plan_of(path, layout="raw", keep_columns=("text",)).schema.names == ["text"]
    if name in ("doc_id", "num_tokens"):  # no column of ours stands beside those of a record
        assert plan_of(path, layout="raw").schema.names == ["text", name]
        return
    with pytest.raises(UsageError, match=said):
        plan_of(path, layout="raw")


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,n,n,text\na,1,2,b\n")
    duplicated = pa.table([["a"], [1], [2], ["b"], ["c"]], names=["text", "n", "n", "text", "body"])
    pq.write_table(duplicated, tmp_path / "x.parquet")
    for path in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        for fields in ({}, {"layout": "raw"}, {"template": "{{ text }}"}):
            with pytest.raises(UsageError, match="2 columns named 'text'"):
                plan_of(path, **fields)
    path = tmp_path / "x.parquet"
    for fields in ({"keep_columns": ("n",)}, {"filter": "n = 1"}):
        with pytest.raises(UsageError, match="2 columns named 'n'"):
            plan_of(path, text_column="body", **fields)
    assert read(path, text_column="body")[0] == ["c"]


def test_a_template_without_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(UsageError, match="uses no column") as caught:
        plan_of(tmp_path / "x.jsonl", template="x")
    assert "'{{ body }}'; there are body (string)" in caught.value.advice
    (tmp_path / "none.jsonl").write_text("{}\n")
    with pytest.raises(ColumnNotFound, match="no columns"):
        plan_of(tmp_path / "none.jsonl", layout="raw")


def test_filters_reach_the_ends_of_number_types(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "u": pa.array([1, 2**64 - 1], pa.uint64()), "f": [0.5, 1e20]}
    (tmp_path / "x.parquet").write_bytes(parquet_bytes(columns))
    for where in (f"u = {2**64 - 1}", f"u > {2**63}", f"f = {10**20}"):
        assert read(tmp_path / "x.parquet", filter=where)[0] == ["b"]


def test_an_array_without_records(tmp_path: Path) -> None:
    for data in ("[]", " [ ]\n", "\ufeff[]"):
        (tmp_path / "x.json").write_text(data)
        with pytest.raises(BadFile, match=r"x\.json: holds no record"):
            plan_of(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(BadFile, match="no JSON object in its first"):
        plan_of(tmp_path / "x.json")


def test_an_error_about_nothing_has_no_colon_before_it() -> None:
    for error in (pa.ArrowInvalid("x"), EOFError("x"), OSError("Corrupt x"), FileNotFoundError(2, "x", "f")):
        ours = translate(error, "")
        assert ours is not None
        assert str(ours)[0].isalpha()
        assert str(translate(error, "reading x")).startswith("reading x: ")


def test_a_folder_of_downloaded_text_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "web" / ".lance_prep").mkdir(parents=True)
    (tmp_path / "web" / "a.jsonl").write_text('{"text": "a"}\n')
    for source in (tmp_path / "web" / "*.jsonl", tmp_path / "*" / "*.jsonl", tmp_path):
        assert [Path(file.url).name for file in plan_of(str(source)).files] == ["a.jsonl"]
