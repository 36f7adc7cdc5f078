"""The README and the pages of the documentation, as blocks of code that tests run.

A block in `sh` or `python` is run by a test. `<!-- not run: REASON -->` in the line before a block says why it is not.
`<!-- run by NAME -->` gives it to another test than the one that runs all pages. Other languages (`text`, `console`)
are output and drawings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*?) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)\n *```$", re.MULTILINE | re.DOTALL
)
RUN = ("sh", "python")
SHOWN = ("text", "console")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        where: page and line, for messages.
        mark: the comment in the line before it, or empty.
    """

    where: str
    language: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        """Whether the test of all pages runs it."""
        return self.language in RUN and not self.mark.startswith(("not run: ", "run by "))


def pages() -> list[Path]:
    """Return the README and the pages of the documentation, in order of their names."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}",
            found["language"],
            found["text"],
            found["mark"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def given_to(test: str, page: Path) -> list[tuple[str, str]]:
    """Return language and text of the blocks of a page that are `run by` a test."""
    return [(block.language, block.text) for block in blocks(page) if block.mark == f"run by {test}"]


#: Runs pages as a reader does. Each page has an empty folder and a Python session. All share one process, because
#: importing torch and transformers takes longer than most pages. The README's commands run in a shell, literally. On
#: other pages a line that is one plain `lance-prep` command runs in this process, which saves a second of imports.
_SESSION = r"""
import ast, json, os, shlex, subprocess, sys
from pathlib import Path

from lance_prep.cli.main import run

def in_shell(text):
    subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)

def in_process(text):
    waiting = []
    for line in text.replace("\\\n", " ").split("\n"):
        if not line.startswith("lance-prep ") or set("|<>$;") & set(line.partition("#")[0]):
            waiting.append(line)
            continue
        in_shell("\n".join(waiting))
        waiting = []
        assert run(shlex.split(line, comments=True)[1:]) == 0, line
        sys.stdout.flush()
    in_shell("\n".join(waiting))

for name, blocks in json.loads(sys.stdin.read()):
    folder = Path(sys.argv[1], name)
    folder.mkdir(parents=True)
    os.chdir(folder)
    session = {"__name__": "__main__"}
    for where, language, block in blocks:
        print(f"--- {where}\n{block}", flush=True)
        if language == "sh":
            (in_shell if name == "README.md" else in_process)(block)
            continue
        for node in ast.parse(block).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), where, "eval"), session)
                assert value is not False, f"{where}: {ast.unparse(node)}"
            else:
                exec(compile(ast.Module([node], []), where, "exec"), session)
"""


def run_pages(chosen: Mapping[str, Sequence[Block]], folder: Path) -> str:
    """Run blocks, page after page, each page in a new folder below `folder`; return what was printed.

    Raises:
        AssertionError: a block failed, or an expression of it is False.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    given = [(name, [(b.where, b.language, b.text) for b in blocks]) for name, blocks in chosen.items()]
    done = subprocess.run(
        [sys.executable, "-c", _SESSION, str(folder)],
        input=json.dumps(given),
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
