"""Write `docs/hostile-inputs.md`, the table of the list: `python -m tests.hostile.table`."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.themes import THEMES

PAGE = Path(__file__).parents[2] / "docs" / "hostile-inputs.md"
_BEGIN = """# Hostile inputs

`make torture` runs {total} commands on hostile files, names, options, tokenizers and datasets. Each runs in a process
of its own, with a deadline, a limit on memory, and an expected exit code and message. `make test` runs {quick} of them.

For every command:

- The exit code is 0, 1 or 2, as listed. The process neither hangs nor is killed.
- An error has two lines: what is wrong, and what to do. Python prints no traceback. A library written in Rust that
  panics prints its own lines first, once for each text that it fails on. They
  are long if `RUST_BACKTRACE` is set: 2,000 such texts printed 74 MB.
- Nothing is written, changed or left outside the folder, and no temporary file is left.
- A build that fails makes no version. `verify` finds nothing wrong with one that succeeds.

| what is hostile | inputs | most memory | what holds |
|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    cases = [case for theme in THEMES.values() for case in theme.cases]
    rows = [
        f"| {theme.title} | {len(theme.cases)} | {max(case.mib for case in theme.cases):,} MiB | {theme.holds} |"
        for theme in THEMES.values()
    ]
    begin = _BEGIN.format(total=len(cases), quick=sum(case.quick for case in cases))
    return begin + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
