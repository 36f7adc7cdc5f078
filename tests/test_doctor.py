"""`doctor` and `completion`, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from lance_prep.cli.main import COMMANDS, STAGES, cli, run
from tests import tokenizers_made as made
from tests.loopback_hub import LoopbackHub


def findings(capsys: Any, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    assert run(["doctor", "--json", *arguments]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (code == 0)
    return {each["name"]: each for each in said["findings"]}


def test_what_is_here_is_named(capsys: Any, hub: LoopbackHub, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    found = findings(capsys, "--tokenizer", tokenizer)
    assert "numpy" in found["required"]["found"]
    assert found[hub.url]["state"] == "ok"
    assert found["torch"]["state"] == "ok"
    assert found["backend"]["found"].startswith("gigatoken: ")
    assert found["GPU"]["state"] in ("ok", "absent") if "GPU" in found else found["GPU 0"]["state"] == "ok"
    assert {"current folder", "Hub cache", "Python"} <= set(found)


def test_a_tokenizer_that_gigatoken_reads_otherwise_gets_the_reference(capsys: Any, tmp_path: Path) -> None:
    name = made.save(tmp_path, made.without_regex())
    backend = findings(capsys, "--offline", "--tokenizer", name)["backend"]
    assert backend["found"].startswith("tokenizers: ")


def test_what_is_missing_gets_advice(capsys: Any, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    hub.fault(r"GET /api/whoami", status=401)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = findings(capsys, "--tokenizer", "no/such", code=1)
    assert found["engine"]["state"] == "absent"
    assert "install Java 17" in found["engine"]["advice"]
    assert found["login"]["state"] == "problem"
    assert found["no/such"]["state"] == "problem"
    assert all(each["advice"] for each in found.values() if each["state"] == "problem")


def test_a_person_reads_lines(capsys: Any) -> None:
    assert run(["doctor", "--offline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "machine"
    assert any(line.startswith("  ok       Python: 3.") for line in lines)
    assert "0 problems" in lines[-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lance-prep bui", ["build"]),
        ("lance-prep build wiki", ["wikitext"]),
        ("lance-prep build --lay", ["--layout"]),
        ("lance-prep recipes disti", ["distillation"]),
        ("lance-prep restore x.lance g", ["gold"]),
        ("lance-prep info x.lance --version ", ["gold", "other"]),
    ],
)
def test_words_are_completed(tmp_path: Path, line: str, expected: list[str]) -> None:
    tags = tmp_path / "x.lance" / "_refs" / "tags"
    tags.mkdir(parents=True)
    for name in ("gold", "other"):
        (tags / f"{name}.json").write_text("{}")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_LANCE_PREP_COMPLETE": "bash_complete"}
    program = Path(sys.executable).with_name("lance-prep")
    done = subprocess.run([str(program)], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **asked})
    assert [each.partition(",")[2] for each in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_loads(shell: str) -> None:
    program = Path(sys.executable).with_name("lance-prep")
    script = subprocess.run([str(program), "completion", shell], capture_output=True, text=True, check=True).stdout
    assert "_LANCE_PREP_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_every_command_and_option_has_a_heading() -> None:
    from lance_prep.cli.build import HEADINGS

    assert set(COMMANDS) <= {name for names in STAGES.values() for name in names}
    build = cli.get_command(click.Context(cli), "build")
    assert build is not None
    options = {each.name for each in build.params if isinstance(each, click.Option)}
    assert options == {name for names in HEADINGS.values() for name in names} | {"as_json", "debug"}
