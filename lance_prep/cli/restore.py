"""`lance-prep restore`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from lance_prep.cli.options import json_option, storage_option

EXAMPLES = """\b
Examples:
  lance-prep restore sample.lance 1
  lance-prep restore sample.lance gold --json

\b
Makes a new version that equals the old one: no row is copied, and the versions between
stay readable.
"""


@click.command("restore", help="Make an old version the latest again, as a new version.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.argument("version", metavar="VERSION|TAG")
@storage_option
@json_option
def command(uri: str, version: str, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.dataset import restore

    done = restore(uri, version, storage_options=storage_options)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
    elif done.version == done.restored:
        click.echo(f"version {done.version} is the latest already: nothing to do", err=True)
    else:
        click.echo(
            f"version {done.version} is version {done.restored} again: {done.rows:,} rows, "
            f"content hash {done.content_hash}",
            err=True,
        )
