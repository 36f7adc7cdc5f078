"""`lance-prep prune`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import timedelta

import click

from lance_prep.cli.options import json_option, storage_option
from lance_prep.cli.text import size

EXAMPLES = """\b
Examples:
  lance-prep prune sample.lance --older-than 30d --dry-run
  lance-prep prune sample.lance --older-than 12h

\b
Never removes the latest version, a tagged one, or what an unfinished build has written.
A data file goes with the last version that has it.
"""

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _span(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([mhdw])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no span of time: write 30d, 12h, 90m or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command("prune", help="Remove old versions, and the data files that only they have.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.option(
    "--older-than", required=True, callback=_span, metavar="SPAN", help="Versions made longer ago: 30d, 12h, 90m, 2w."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@storage_option
@json_option
def command(
    uri: str, older_than: timedelta, dry_run: bool, storage_options: dict[str, str] | None, as_json: bool
) -> None:
    from lance_prep.dataset import prune

    done = prune(uri, older_than, dry_run=dry_run, storage_options=storage_options)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return
    if done.removed:
        verb = "would remove" if dry_run else "removed"
        named = ", ".join(map(str, done.removed))
        click.echo(f"{verb} versions {named}: {done.files:,} files, {size(done.bytes)}", err=True)
    else:
        click.echo("no version to remove", err=True)
    if done.kept_for_tag:
        click.echo(f"kept for their tags: versions {', '.join(map(str, done.kept_for_tag))}", err=True)
