"""`lance-prep report`: write a page about a dataset."""

from __future__ import annotations

import click

from lance_prep.cli.common import check_storage_options, command, json_option, print_json, printable, storage_option
from lance_prep.cli.completion import paths, tags
from lance_prep.cli.progress import part_shown, rows_of, screen


@command(
    "report sample.lance",
    "report sample.lance -o sample.html --sample 20",
    about="The page needs no network. It shows how the dataset was made, lengths, the most frequent tokens, where each "
    "source row went, duplicates, text found in a benchmark, growth over versions, and a sample of rows with their "
    "tokens. DATASET can be a collection, which is a folder with a manifest.json.",
)
@click.argument("uri", metavar="DATASET", shell_complete=paths)
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="Path of the page.")
@click.option("--version", metavar="N|TAG", shell_complete=tags, help="Version or tag.  [default: the latest]")
@click.option(
    "--sample", type=click.IntRange(min=0, max=1000), default=100, show_default=True, help="Number of rows to show."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for drawing the rows.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@storage_option
@json_option
def report(
    uri: str,
    output: str,
    version: str | None,
    sample: int,
    seed: int,
    open_page: bool,
    storage_options: dict[str, str] | None,
    as_json: bool,
) -> None:
    from lance_prep.report import ReportOptions, write_report

    check_storage_options(storage_options, uri)
    options = ReportOptions(rows=sample, seed=seed)
    with screen() as shown:
        on_rows = part_shown(shown, "report", rows_of("read"))
        page = write_report(uri, output, version, storage_options, options=options, on_rows=on_rows)
    size = page.stat().st_size
    if as_json:
        print_json({"page": str(page), "bytes": size})
    else:
        click.echo(printable(f"{page}: {size:,} bytes"))
    if open_page:
        click.launch(str(page.resolve()))
