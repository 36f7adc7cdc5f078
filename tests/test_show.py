"""`show` on a terminal and in a pipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lance
import pytest

import lance_prep
from lance_prep.cli.main import run
from tests.loopback_hub import LoopbackHub
from tests.terminal import errors_in_terminal, run_in_terminal, without_colours

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def uri(tmp_path: Path, tokenizer: str) -> str:
    texts = [f"text number {i} about naïve 😀 things\nand a line {'x ' * i}" for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    made = tmp_path / "x.lance"
    lance_prep.build(str(tmp_path / "a.jsonl"), output=made, tokenizer=tokenizer, layout="documents", shuffle=False)
    return str(made)


def shown(capsys: Any, *arguments: str) -> str:
    capsys.readouterr()
    assert run(["show", *arguments]) == 0
    out: str = capsys.readouterr().out
    return out


def test_tints_are_added_to_the_same_text(uri: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(capsys, uri, "--limit", "3")
    assert not ESCAPES.search(plain)
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    tinted = shown(capsys, uri, "--limit", "3")
    assert ESCAPES.sub("", tinted).replace("↵", "") == plain
    tokens = lance.dataset(uri).take([0]).column("num_tokens")[0].as_py()
    assert tinted.split("row 1:")[0].count("48;5;") >= tokens * 0.6  # an emoji is one piece of several tokens
    assert "48;5;153" in tinted
    assert "48;5;223" in tinted
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(capsys, uri, "--limit", "3") == plain


def test_ids_stand_beside_their_tokens(uri: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = lance.dataset(uri).take([0]).column("input_ids")[0].as_py()
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    out = shown(capsys, uri, "--row", "0", "--ids")
    named = re.findall(r"\x1b\[2m([\d,]+)\x1b\[0m", out)
    assert [int(each) for group in named for each in group.split(",")] == ids


def test_random_rows_depend_on_the_seed(uri: str, capsys: Any) -> None:
    def rows(*arguments: str) -> list[int]:
        return [json.loads(line)["row"] for line in shown(capsys, uri, "--json", *arguments).splitlines()]

    drawn = rows("--random", "10", "--seed", "3")
    assert drawn == rows("--random", "10", "--seed", "3")
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn != rows("--random", "10")
    assert rows("--random", "1000") == list(range(60))


def test_grep_finds_rows_and_shows_what_is_around(uri: str, capsys: Any) -> None:
    out = shown(capsys, uri, "--grep", "number 4", "--limit", "3")
    assert re.findall(r"^row (\d+):", out, re.M) == ["4", "40", "41"]
    out = shown(capsys, uri, "--grep", "x x x x x x", "--width", "30", "--limit", "1")
    assert "row 6:" in out
    assert "x x x x x x" in out
    assert "…" in out
    assert run(["show", uri, "--grep", "nowhere to be found"]) == 0
    assert "no row has the text 'nowhere to be found'" in capsys.readouterr().err


def test_grep_in_raw_rows(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "one"}\n{"a": "two"}\n')
    lance_prep.build(str(tmp_path / "a.jsonl"), output=tmp_path / "r.lance", layout="raw", shuffle=False)
    assert re.findall(r"^row (\d+):", shown(capsys, str(tmp_path / "r.lance"), "--grep", "two"), re.M) == ["1"]


def test_what_is_learned_is_underlined(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, tokenizer: str
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (tmp_path / "t.jinja").write_text(template)
    turns = [{"role": "user", "content": "ask "}, {"role": "assistant", "content": "say"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    arguments = ["build", tmp_path / "a.jsonl", "-o", tmp_path / "c.lance", "--messages", "messages"]
    arguments += ["--chat-template", tmp_path / "t.jinja", "--tokenizer", tokenizer, "--layout", "documents"]
    assert run([str(each) for each in arguments]) == 0
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    out = shown(capsys, str(tmp_path / "c.lance"))
    assert "".join(re.findall(r"\x1b\[4m([^\x1b]*)", out)).strip() == "say"
    assert "ask" in ESCAPES.sub("", out)


@pytest.mark.parametrize(
    "arguments", [["--row", "1", "--random", "2"], ["--grep", "a", "--row", "1"], ["--seed", "1"], ["--random", "0"]]
)
def test_options_that_do_not_go_together_are_refused(uri: str, arguments: list[str], capsys: Any) -> None:
    assert run(["show", uri, *arguments]) == 2


@pytest.mark.parametrize("columns", [40, 80])
def test_info_fits_the_terminal(uri: str, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    said = run_in_terminal(["info", uri], monkeypatch, columns)
    # A path or a hash is kept in one piece, so that it can be copied.
    assert max(len(line) for line in said.splitlines() if max(map(len, line.split())) < 20) <= columns
    if columns == 80:
        assert len(said.splitlines()) <= 24


def test_a_terminal_gets_tints_and_plain_text_if_it_is_asked_for(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tinted = run_in_terminal(["show", uri, "--limit", "2"], monkeypatch)
    assert "48;5;153" in tinted
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"ACCESSIBLE": "1"}):
        said = run_in_terminal(["show", uri, "--limit", "2"], monkeypatch, **plain)
        assert "\x1b" not in said, plain
        assert said.split() == without_colours(tinted).replace("↵", "").split()


def test_progress_is_lines_for_a_screen_reader(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["report", uri, "-o", tmp_path / "page.html"]
    assert "rows read" in errors_in_terminal(arguments, monkeypatch)
    assert "\x1b" not in errors_in_terminal(arguments, monkeypatch, ACCESSIBLE="1")
