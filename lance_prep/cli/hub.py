"""`lance-prep push`: datasets to the Hugging Face Hub."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import (
    check_storage_options,
    command,
    json_option,
    print_json,
    printable,
    storage_option,
    table,
)
from lance_prep.cli.completion import paths, tags
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.hub import PushReport


@command(
    "push sample.lance owner/name --private",
    "push sample.lance owner/name --version 1 --tag v1",
    about="""DATASET is a dataset, or a folder with manifest.json, all of whose datasets are pushed. A dataset with
NAME.val.lance beside it is pushed with it, as the split `validation`.

REPO is owner/name, which is made if it is missing. One commit has all files, a card and a Croissant file. Run again,
push continues an interrupted push, or says that it is up to date.

Rejected source rows (their text, up to 4 KiB each), and the text that was found in a benchmark, are pushed too, in
.lance_prep/builds: `verify` needs them. The summary says how many. If nobody may read them, push with --private, or
build from a source without them.""",
)
@click.argument("source", metavar="DATASET", shell_complete=paths)
@click.argument("repo")
@click.option(
    "--version", metavar="N|TAG", shell_complete=tags, help="Version or tag of the dataset.  [default: the latest]"
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--revision", metavar="BRANCH", help="Branch, which is made if it is missing, or refs/pr/N.  [default: main]"
)
@click.option(
    "--path-in-repo",
    metavar="PATH",
    help="Folder of the dataset in the repository; of a collection, the folder of its datasets.  "
    "[default: data/train.lance; data]",
)
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@click.option("--tag", metavar="NAME", help="Name for the commit. `load_dataset` reads main only; Lance reads tags.")
@click.option("--message", metavar="TEXT", help="Title of the commit.")
@storage_option
@json_option
def push(source: str, repo: str, as_json: bool, **arguments: Any) -> None:
    from lance_prep import hub

    check_storage_options(arguments["storage_options"], source)
    options = hub.PushOptions(**arguments)
    with screen() as shown:
        report = hub.push(source, repo, options, progress=_Shown(shown))
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(_summary(report)))


class _Shown:
    """Counts bytes that arrived on the Hub, and shows how fast."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._started = time.monotonic()
        self._files = self._bytes = self._done = 0

    def planned(self, files: int, bytes: int) -> None:
        if not self._bytes:
            self._started = time.monotonic()
            self._screen.begin("push")
        self._files, self._bytes = self._files + files, self._bytes + bytes

    def advanced(self, bytes: int) -> None:
        self._done += bytes
        self._screen.show("push", self._line, self._done, self._bytes)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        done = f"{size(self._done)} of {size(self._bytes)} in {counted(self._files, 'file')}"
        return f"{done}, {size(self._done / seconds)}/s{left(seconds, self._done, self._bytes)}"


def _summary(report: PushReport) -> str:
    commit = report.commit
    rows = [("repository", report.repo + (", new" if report.created else ""))]
    if report.revision != "main":
        rows.append(("branch", report.revision))
    for one in report.datasets:
        tokens = f", {one.tokens:,} tokens" if one.tokens else ""
        rows.append((one.path, f"version {one.version}, {one.rows:,} rows{tokens}, content hash {one.content_hash}"))
    if commit.made:
        removed = f", {counted(commit.removed, 'file')} of the version pushed before removed" if commit.removed else ""
        rows.append(("files", f"{commit.files:,} new ({size(commit.bytes)}), {commit.unchanged:,} unchanged{removed}"))
    else:
        rows.append(("up to date", "the Hub has the same files"))
    rows.append(("commit", commit.url))
    if report.tag is not None:
        rows.append(("tag", report.tag))
    rows += [("note", note) for note in report.notes]
    rows.append(("open it with", f'LanceDataset("{report.datasets[0].uri}")'))
    return table(rows)
