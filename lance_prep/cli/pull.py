"""`lance-prep pull`: a dataset or a collection from the Hub into a local folder."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, json_option, print_json, printable, table
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.hub import PullReport, Snapshot


@command(
    "pull owner/name",
    "pull owner/name -o wiki.lance --revision v1.0",
    about="""REPO is owner/name, or hf://datasets/owner/name@revision/path. It holds a Lance dataset, or several with
a manifest.json, which are pulled together. A validation set that push sent beside a dataset becomes NAME.val.lance.

The folder appears when all files are there and their hashes are right. Run again after an interruption, pull continues
where it stopped. Run again later, it adds what is new on the Hub; the versions that are in the folder stay until
`lance-prep prune`. Private and gated datasets need `hf auth login` or HF_TOKEN.""",
)
@click.argument("repo")
@click.option("-o", "--output", metavar="DIR", help="Local folder.  [default: the repository's name, with .lance]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@click.option("--path-in-repo", metavar="PATH", help="Folder of the dataset.  [default: the only one there]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier pull if the dataset was rebuilt since.")
@click.option("--workers", type=click.IntRange(min=1), default=8, show_default=True, help="Files fetched at once.")
@json_option
def pull(
    repo: str,
    output: str | None,
    revision: str | None,
    path_in_repo: str | None,
    overwrite: bool,
    workers: int,
    as_json: bool,
) -> None:
    from lance_prep import hub

    with screen() as shown:
        report = hub.pull(
            repo,
            output,
            revision=revision,
            path_in_repo=path_in_repo,
            overwrite=overwrite,
            workers=workers,
            progress=_Shown(shown),
        )
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(_summary(report)))


class _Shown:
    """Counts the bytes fetched, and shows the speed."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._done = self._total = 0

    def waiting(self, folder: str) -> None:
        self._screen.say(f"another process pulls into {folder}: waiting for it")

    def begun(self, snapshot: Snapshot, files: int, bytes: int) -> None:
        self._done, self._total, self._started = 0, bytes, time.monotonic()
        there = f" of {len(snapshot.files):,}" if files < len(snapshot.files) else ""
        self._screen.begin("pull", f"{snapshot.at.url}: fetching {counted(files, 'file')}{there}, {size(bytes)}")

    def advanced(self, bytes: int) -> None:
        with self._lock:
            self._done += bytes
        self._screen.show("pull", self._line, self._done, self._total)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        speed = f"{size(self._done / seconds)}/s{left(seconds, self._done, self._total)}"
        return f"{size(self._done)} of {size(self._total)}, {speed}"


def _summary(report: PullReport) -> str:
    place = f"{report.repo}/{report.path}".rstrip("/")
    at = f"{report.commit} ({report.revision})" if report.revision != report.commit else report.commit
    before = f", which had commit {report.before}" if report.before not in (None, report.commit) else ""
    rows = [
        ("output", report.folder),
        ("status", report.status + before),
        ("from", place),
        ("commit", at),
        (
            "files",
            f"{report.files:,}, {size(report.bytes)}; fetched {report.fetched_files:,}, {size(report.fetched_bytes)}",
        ),
    ]
    if report.datasets != ("",):
        rows.append(("datasets", ", ".join(report.datasets)))
    if report.validation is not None:
        rows.append(("validation", f"{report.validation.folder} ({report.validation.status})"))
    if report.status == "updated":
        rows.append(("versions", "those that were there are kept; `lance-prep prune` removes them"))
    return table(rows)
