"""`lance-prep compact`, `prune` and `verify`: look after a dataset."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import (
    command,
    dataset_argument,
    dataset_options,
    json_option,
    print_json,
    printable,
    verdict,
)
from lance_prep.cli.progress import part_shown, rows_of, screen
from lance_prep.errors import counted, size

if TYPE_CHECKING:
    from lance_prep.dataset import Verification

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _span(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([mhdw])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a valid duration; use 30d, 12h, 90m or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@command(
    "compact sample.lance",
    "compact sample.lance --target-mb 256",
    about="Rows, their order and the content hash do not change, so verify passes as before. The old files stay for "
    "the versions that use them, until prune removes those versions.",
)
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

    with screen() as shown:
        on_rows = part_shown(shown, "compact", rows_of("copied"))
        done = dataset.compact(uri, target_bytes=target_mb << 20, storage_options=storage_options, on_rows=on_rows)
    if as_json:
        print_json(asdict(done))
    elif done.fragments_after == done.fragments_before:
        click.echo(
            f"nothing to merge in {counted(done.fragments_before, 'fragment')}; version {done.version} is unchanged"
        )
    else:
        click.echo(
            f"version {done.version}: {done.fragments_before} fragments merged into {done.fragments_after}, "
            f"{done.rows_rewritten:,} rows copied"
        )


@command(
    "prune sample.lance --older-than 30d --dry-run",
    "prune sample.lance --older-than 12h",
    about="Never removes the latest version, a tagged version, or the files of an unfinished build. A data file is "
    "removed with the last version that uses it.",
)
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
        versions = "version" if len(done.removed) == 1 else "versions"
        click.echo(f"{verb} {versions} {named}: {counted(done.files, 'file')}, {size(done.bytes)}")
    else:
        click.echo("no version to remove")
    if done.kept_for_tag:
        click.echo(f"kept because they are tagged: versions {', '.join(map(str, done.kept_for_tag))}")


class _RowCount(click.IntRange):
    """A number of rows, or "all"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else super().convert(value, param, ctx)


@command(
    "verify sample.lance",
    "verify sample.lance --against-source --sample-rows 5000 --seed 7",
    about="""DATASET is a dataset, or a folder of text: one that `lance-prep download` wrote, or any with .jsonl files.

Of a dataset, checks the manifest, the transaction, the journal (plan and receipts), every data file, the tokenizer file
and every row. Each problem is one line, "wrong: ...", that names the file, or the shard and the row; the exit code is
then 1.

Reads the source only with --against-source, because it may be missing or slow to reach. Rows are drawn at random, and
the shards that hold them, at most 8, are built again whole and compared with the stored rows. The reference,
tokenizers, is slow: it encodes a share of the texts, and the backend of the build encodes the others. With
--sample-rows all, every shard is built again and tokenizers encodes all texts.

Of a folder of text, checks each file against its stats (size, sha256, rows), and that each line is a JSON object with a
string `text`; bad lines are named with file and line number. Rows whose text is that of an earlier row are counted:
they are no problem.""",
)
@dataset_options
@click.option(
    "--against-source",
    is_flag=True,
    help="Build shards with randomly drawn rows again from the pinned source, and compare their rows.",
)
@click.option(
    "--sample-rows",
    type=_RowCount(min=1),
    metavar="N|all",
    help="Number of rows that --against-source draws.  [default: 200]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Decides which rows --against-source draws.  [default: 0]")
@click.option(
    "--deep",
    is_flag=True,
    help="Also fetch all data files of a remote dataset, to compare their hashes. Those on a local disk always are.",
)
@click.option(
    "--head", type=click.IntRange(1, 1_000_000), metavar="N", help="Print the first N records of each file of text."
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    uri: str,
    version: str | None,
    storage_options: dict[str, str] | None,
    against_source: bool,
    sample_rows: int | str | None,
    seed: int | None,
    deep: bool,
    head: int | None,
    as_json: bool,
) -> None:
    from lance_prep import collection

    if collection.is_text_folder(uri):
        given = {"--version": version, "--sample-rows": sample_rows, "--seed": seed}
        given |= {"--against-source": against_source or None, "--deep": deep or None}
        for flag in [name for name, value in given.items() if value is not None]:
            raise click.UsageError(f"{flag} has no effect: {uri} is a folder of text, not a dataset; remove it")
        from lance_prep.cli.verify_text import verify_text

        verify_text(uri, head or 0, as_json=as_json)
        return
    if head is not None:
        raise click.UsageError(f"--head has no effect: {uri} is not a folder of text; use `lance-prep show`")
    for flag, value in (("--sample-rows", sample_rows), ("--seed", seed)):
        if value is not None and not against_source:
            raise click.UsageError(f"{flag} has no effect without --against-source: add it, or remove {flag}")
    from lance_prep import dataset

    rows = None if isinstance(sample_rows, str) else sample_rows or dataset.SAMPLE_ROWS
    check = dataset.SourceCheck(rows, seed or 0, storage_options)
    with screen() as shown:
        listener = dataset.Listener(
            part_shown(shown, "verify", rows_of("read")),
            shown.say,
            part_shown(shown, "source", rows_of("compared")) if against_source else lambda done, total: None,
        )
        found = dataset.verify(
            uri,
            version,
            storage_options,
            against=check if against_source else None,
            deep=deep,
            listener=listener,
        )
    if as_json:
        print_json({"ok": found.ok, **asdict(found)})
    else:
        click.echo(printable(_verdict_text(found)))
    if not found.ok:
        ctx.exit(1)


def _verdict_text(found: Verification) -> str:
    lines = [f"wrong: {problem}" for problem in found.problems]
    if found.more:
        lines.append(f"wrong: and {found.more:,} more")
    return "\n".join([*lines, verdict(found)])
