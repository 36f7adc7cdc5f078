"""`lance-prep diff`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lance_prep.cli.options import json_option, storage_option

if TYPE_CHECKING:
    from lance_prep.dataset import Difference

EXAMPLES = """\b
Examples:
  lance-prep diff sample.lance 1 2
  lance-prep diff sample.lance gold 4 --json
"""


@click.command("diff", help="What differs between two versions: files, rows, tokens, recipe.", epilog=EXAMPLES)
@click.argument("uri", metavar="DATASET")
@click.argument("old", metavar="V1")
@click.argument("new", metavar="V2")
@storage_option
@json_option
def command(uri: str, old: str, new: str, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.dataset import diff_versions

    found = diff_versions(uri, old, new, storage_options)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else _text(found))


def _text(found: Difference) -> str:
    lines = [f"version {found.old} -> version {found.new}"]
    for name, (was, now) in (("rows", found.rows), ("tokens", found.tokens)):
        lines.append(f"{name}: {was:,} -> {now:,} ({now - was:+,})")
    lines.append("content: the same rows in the same order" if found.same_content else "content: not the same")
    signs = (("+", found.files_added), ("-", found.files_gone), ("~", found.files_changed))
    lines += [f"{sign} {url}" for sign, urls in signs for url in urls]
    lines += [f"recipe {name}: {was!r} -> {now!r}" for name, (was, now) in found.recipe.items()]
    lines += [f"{name}: {was} -> {now}" for name, (was, now) in found.other.items()]
    return "\n".join(lines)
