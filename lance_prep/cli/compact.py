"""`lance-prep compact`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from lance_prep.cli.options import json_option, storage_option

EXAMPLES = """\b
Examples:
  lance-prep compact sample.lance
  lance-prep compact sample.lance --target-mb 256

\b
Rows, their order and the content hash stay: `verify` passes as before. The old files
stay too, for the versions that have them, until `prune` removes those.
"""


@click.command("compact", help="Merge small fragments into large ones, as a new version.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.option(
    "--target-mb",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="A merged file has at most so many MiB.",
)
@storage_option
@json_option
def command(uri: str, target_mb: int, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.cli.counter import count_rows
    from lance_prep.dataset import compact

    done = compact(uri, target_bytes=target_mb << 20, storage_options=storage_options, on_rows=count_rows("copied"))
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
    elif done.fragments_after == done.fragments_before:
        click.echo(f"nothing to merge in {done.fragments_before} fragments: version {done.version} stays", err=True)
    else:
        click.echo(
            f"version {done.version}: {done.fragments_before} fragments merged into {done.fragments_after}, "
            f"{done.rows_rewritten:,} rows copied",
            err=True,
        )
