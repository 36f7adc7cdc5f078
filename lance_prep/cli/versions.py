"""`lance-prep versions`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lance_prep.cli.options import json_option, storage_option

if TYPE_CHECKING:
    from lance_prep.dataset import Version

EXAMPLES = """\b
Examples:
  lance-prep versions sample.lance
  lance-prep versions sample.lance --files
  lance-prep versions sample.lance --json | jq '.[-1].tags'
"""

FILES_SHOWN = 3


@click.command("versions", help="The versions of a dataset: when, how large, what made each.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.option("--files", "all_files", is_flag=True, help="Name all source files that came with a version.")
@storage_option
@json_option
def command(uri: str, all_files: bool, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.dataset import list_versions

    versions = list_versions(uri, storage_options)
    if as_json:
        click.echo(json.dumps([version.as_json() for version in versions], indent=2))
        return
    for version in versions:
        click.echo(_text(version, all_files))


def _text(version: Version, all_files: bool) -> str:
    size = f"{version.rows:,} rows" if version.rows is not None else "?"
    if version.tokens is not None:
        size += f", {version.tokens:,} tokens"
    tags = f"  [{', '.join(version.tags)}]" if version.tags else ""
    lines = [f"{version.number}  {version.time}  {size}  {version.made} ({version.of}){tags}"]
    for sign, files in (("+", version.files_new), ("-", version.files_gone)):
        shown = files if all_files else files[:FILES_SHOWN]
        lines += [f"     {sign} {url}" for url in shown]
        if len(files) > len(shown):
            lines.append(f"     {sign} and {len(files) - len(shown):,} more files (--files names them)")
    return "\n".join(lines)
