"""`lance-prep verify` on a folder of text."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import columns, print_json, printable, verdict
from lance_prep.cli.progress import rows_shown, screen
from lance_prep.errors import size

if TYPE_CHECKING:
    from lance_prep.collection import DownloadCheck

_WIDTH = 300


def verify_text(folder: str, head: int, *, as_json: bool) -> None:
    """Check the folder, print what was found, and exit with code 1 if there are problems.

    Args:
        head: print this number of records of each file first.
    """
    from lance_prep import collection

    shown = collection.samples(folder, head) if head else {}
    if not as_json:
        for path, records in shown.items():
            for number, record in records:
                click.echo(printable(f"{path}, line {number}: {_sample(record)}"))
    with screen() as listening:
        found = collection.check_download(folder, on_rows=rows_shown(listening, "read"))
    if as_json:
        named = {path: [record for _, record in records] for path, records in shown.items()}
        print_json({**found.as_json(), **({"head": named} if head else {})})
    else:
        click.echo(printable(_check_text(found)))
    if not found.ok:
        click.get_current_context().exit(1)


def _sample(record: Any) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    shown = text if isinstance(text, str) else json.dumps(record, ensure_ascii=False)
    return textwrap.shorten(shown, _WIDTH, placeholder=" ...")


def _check_text(found: DownloadCheck) -> str:
    rows = [["file", "rows", "characters", "size", "bad", "empty", "repeated", "in earlier files"]]
    for each in found.files:
        counts = (each.bad, each.empty, each.repeated, each.repeated_elsewhere)
        shown = [f"{number:,}" if number else "-" for number in counts]
        rows.append([each.path, f"{each.rows:,}", f"{each.characters:,}", size(each.bytes), *shown])
    repeated, total = found.repeated, sum(each.rows for each in found.files)
    lines = [columns(rows), ""]
    lines += [f"wrong: {problem}" for problem in found.problems]
    lines += [f"wrong: and {found.more:,} more"] if found.more else []
    lines += found.notes
    if repeated:
        share = repeated / total
        lines.append(f"{repeated:,} rows ({share:.2%}) have the text of an earlier row; the first of them:")
        lines += [f"  {example}" for example in found.examples]
    return "\n".join([*lines, verdict(found)])
