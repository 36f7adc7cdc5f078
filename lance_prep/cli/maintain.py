"""`lance-prep compact` and `prune`."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta

import click

from lance_prep.cli.common import command, count_rows, dataset_argument, json_option, print_json, size

COMPACT_EXAMPLES = """\b
Examples:
  lance-prep compact sample.lance
  lance-prep compact sample.lance --target-mb 256

\b
Rows, their order and the content hash do not change, so `verify` passes as before. The
old files stay for the versions that use them, until `prune` removes those versions.
"""

PRUNE_EXAMPLES = """\b
Examples:
  lance-prep prune sample.lance --older-than 30d --dry-run
  lance-prep prune sample.lance --older-than 12h

\b
Never removes the latest version, a tagged version, or the files of an unfinished build.
A data file is removed with the last version that uses it.
"""

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _span(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([mhdw])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a valid duration; use 30d, 12h, 90m or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@command(COMPACT_EXAMPLES)
@dataset_argument
@click.option(
    "--target-mb",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Maximum size of a merged file, in MiB.",
)
@json_option
def compact(uri: str, target_mb: int, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep import dataset

    done = dataset.compact(
        uri, target_bytes=target_mb << 20, storage_options=storage_options, on_rows=count_rows("copied")
    )
    if as_json:
        print_json(asdict(done))
    elif done.fragments_after == done.fragments_before:
        click.echo(f"nothing to merge in {done.fragments_before} fragments; version {done.version} is unchanged")
    else:
        click.echo(
            f"version {done.version}: {done.fragments_before} fragments merged into {done.fragments_after}, "
            f"{done.rows_rewritten:,} rows copied"
        )


@command(PRUNE_EXAMPLES)
@dataset_argument
@click.option(
    "--older-than",
    required=True,
    callback=_span,
    metavar="DURATION",
    help="Remove versions older than this: 30d, 12h, 90m, 2w.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
def prune(
    uri: str, older_than: timedelta, dry_run: bool, storage_options: dict[str, str] | None, as_json: bool
) -> None:
    from lance_prep import dataset

    done = dataset.prune(uri, older_than, dry_run=dry_run, storage_options=storage_options)
    if as_json:
        print_json(asdict(done))
        return
    if done.removed:
        verb = "would remove" if dry_run else "removed"
        named = ", ".join(map(str, done.removed))
        click.echo(f"{verb} versions {named}: {done.files:,} files, {size(done.bytes)}")
    else:
        click.echo("no version to remove")
    if done.kept_for_tag:
        click.echo(f"kept because they are tagged: versions {', '.join(map(str, done.kept_for_tag))}")
