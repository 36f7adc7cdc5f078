"""`lance-prep verify`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from lance_prep.cli.options import dataset_options, json_option

EXAMPLES = """\b
Examples:
  lance-prep verify sample.lance
  lance-prep verify sample.lance --against-source          200 rows, made again
  lance-prep verify sample.lance --against-source 5000 --seed 7
  lance-prep verify sample.lance --version gold --json

\b
Looks at the manifest, the transaction, the journal (plan and receipts), every data
file, the tokenizer's file and every row. What is wrong comes as one line "wrong: ..."
each, with the file, or the shard and the row; exit 1 then.
The source is read only with --against-source: it may be gone, or far away. The rows
come from at most 16 shards, each of which is read up to its last drawn row or whole.
"""


@click.command(
    "verify",
    help="Is a dataset whole: files, hashes, ledger, ids, lengths, counts. Exit 1 if it is not.",
    epilog=EXAMPLES,
)
@dataset_options
@click.option(
    "--against-source",
    "rows",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=200,
    metavar="[N]",
    help="Read N rows (200) drawn at random again from the pinned source, tokenize them with the reference, compare.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which rows are drawn.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    rows: int | None,
    seed: int,
    as_json: bool,
) -> None:
    from lance_prep.cli.counter import count_rows
    from lance_prep.dataset import Listener, SourceCheck, verify_dataset

    found = verify_dataset(
        uri,
        version,
        storage_options,
        against=SourceCheck(rows, seed, storage_options) if rows else None,
        listener=Listener(count_rows("read"), lambda note: click.echo(note, err=True)),
    )
    if as_json:
        click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=2))
    else:
        for problem in found.problems:
            click.echo(f"wrong: {problem}")
        if found.more:
            click.echo(f"wrong: and {found.more:,} more")
        looked = ", ".join(f"{number:,} {what}" for what, number in found.checks.items())
        number = len(found.problems) + found.more
        verdict = "whole" if found.ok else "1 problem" if number == 1 else f"{number:,} problems"
        click.echo(f"{verdict}: {looked or 'not opened'}")
    if not found.ok:
        ctx.exit(1)
