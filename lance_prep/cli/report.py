"""`lance-prep report`: a page about a dataset, to send to others."""

from __future__ import annotations

import click

from lance_prep.cli.common import check_storage_options, command, json_option, print_json, printable, storage_option
from lance_prep.cli.completion import paths, tags
from lance_prep.cli.progress import part_shown, screen


@command(
    "report sample.lance",
    "report sample.lance -o sample.html --sample 20",
    about="Writes one HTML file that needs no network: what the dataset is and how it was made, lengths, most frequent "
    "tokens, where each source row went, growth over versions, and rows with their tokens. DATASET can be a "
    "collection: a folder with a manifest.json.",
)
@click.argument("uri", metavar="DATASET", shell_complete=paths)
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="The page.")
@click.option("--version", metavar="N|TAG", shell_complete=tags, help="Version or tag.  [default: the latest]")
@click.option(
    "--sample", type=click.IntRange(min=0, max=1000), default=100, show_default=True, help="Number of rows to show."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which rows are shown.")
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
        on_rows = part_shown(shown, "report", "{:,} of {:,} rows read".format)
        page = write_report(uri, output, version, storage_options, options=options, on_rows=on_rows)
    size = page.stat().st_size
    if as_json:
        print_json({"page": str(page), "bytes": size})
    else:
        click.echo(printable(f"{page}: {size:,} bytes"))
    if open_page:
        click.launch(str(page.resolve()))
