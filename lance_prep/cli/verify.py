"""`lance-prep verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import command, count_rows, dataset_options, json_option, print_json, printable

if TYPE_CHECKING:
    from lance_prep.dataset import Verification

EXAMPLES = """\b
Examples:
  lance-prep verify sample.lance
  lance-prep verify sample.lance --against-source
  lance-prep verify sample.lance --against-source --sample-rows 5000 --seed 7
  lance-prep verify sample.lance --against-source --sample-rows all
  lance-prep verify sample.lance --version gold --json

\b
Checks the manifest, the transaction, the journal (plan and receipts), every data file,
the tokenizer file and every row. Each problem is one line, "wrong: ...", that names the
file, or the shard and the row; the exit code is then 1.
The source is read only with --against-source, as it may be missing or far away. Rows are
drawn at random, and the shards that hold them, at most 8, are built again whole. Their
rows must be the stored ones. tokenizers, the reference, is slow: it encodes a share of
the texts, and the backend of the build the others. --sample-rows all builds every shard
again and encodes all texts with tokenizers.
"""


class _RowCount(click.IntRange):
    """A number of rows, or "all"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else super().convert(value, param, ctx)


@command(EXAMPLES)
@dataset_options
@click.option(
    "--against-source",
    is_flag=True,
    help="Build shards with randomly drawn rows again from the pinned source, and compare their rows.",
)
@click.option(
    "--sample-rows",
    type=_RowCount(min=1),
    metavar="N|all",
    help="Number of rows that --against-source draws.  [default: 200]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Decides which rows --against-source draws.  [default: 0]")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    against_source: bool,
    sample_rows: int | str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    for flag, value in (("--sample-rows", sample_rows), ("--seed", seed)):
        if value is not None and not against_source:
            raise click.UsageError(f"{flag} has no effect without --against-source: add it, or remove {flag}")
    from lance_prep import dataset

    rows = None if isinstance(sample_rows, str) else sample_rows or dataset.SAMPLE_ROWS
    check = dataset.SourceCheck(rows, seed or 0, storage_options)
    found = dataset.verify(
        uri,
        version,
        storage_options,
        against=check if against_source else None,
        listener=dataset.Listener(count_rows("read"), lambda note: click.echo(printable(note), err=True)),
    )
    if as_json:
        print_json({"ok": found.ok, **asdict(found)})
    else:
        click.echo(printable(_text(found)))
    if not found.ok:
        ctx.exit(1)


def _text(found: Verification) -> str:
    lines = [f"wrong: {problem}" for problem in found.problems]
    if found.more:
        lines.append(f"wrong: and {found.more:,} more")
    checked = ", ".join(f"{number:,} {what}" for what, number in found.checks.items())
    number = len(found.problems) + found.more
    verdict = "whole" if found.ok else "1 problem" if number == 1 else f"{number:,} problems"
    return "\n".join([*lines, f"{verdict}: {checked or 'not opened'}"])
