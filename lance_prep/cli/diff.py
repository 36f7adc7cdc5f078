"""`lance-prep diff`: what differs between two versions, datasets or collections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.common import (
    check_storage_options,
    columns,
    command,
    json_option,
    print_json,
    printable,
    storage_option,
    wrapped,
)
from lance_prep.cli.completion import datasets_or_tags, paths, tags
from lance_prep.cli.progress import part_shown, rows_of, screen
from lance_prep.cli.terminal import draws, sparkline, width
from lance_prep.errors import DatasetError, counted, size
from lance_prep.transport import in_home, is_local

if TYPE_CHECKING:
    from lance_prep.dataset import Difference, Histogram

FILES_SHOWN = 3
#: Longer values stand below each other rather than side by side.
_CELL = 60
_SPARKS = 40

Row = tuple[str, str, str, str]


@command(
    "diff sample.lance                  # the version before the latest, and the latest",
    "diff sample.lance 1 2",
    "diff sample.lance gold 2 --json    # the version tagged gold, and version 2",
    "diff sample.lance documents.lance",
    about="Compares two versions of a dataset, two datasets, or two collections. One word after A is a version if it "
    "is a number or a tag of A; otherwise it is another dataset.\n\n"
    "Prints the fields of the recipe that differ, rows, tokens, bytes, documents and sources, why rows were left "
    "out, and the lengths of the documents. On a terminal, lengths are drawn; elsewhere, and with NO_COLOR, TERM=dumb "
    "or ACCESSIBLE=1, they are numbers.",
)
@click.argument("uri", metavar="A", shell_complete=paths)
@click.argument("others", metavar="[B | V1 [V2]]", nargs=-1, shell_complete=datasets_or_tags)
@click.option("--version", metavar="N|TAG", shell_complete=tags, help="Version of A.  [default: the latest]")
@click.option("--other-version", metavar="N|TAG", shell_complete=tags, help="Version of B.  [default: the latest]")
@click.option("--no-lengths", is_flag=True, help="Leave out the lengths, so that no row is read.")
@click.option("--files", "all_files", is_flag=True, help="Name every source file that differs.")
@storage_option
@json_option
def diff(
    uri: str,
    others: tuple[str, ...],
    version: str | None,
    other_version: str | None,
    no_lengths: bool,
    all_files: bool,
    storage_options: dict[str, str] | None,
    as_json: bool,
) -> None:
    from lance_prep.dataset import compare

    other, old, new = _sides(uri, others, version, other_version, storage_options)
    check_storage_options(storage_options, uri, other)
    with screen() as shown:
        on_rows = part_shown(shown, "lengths", rows_of("read"))
        found = compare(uri, other, old, new, storage_options, lengths=not no_lengths, on_rows=on_rows)
    if as_json:
        print_json(found.as_json())
        return
    click.echo(printable("\n".join(_lines(found, all_files))))


def _sides(
    uri: str, others: Sequence[str], version: str | None, other_version: str | None, options: dict[str, str] | None
) -> tuple[str, str | None, str | None]:
    """Return the other dataset, and the versions of both."""
    if len(others) > 2:
        raise click.UsageError(f"expected at most three words, A V1 V2, and got {len(others) + 1}")
    from lance_prep.dataset import list_versions, open_parts

    if not others or (len(others) == 1 and _is_version(uri, others[0], options)):
        _refuse_versions(version, other_version)
        if open_parts(uri, None, options, most=1).manifest is not None:
            raise click.UsageError(f"{uri} is a collection, which has no versions: name another one to compare it with")
        if others:
            return uri, others[0], None
        numbers = [each.number for each in list_versions(uri, options)]
        if len(numbers) < 2:
            raise click.UsageError(f"{uri} has one version only: name another dataset to compare it with")
        return uri, str(numbers[-2]), None
    if len(others) == 2:
        _refuse_versions(version, other_version)
        return uri, others[0], others[1]
    if is_local(others[0]) and not in_home(others[0]).exists():
        raise DatasetError(
            f"{uri} has no version or tag {others[0]!r}, and there is no dataset at {others[0]}",
            "`lance-prep versions` lists versions and tags",
        )
    return others[0], version, other_version


def _refuse_versions(version: str | None, other_version: str | None) -> None:
    if version is not None or other_version is not None:
        raise click.UsageError("--version and --other-version are for two datasets: remove them, or name the other one")


def _is_version(uri: str, word: str, options: dict[str, str] | None) -> bool:
    from lance_prep.dataset import open_parts

    if word.isdigit():
        return True
    if "/" in word:
        return False
    opened = open_parts(uri, None, options, most=1).opened.get("")
    return opened is not None and word in opened.dataset.tags.list()


def _lines(found: Difference, all_files: bool) -> Iterator[str]:
    yield from _named(found)
    yield ""
    rows = [_count_row(name, *pair) for name, pair in found.counts.items()]
    rows += [_count_row(name, *pair) for name, pair in found.ledger.items()]
    yield from _table([("", "old", "new", "change"), *rows], numbers=True)
    yield "content: the same rows in the same order" if found.same_content else "content: not the same"
    for title, pairs in (("recipe", found.recipe), ("made with", found.other)):
        if pairs:
            yield f"\n{title}"
            yield from _table([(name, _value(was), _value(now), "") for name, (was, now) in pairs.items()])
    if found.datasets:
        yield "\ntokens of datasets that differ"
        yield from _table([(name, _tokens(was), _tokens(now), "") for name, (was, now) in found.datasets.items()], True)
    yield from _files(found, all_files)
    if found.lengths is not None:
        cut = "; a document that is cut counts once for each block" if found.counts_parts else ""
        yield from wrapped("", f"\ntokens in a {found.unit}{cut}", width())
        yield from _lengths(*found.lengths, found.unit)


def _named(found: Difference) -> Iterator[str]:
    for side, uri, number in (("old", found.old_uri, found.old), ("new", found.new_uri, found.new)):
        yield f"{side}  {uri}" + (f", version {number}" if number is not None else "")


def _count_row(name: str, was: int, now: int) -> Row:
    write = size if name == "bytes" else "{:,}".format
    change = f"{(now - was) / was:+,.1%}" if was and now != was else ""
    if name != "bytes":
        change = f"{now - was:+,}  {change}".rstrip() if now != was else ""
    return name, write(was), write(now), change


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _tokens(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _table(rows: Sequence[Row], numbers: bool = False) -> Iterator[str]:
    """Yield rows side by side; those with a long value, or all on a narrow terminal, below each other."""
    room, indent = width(), "  "
    side = [row for row in rows if max(map(len, row)) <= _CELL]
    for kept in (4, 3):  # without the change if it does not fit
        lines = columns([row[:kept] for row in side], numbers=1 if numbers else None).split("\n") if side else []
        if room is None or max(map(len, lines), default=0) + len(indent) <= room:
            break
    else:
        side, lines = [], []
    yield from (indent + line for line in lines)
    for name, was, now, change in (row for row in rows if row not in side and row[0]):
        yield f"{indent}{name}" + (f"  {change}" if change else "")
        for label, value in (("old", was), ("new", now)):
            yield from wrapped(f"{indent}  {label}  ", value, room)


def _files(found: Difference, all_files: bool) -> Iterator[str]:
    signs = (("+", found.files_added), ("-", found.files_gone), ("~", found.files_changed))
    if any(urls for _, urls in signs):
        yield "\nfiles: + added, - removed, ~ changed"
    for sign, urls in signs:
        shown = urls if all_files else urls[:FILES_SHOWN]
        yield from (f"  {sign} {url}" for url in shown)
        if len(urls) > len(shown):
            yield f"  {sign} and {len(urls) - len(shown):,} more (--files lists them)"


def _lengths(old: Histogram, new: Histogram, unit: str) -> Iterator[str]:
    sides = (("old", old), ("new", new))
    if draws():
        yield from _sparklines(sides, unit)
        return
    for label, each in sides:
        yield f"  {label}: {_facts(each, unit)}"
    counts = [{low: (high, number) for low, high, number in each.by_doubling()} for _, each in sides]
    rows: list[Row] = [("tokens", "old", "new", "")]
    for low in sorted({*counts[0], *counts[1]}):
        high = (counts[0].get(low) or counts[1][low])[0]
        was, now = (one.get(low, (0, 0))[1] for one in counts)
        rows.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", f"{was:,}", f"{now:,}", ""))
    yield from _table(rows, numbers=True)


def _sparklines(sides: Sequence[tuple[str, Histogram]], unit: str) -> Iterator[str]:
    """Draw both on the same scales: across the logarithm of the length, upwards the share of the documents."""
    used = [bar for _, each in sides for bar, number in enumerate(each.counts) if number]
    if not used:
        yield "  none"
        return
    first, last = min(used), max(used)
    edge = sides[0][1].edge
    # Bars of lengths below 8 that no whole number is in would be gaps.
    bars = [bar for bar in range(first, last + 1) if math.ceil(edge(bar) - 1e-6) < math.ceil(edge(bar + 1) - 1e-6)]
    merged = -(-len(bars) // min(_SPARKS, (width() or 80) - 10))
    parts = [bars[at : at + merged] for at in range(0, len(bars), merged)]
    shares = [[each.counts[part].sum() / max(each.number, 1) for part in parts] for _, each in sides]
    top = max(share for one in shares for share in one)
    for (label, each), one in zip(sides, shares, strict=True):
        yield f"  {label}  {sparkline(one, top)}"
        yield from wrapped("       ", _facts(each, unit), width())
    low, longest = edge(first), max(each.longest for _, each in sides)
    yield from wrapped("  ", f"lengths from {low:,.0f} to {longest:,}, on a log scale", width())


def _facts(each: Histogram, unit: str) -> str:
    if not each.number:
        return f"no {unit}s"
    return f"{counted(each.number, unit)}, {each.total / each.number:,.1f} on average, {each.longest:,} at most"
