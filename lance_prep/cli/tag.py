"""`lance-prep tag`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from lance_prep.cli.options import json_option, storage_option

EXAMPLES = """\b
Examples:
  lance-prep tag sample.lance gold            the latest version
  lance-prep tag sample.lance gold 3 --force  move it to version 3
  lance-prep tag sample.lance gold --delete

\b
A tag stands wherever a version does: --version gold, restore, diff, training. `prune`
never removes a tagged version.
"""


@click.command("tag", help="Give a version of a dataset a name, or take a name away.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.argument("name")
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Delete the tag; its version stays.")
@click.option("--force", is_flag=True, help="Move a tag that points to another version.")
@storage_option
@json_option
def command(
    uri: str,
    name: str,
    version: str | None,
    delete: bool,
    force: bool,
    storage_options: dict[str, str] | None,
    as_json: bool,
) -> None:
    if delete and (version is not None or force):
        raise click.UsageError("--delete takes no VERSION and no --force: a tag points to one version only")
    from lance_prep.dataset import delete_tag, tag

    if delete:
        done = delete_tag(uri, name, storage_options=storage_options)
    else:
        done = tag(uri, name, version, force=force, storage_options=storage_options)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
    elif delete:
        click.echo(f"tag {name} of version {done.was} is gone", err=True)
    else:
        moved = f" (before: version {done.was})" if done.was not in (None, done.version) else ""
        click.echo(f"tag {name} is version {done.version}{moved}", err=True)
