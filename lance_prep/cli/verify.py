"""`lance-prep verify`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from lance_prep.cli.options import dataset_options, json_option


@click.command("verify", help="Is a dataset whole: hash, ledger, ids, lengths, counts. Exit 1 if it is not.")
@dataset_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, uri: str, version: str | None, storage_options: dict[str, str] | None, as_json: bool
) -> None:
    from lance_prep.inspect import open_ours, verify

    found = verify(open_ours(uri, version, storage_options))
    if as_json:
        click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=2))
    else:
        for problem in found.problems:
            click.echo(f"wrong: {problem}")
        looked = ", ".join(f"{number:,} {what}" for what, number in found.checks.items())
        click.echo(f"{'whole' if found.ok else f'{len(found.problems)} problems'}: {looked}")
    if not found.ok:
        ctx.exit(1)
