"""`lance-prep versions`, `tag` and `restore`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, dataset_argument, json_option, print_json, printable
from lance_prep.cli.completion import tags
from lance_prep.errors import counted

if TYPE_CHECKING:
    from lance_prep.dataset import Version

FILES_SHOWN = 3


@command("versions sample.lance", "versions sample.lance --files")
@dataset_argument
@click.option("--files", "all_files", is_flag=True, help="Name every source file that a version added or removed.")
@json_option
def versions(uri: str, all_files: bool, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep.dataset import list_versions

    found = list_versions(uri, storage_options)
    if as_json:
        print_json([asdict(version) for version in found])
        return
    for version in found:
        click.echo(printable(_version_text(version, all_files)))


@command(
    "tag sample.lance gold                # the latest version",
    "tag sample.lance gold 1 --force      # move the tag to version 1",
    about="A tag can be used wherever a version can: --version gold, restore, diff, training. prune never removes a "
    "tagged version.",
)
@dataset_argument
@click.argument("name", shell_complete=tags)
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Delete the tag; its version stays.")
@click.option("--force", is_flag=True, help="Move a tag that points to another version.")
@json_option
def tag(
    uri: str,
    name: str,
    version: str | None,
    delete: bool,
    force: bool,
    storage_options: dict[str, str] | None,
    as_json: bool,
) -> None:
    if delete and (version is not None or force):
        raise click.UsageError("--delete cannot be combined with VERSION or --force: a tag points to one version only")
    from lance_prep import dataset

    if delete:
        done = dataset.delete_tag(uri, name, storage_options=storage_options)
    else:
        done = dataset.tag(uri, name, version, force=force, storage_options=storage_options)
    if as_json:
        print_json(asdict(done))
    elif delete:
        click.echo(f"deleted tag {name} of version {done.was}")
    else:
        moved = f" (was version {done.was})" if done.was not in (None, done.version) else ""
        click.echo(f"tag {name} is version {done.version}{moved}")


@command(
    "restore sample.lance 1",
    "restore sample.lance gold --json",
    about="Makes a new version that equals the old one. No row is copied, and the versions in between stay readable.",
)
@dataset_argument
@click.argument("version", metavar="VERSION|TAG", shell_complete=tags)
@json_option
def restore(uri: str, version: str, storage_options: dict[str, str] | None, as_json: bool) -> None:
    from lance_prep import dataset

    done = dataset.restore(uri, version, storage_options=storage_options)
    if as_json:
        print_json(asdict(done))
    elif done.version == done.restored:
        click.echo(f"version {done.version} is already the latest: nothing to do")
    else:
        click.echo(
            f"version {done.version} equals version {done.restored}: {done.rows:,} rows, "
            f"content hash {done.content_hash}"
        )


def _version_text(version: Version, all_files: bool) -> str:
    size = counted(version.rows, "row") if version.rows is not None else "?"
    if version.tokens is not None:
        size += f", {counted(version.tokens, 'token')}"
    tags = f"  [{', '.join(version.tags)}]" if version.tags else ""
    lines = [f"{version.number}  {version.time}  {size}  {version.made} ({version.of}){tags}"]
    for sign, files in (("+", version.files_new), ("-", version.files_gone)):
        shown = files if all_files else files[:FILES_SHOWN]
        lines += [f"     {sign} {url}" for url in shown]
        if len(files) > len(shown):
            lines.append(f"     {sign} and {len(files) - len(shown):,} more files (--files lists them)")
    return "\n".join(lines)
