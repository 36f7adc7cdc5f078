"""`lance-prep import`: token ids that another program wrote, as a dataset."""

from __future__ import annotations

from typing import Any

import click

from lance_prep.cli.common import command, json_option, print_json, printable, storage_option
from lance_prep.cli.completion import sources
from lance_prep.cli.progress import screen


@command(
    "import sample-bin/sample/train.bin --dtype uint16 --tokenizer lance-prep:sample -o from-bin.lance",
    "import sample-megatron/sample/train.idx --tokenizer lance-prep:sample -o from-megatron.lance",
    about="""SOURCE is Parquet files with a column of token ids, flat .bin files as nanoGPT reads them, or Megatron's
.idx with the .bin beside it: files, folders or globs.

Rows of one length become blocks as they are, without padding. Others become documents. A flat .bin is cut into
documents after each end-of-text id, or into blocks of --block-size. Layout documents leaves out the end-of-text id at
the end of a document, which is added when rows are joined for training.

Run again on the same output, import continues an interrupted import.""",
)
@click.argument("source", nargs=-1, required=True, shell_complete=sources)
@click.option("-o", "--output", metavar="OUT", help="Path of the dataset.  [default: the source's name with .lance]")
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="Tokenizer that made the ids: a Hub id, a tokenizer.json, or a folder with one. The dataset keeps it, to "
    "decode rows and to check ids.  [default: unknown]",
)
@click.option("--dtype", type=click.Choice(["uint16", "uint32", "int32"]), help="Type of the ids in a flat .bin.")
@click.option(
    "--eos-id", type=click.IntRange(min=0), help="Id that ends a document.  [default: the tokenizer's end of text]"
)
@click.option("--column", default="input_ids", show_default=True, help="Column with the ids, in Parquet.")
@click.option(
    "--layout",
    type=click.Choice(["documents", "blocks"]),
    help="What a row is.  [default: blocks if rows have one length or --block-size is given, else documents]",
)
@click.option("--block-size", type=click.IntRange(min=2), help="Ids in a block.")
@click.option(
    "--packing",
    type=click.Choice(["rows", "concat", "best-fit"]),
    help="How blocks are made: of rows as they are, or of documents, packed again.  [default: rows if they have the "
    "length of a block, else concat]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Shards imported at once.  [default: number of cores]")
@click.option("--overwrite", "--force", is_flag=True, help="Make a new version with the new content; old ones stay.")
@storage_option
@json_option
def import_(
    source: tuple[str, ...],
    output: str | None,
    workers: int | None,
    overwrite: bool,
    storage_options: dict[str, str] | None,
    as_json: bool,
    **given: Any,
) -> None:
    from lance_prep.cli.build import Shown
    from lance_prep.cli.summary import summary
    from lance_prep.exchange import ImportOptions, import_ids

    with screen() as shown:
        report = import_ids(
            source,
            output=output,
            options=ImportOptions(**given),
            workers=workers,
            overwrite=overwrite,
            storage_options=storage_options,
            progress=Shown(shown),
        )
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(summary(report)))
