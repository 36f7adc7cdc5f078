"""Hostile tokenizers, datasets, conversations, and files of other trainers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import tokenizers_made as made
from tests.hostile.case import Case, Content, Theme, build
from tests.hostile.sources import parquet, pieces, spoiled

_MIB = 1 << 20
DEEP = 100_000


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Write a tokenizer.json that a function has changed."""

    def write(path: Path) -> None:
        data = json.loads(made.byte_level())
        change(data)
        path.write_text(json.dumps(data))

    return write


def _set(*names: str, value: Any) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        for name in names[:-1]:
            data = data[name]
        data[names[-1]] = value

    return _changed(change)


def _regex(pattern: str) -> Callable[[Path], None]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _set("pre_tokenizer", value=split)


def _last_id(value: int) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary[list(vocabulary)[-1]] = value

    return _changed(change)


def _tokenizer(name: str, content: Content, message: str, text: str = "a text", **more: Any) -> Case:
    files = {"bad.json": content, "x.jsonl": json.dumps({"text": text})}
    command = (
        "build",
        "x.jsonl",
        "--tokenizer",
        "bad.json",
        "--layout",
        "documents",
        "-o",
        "x.lance",
        "--workers",
        "1",
    )
    return Case(name, command, message, files, **more)


def _added(token: dict[str, Any]) -> Callable[[Path], None]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return _changed(lambda data: data["added_tokens"].append({**plain, **token}))


TOKENIZERS = Theme(
    "Tokenizers",
    "An invalid tokenizer is named before a text is read. If a library panics, its own lines precede the error.",
    (
        _tokenizer("not JSON", "not JSON", "not a tokenizer", quick=True),
        _tokenizer("nothing", b"", "not a tokenizer"),
        _tokenizer("an empty object", "{}", "not a tokenizer"),
        _tokenizer("a list", "[]", "not a tokenizer"),
        _tokenizer("not UTF-8", b"\xff\xfe{}", "not a tokenizer"),
        _tokenizer("nested 100,000 deep", "[" * DEEP + "]" * DEEP, "not a tokenizer"),
        _tokenizer("1 GiB of white space", pieces(b" " * _MIB, 1024), "bad.json", mib=700, seconds=60),
        _tokenizer(
            "1 GiB of one token",
            pieces(b"x" * _MIB, 1024, b'{"model": {"type": "BPE", "vocab": {"'),
            "bad.json",
            mib=700,
            seconds=60,
        ),
        _tokenizer("an id of 4,294,967,295", _last_id((1 << 32) - 1), "the id 4,294,967,295"),
        _tokenizer("an id of 2^40", _last_id(1 << 40), "not a tokenizer"),
        _tokenizer("a negative id", _last_id(-1), "not a tokenizer"),
        _tokenizer(
            "an added token with an id of 3,000,000,000",
            _added({"id": 3_000_000_000, "content": "<x>"}),
            "id|= 1 used",
            code=0,
        ),
        _tokenizer("two tokens of one id", _last_id(5), "= 1 used|id|bad.json", code=0),
        _tokenizer("merges of unknown tokens", _set("model", "merges", value=["qq zz"]), "not a tokenizer"),
        _tokenizer("an empty vocabulary", _set("model", "vocab", value={}), "not a tokenizer|bad.json"),
        _tokenizer("an unknown model", _set("model", "type", value="Evil"), "not a tokenizer"),
        _tokenizer("dropout", _set("model", "dropout", value=0.5), "dropout"),
        _tokenizer(
            "dropout of NaN",
            _changed(lambda data: data["model"].update(dropout=float("nan"))),
            "not a tokenizer|dropout",
        ),
        _tokenizer("a regex that is not valid", _regex("(("), "not a tokenizer|bad.json"),
        _tokenizer(
            "a regex that backtracks",
            _regex("(a+)+$"),
            "fails on a text: Onig",
            "a" * 40 + "b",
            seconds=60,
            panics=True,
        ),
        _tokenizer(
            "a regex that backtracks over 100,000 letters",
            _regex("(a|aa)+$"),
            "fails on a text: Onig",
            "a" * 100_000 + "b",
            seconds=60,
            panics=True,
        ),
        _tokenizer("a regex that matches nothing", _regex(""), "= 1 used|error: ", code=0),
        _tokenizer(
            "a regex of 10^9 repetitions",
            _regex("((a{1000}){1000}){1000}"),
            "= 1 used",
            code=0,
            seconds=60,
        ),
        _tokenizer(
            "a normalizer that doubles each letter 20 times",
            _set(
                "normalizer",
                value={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 20,
                },
            ),
            "= 1 used|error: ",
            "a" * 10,
            code=0,
            mib=2500,
            seconds=120,
        ),
        _tokenizer(
            "a template that adds unknown tokens",
            _set(
                "post_processor",
                value={
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<nope>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [],
                    "special_tokens": {},
                },
            ),
            "fails on a text",
            panics=True,
        ),
        _tokenizer(
            "truncation to one token",
            _set("truncation", value={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
            "= 1 used",
            code=0,
        ),
        _tokenizer(
            "padding to 100,000 tokens",
            _set(
                "padding",
                value={
                    "strategy": {"Fixed": 100_000},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "x",
                },
            ),
            "= 1 used",
            code=0,
        ),
        _tokenizer("a FIFO", os.mkfifo, "bad.json|FIFO"),
        Case("an empty folder", build("s.jsonl", "--tokenizer", "e"), "tokenizer.json", {"e": Path.mkdir}),
        Case("a configuration that is not JSON", build(), "tokenizer_config.json", {"t/tokenizer_config.json": "{"}),
        Case(
            "a configuration nested 100,000 deep",
            build(),
            "tokenizer_config.json",
            {"t/tokenizer_config.json": '{"a": ' + "[" * DEEP + "]" * DEEP + "}"},
        ),
        Case(
            "an end of text that is a number",
            build(),
            "= 2 used|eos",
            {"t/tokenizer_config.json": '{"eos_token": 5}'},
            code=0,
        ),
        Case("an end of text that is not in it", build("s.jsonl", "--eos-token", "<nope>"), "<nope>"),
        Case(
            "a link that leads nowhere",
            build("s.jsonl", "--tokenizer", "bad.json"),
            "bad.json",
            {"bad.json": lambda path: path.symlink_to("nowhere")},
        ),
        Case("a Python function by name", build("s.jsonl", "--tokenizer", "function:os.system"), "function|tokenizer"),
    ),
)

_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|endoftext|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
_TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def _chat(name: str, records: Any, message: str, template: str | bytes = _CHAT, code: int = 0, **more: Any) -> Case:
    rows = records if isinstance(records, list) else [records]
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in [{"messages": _TURNS}, *rows])
    command = build("x.jsonl", "--messages", "messages", "--chat-template", "c.jinja")
    return Case(name, command, message, {"x.jsonl": lines, "c.jinja": template}, code=code, **more)


_ONE_BAD = r"= 1 used .* 1 rejected"

CHAT = Theme(
    "Conversations and chat templates",
    "A record of an odd shape is rejected under its reason. A template that loops or fails never ends the process.",
    (
        _chat("a text for the conversation", {"messages": "hi"}, _ONE_BAD),
        _chat("a number for the conversation", {"messages": 5}, _ONE_BAD),
        _chat("no turns", {"messages": []}, _ONE_BAD + "|1 empty"),
        _chat("a turn that is null", {"messages": [None]}, _ONE_BAD),
        _chat("a turn that is a list", {"messages": [["user", "hi"]]}, _ONE_BAD),
        _chat("a turn without a role", {"messages": [{"content": "hi"}]}, "= [12] used"),
        _chat("a role that is null", {"messages": [{"role": None, "content": "hi"}]}, "= [12] used"),
        _chat("content that is a number", {"messages": [{"role": "user", "content": 5}]}, "= [12] used"),
        _chat(
            "content nested 100,000 deep",
            '{"messages": [{"role": "user", "content": ' + "[" * DEEP + "]" * DEEP + "}]}",
            _ONE_BAD,
        ),
        _chat("100,000 turns", {"messages": _TURNS * 50_000}, "= 2 used|rejected", seconds=90),
        _chat(
            "a role with the template's marks",
            {"messages": [{"role": "<|endoftext|>", "content": "hi"}]},
            "= 1 used|= 2 used",
        ),
        _chat("a lone surrogate", '{"messages": [{"role": "user", "content": "\\ud800"}]}', _ONE_BAD),
        _chat(
            "a template that loops",
            {"messages": _TURNS},
            "error: |rejected",
            "{% for i in range(99999999) %}x{% endfor %}",
            1,
        ),
        _chat(
            "a template that writes 10^12 letters",
            {"messages": _TURNS},
            "error: |rejected",
            "{{ 'x' * 1000000000000 }}",
            1,
        ),
        _chat("a template that walks classes", {"messages": _TURNS}, "error: ", "{{ ''.__class__.__mro__ }}", 1),
        _chat("a template that is not valid", {"messages": _TURNS}, "error: ", "{% for %}", 1),
        _chat("a template that raises", {"messages": _TURNS}, "error: ", "{{ raise_exception('no') }}", 1),
        _chat("a template of nothing", {"messages": _TURNS}, "error: ", "", 1),
        _chat("a template that is not UTF-8", {"messages": _TURNS}, "utf-8|UTF-8", b"\xff", 1),
    ),
)


def _ids(name: str, command: str, files: dict[str, Content], message: str, **more: Any) -> Case:
    return Case(name, ("import", *command.split(), "-o", "x.lance"), message, files, **more)


def _megatron(lengths: list[int], pointers: list[int], documents: list[int], code: int = 8, version: int = 1) -> bytes:
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(lengths), len(documents))
    return head + np.int32(lengths).tobytes() + np.int64(pointers).tobytes() + np.int64(documents).tobytes()


_BIN = np.arange(100, dtype=np.uint16).tobytes()
_IDX = _megatron([50, 50], [0, 100], [0, 1, 2])

IMPORTS = Theme(
    "Files of other trainers",
    "Lengths, pointers and ids are checked against the file before they are used.",
    (
        _ids("no dtype", "x.bin", {"x.bin": _BIN}, "where documents end", code=2),
        _ids("half an id", "x.bin --dtype uint16 --eos-id 0", {"x.bin": _BIN[:-1]}, "x.bin"),
        _ids("nothing", "x.bin --dtype uint16 --eos-id 0", {"x.bin": b""}, "x.bin|empty"),
        _ids(
            "an id beyond the tokenizer",
            "x.bin --dtype uint16 --tokenizer t",
            {"x.bin": b"\xff\xff" * 100},
            "65,535|65535",
        ),
        _ids("a negative id", "x.bin --dtype int32 --eos-id 0", {"x.bin": b"\xff" * 400}, "-1|negative"),
        _ids("an .idx without a .bin", "x.idx", {"x.idx": _IDX}, "x.bin|x.idx"),
        _ids("an .idx of zeros", "x.idx", {"x.idx": bytes(100), "x.bin": _BIN}, "x.idx"),
        _ids("an .idx that is cut", "x.idx", {"x.idx": _IDX[:-5], "x.bin": _BIN}, "x.idx"),
        _ids(
            "an .idx of version 2^60",
            "x.idx",
            {"x.idx": _megatron([50], [0], [0, 1], version=1 << 60), "x.bin": _BIN},
            "x.idx",
        ),
        _ids(
            "an .idx of an unknown type",
            "x.idx",
            {"x.idx": _megatron([50, 50], [0, 100], [0, 1, 2], code=99), "x.bin": _BIN},
            "x.idx",
        ),
        _ids(
            "2^60 sequences",
            "x.idx",
            {"x.idx": b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1 << 60, 3) + bytes(100), "x.bin": _BIN},
            "x.idx",
        ),
        _ids(
            "a length beyond the .bin",
            "x.idx",
            {"x.idx": _megatron([50, 5000], [0, 100], [0, 1, 2]), "x.bin": _BIN},
            "x.idx|x.bin",
        ),
        _ids(
            "a negative length", "x.idx", {"x.idx": _megatron([50, -50], [0, 100], [0, 1, 2]), "x.bin": _BIN}, "x.idx"
        ),
        _ids(
            "a pointer beyond the .bin",
            "x.idx",
            {"x.idx": _megatron([50, 50], [0, 1 << 40], [0, 1, 2]), "x.bin": _BIN},
            "x.idx",
        ),
        _ids(
            "a negative pointer", "x.idx", {"x.idx": _megatron([50, 50], [0, -100], [0, 1, 2]), "x.bin": _BIN}, "x.idx"
        ),
        _ids(
            "documents out of order",
            "x.idx",
            {"x.idx": _megatron([50, 50], [0, 100], [0, 2, 1]), "x.bin": _BIN},
            "x.idx",
        ),
        _ids(
            "a Parquet file that is cut",
            "x.parquet --tokenizer t",
            {"x.parquet": spoiled(parquet({"input_ids": [[1, 2]]}), cut=20)},
            "x.parquet",
        ),
        _ids("ids that are text", "x.parquet --tokenizer t", {"x.parquet": parquet({"input_ids": ["a"]})}, "input_ids"),
        _ids(
            "ids that are fractions",
            "x.parquet --tokenizer t",
            {"x.parquet": parquet({"input_ids": [[1.5]]})},
            "input_ids",
        ),
        _ids("no column of ids", "x.parquet --tokenizer t", {"x.parquet": parquet({"other": [[1]]})}, "input_ids"),
        _ids(
            "ids that are null",
            "x.parquet --tokenizer t",
            {"x.parquet": parquet({"input_ids": [[1], None, [None]]})},
            "null ids",
        ),
        _ids(
            "a row of 2^40 as an id",
            "x.parquet --tokenizer t",
            {"x.parquet": parquet({"input_ids": [[1 << 40], [1]]})},
            "1099511627776",
        ),
        _ids("a FIFO", "x.bin --dtype uint16 --eos-id 0", {"x.bin": os.mkfifo}, "no file of token ids"),
    ),
)


def _manifest(data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the manifest of the latest version."""

    def change(folder: Path) -> None:
        path = min((folder / "d.lance" / "_versions").glob("*.manifest"))  # names count down
        path.write_bytes(data(path.read_bytes()))

    return change


def _each(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = [path for path in sorted((folder / "d.lance").glob(pattern)) if path.is_file()]
        assert found, pattern
        for path in found:
            change(path)

    return apply


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    path.write_bytes(spoiled(path.read_bytes(), flip=path.stat().st_size // 2))


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100 << 20)


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, (new + b" " * len(old))[: len(old)])

    return change


def _stored(name: str, command: str, prepare: Callable[[Path], object], message: str, **more: Any) -> Case:
    return Case(name, tuple(command.split()), message, dataset=True, prepare=prepare, **more)


def _everywhere(
    name: str,
    prepare: Callable[[Path], object],
    message: str = r"d\.lance|data/|manifest|did not build",
    *,
    ok: tuple[str, ...] = (),
) -> list[Case]:
    commands = {
        "info": "info d.lance",
        "show": "show d.lance",
        "verify": "verify d.lance",
        "export": "export d.lance -o out --format jsonl",
    }
    return [
        _stored(
            f"{name}: {verb}", command, prepare, "" if verb in ok else message, code=0 if verb in ok else 1, on="both"
        )
        for verb, command in commands.items()
    ]


DATASETS = Theme(
    "Datasets of a stranger",
    "A damaged or forged file is named. No command follows a name out of the folder.",
    (
        *_everywhere("a manifest of zeros", _manifest(lambda data: bytes(len(data)))),
        *_everywhere("a manifest that is cut", _manifest(lambda data: data[: len(data) // 2])),
        *_everywhere("a manifest of nothing", _manifest(lambda data: b"")),
        *_everywhere("a manifest of 100 MB of zeros", _manifest(lambda data: bytes(100 << 20))),
        *_everywhere("a manifest with 100 MB before it", _manifest(lambda data: bytes(100 << 20) + data)),
        *_everywhere("data files of zeros", _each("data/*", _zeros), ok=("info",)),
        *_everywhere("data files that are cut", _each("data/*", _cut), ok=("info",)),
        *_everywhere("data files of nothing", _each("data/*", _empty), ok=("info",)),
        *_everywhere("no data files", _each("data/*", Path.unlink), ok=("info",)),
        _stored("data files with a flipped bit", "verify d.lance", _each("data/*", _flip), "data", on="both"),
        *_everywhere("a tokenizer of nothing", _each(".lance_prep/tokenizers/*", _empty), "tokenizer", ok=("info",)),
        *_everywhere("no tokenizer", _each(".lance_prep/tokenizers/*", Path.unlink), "tokenizer", ok=("info",)),
        _stored("a list of nothing", "verify d.lance", _each(".lance_prep/lists/*", _empty), "lists", on="both"),
        _stored(
            "a list that grew to 100 MiB", "verify d.lance", _each(".lance_prep/lists/*", _huge), "lists", on="both"
        ),
        _stored("a seal that is not JSON", "verify d.lance", _each(".lance_prep/seals/*", _cut), "seal", on="both"),
        _stored(
            "a plan that is not JSON",
            "verify d.lance",
            _each(".lance_prep/builds/*/plan.json", _cut),
            "plan",
            on="both",
        ),
        _stored(
            "a receipt that is not JSON",
            "verify d.lance",
            _each(".lance_prep/builds/*/shard-*.json", _cut),
            "shard-",
            on="both",
        ),
        _stored(
            "a receipt nested 100,000 deep",
            "verify d.lance",
            _each(".lance_prep/builds/*/shard-*.json", lambda path: path.write_text("[" * DEEP)),
            "shard-",
            on="both",
        ),
        _stored(
            "a plan of 100 MiB of brackets",
            "verify d.lance",
            _each(".lance_prep/builds/*/plan.json", lambda path: path.write_text("[" * (100 << 20))),
            "plan",
            on="both",
            mib=1000,
        ),
        _stored(
            "metadata that is not JSON",
            "info d.lance",
            _manifest(_replaced(b'"layout"', b"'layout'")),
            "metadata is invalid",
        ),
        _stored(
            "metadata with a key that leads out",
            "info d.lance",
            _manifest(_replaced(b'"key":', b'"../":')),
            "metadata is invalid",
        ),
        _stored(
            "a tag that names another folder", "info d.lance --version ../../victim", lambda folder: None, "victim"
        ),
        _stored("a tag of a version that is missing", "info d.lance --version v9", lambda folder: None, "v9"),
        _stored("a version of 10^30", f"info d.lance --version {'9' * 30}", lambda folder: None, "999"),
        _stored(
            "a tag file that is not JSON", "info d.lance --version v1", _each("_refs/tags/*", _cut), "cannot be read"
        ),
        _stored(
            "a tag file that names version 10^18",
            "info d.lance --version v1",
            _each(
                "_refs/tags/*",
                lambda path: path.write_text(json.dumps({"branch": None, "version": 10**18, "manifestSize": 1})),
            ),
            "v1|version",
        ),
        _stored("a folder with nothing in it", "info e.lance", lambda folder: (folder / "e.lance").mkdir(), "e.lance"),
        _stored(
            "a folder with empty _versions",
            "info e.lance",
            lambda folder: (folder / "e.lance" / "_versions").mkdir(parents=True),
            "e.lance",
        ),
        _stored("a file", "info s.jsonl", lambda folder: None, "s.jsonl"),
        _stored(
            "a row far beyond the last", "show d.lance --row 999999999999999999999", lambda folder: None, "row", code=2
        ),
        _stored("a search for a NUL", "show d.lance --grep \x01", lambda folder: None, "", code=0),
        _stored(
            "an append of other columns",
            "build x.jsonl --tokenizer t --layout blocks -o d.lance --append",
            lambda folder: (folder / "x.jsonl").write_text('{"text": "a"}\n'),
            "d.lance|layout",
        ),
        _stored("a prune of a negative time", "prune d.lance --older-than -1d", lambda folder: None, "-1d", code=2),
        _stored(
            "a prune of 10^30 days",
            f"prune d.lance --older-than {'9' * 30}d",
            lambda folder: None,
            "not a valid duration",
            code=2,
        ),
        _stored("a tag with a slash", "tag d.lance a/../../x", lambda folder: None, "tag", code=2),
        _stored("a tag of 300 letters", f"tag d.lance {'x' * 300}", lambda folder: None, "tag|long", code=1),
        _stored("an export over the dataset", "export d.lance -o d.lance", lambda folder: None, "d.lance"),
        _stored("an export over files of others", "export d.lance -o t", lambda folder: None, "t"),
        _stored("a diff with nothing", "diff d.lance 1 9", lambda folder: None, "9"),
    ),
)


def _sql(name: str, statement: str, message: str, code: int = 2, **more: Any) -> Case:
    return Case(name, ("sql", "d.lance", statement), message, dataset=True, code=code, **more)


SQL = Theme(
    "SQL",
    "A statement reads the dataset and nothing else, and never writes.",
    (
        _sql("a table that is dropped", "drop table dataset", "error: ", quick=True),
        _sql("rows that are deleted", "delete from dataset", "error: "),
        _sql("a copy into a file", "copy dataset to '/tmp/x.csv'", "error: "),
        _sql("a table of a file", "create external table x stored as csv location '/etc/passwd'", "error: "),
        _sql("two statements", "select 1; drop table dataset", "error: "),
        _sql("a setting", "set datafusion.execution.batch_size = 1", "error: "),
        _sql("a column that is missing", "select nothing from dataset", "nothing"),
        _sql("nested 3,000 deep", "select " + "(" * 3000 + "1" + ")" * 3000 + " from dataset", "nested|deep"),
        _sql(
            "10,000 ANDs",
            "select * from dataset where " + " and ".join(["n = 1"] * 10_000),
            "nested|deep|error: ",
            code=2,
        ),
        _sql(
            "10,000 columns",
            "select " + ", ".join(f"n as c{i}" for i in range(10_000)) + " from dataset",
            "",
            code=0,
            seconds=60,
        ),
        _sql("no statement", "", "error: "),
        _sql("an open quote", "select 'a", "error: "),
        _sql("a division by zero", "select 1 / 0 from dataset", "error: "),
        _sql("text cast to a number", "select cast('a' as int) from dataset", "error: "),
        _sql(
            "recursion without end",
            "with recursive t as (select 1 as i union all select i + 1 from t) select * from t limit 5",
            "",
            code=0,
        ),
    ),
)

THEMES = {"tokenizers": TOKENIZERS, "chat": CHAT, "imports": IMPORTS, "datasets": DATASETS, "sql": SQL}
