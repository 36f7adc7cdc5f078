"""`lance-prep build`: its options, one for each field of a recipe, and its progress on stderr."""

from __future__ import annotations

import re
import threading
import time
import types
import typing
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from lance_prep.cli.common import (
    as_options,
    command,
    count,
    json_option,
    pairs,
    print_json,
    printable,
    source_storage_option,
    storage_option,
)
from lance_prep.cli.completion import sources
from lance_prep.cli.progress import Screen, left, screen
from lance_prep.errors import counted, size
from lance_prep.formats import COMPRESSIONS, registered
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import (
    Recipe,
    builtin_collections,
    builtin_recipes,
    load_recipe,
    parse_size,
    refuse_unread,
)

if TYPE_CHECKING:
    from lance_prep.engine import Engine, RunOptions
    from lance_prep.model import Plan
    from lance_prep.store import Receipt

_EXTENSIONS = " ".join(extension for each in registered() if not each.named_only for extension in each.extensions)

ABOUT = f"""SOURCE is a built-in recipe ({", ".join(builtin_recipes())}), a recipe .yaml, a Hub id owner/name, an hf://,
s3:// or https:// URL, or local files, folders and globs. Several files, folders and globs are read in order, as one
source.

Formats: {_EXTENSIONS}. JSON, CSV and text may be
compressed ({" ".join(COMPRESSIONS)}).

SOURCE can also be a collection: a built-in one ({", ".join(builtin_collections())}), a .yaml with categories, or what
`lance-prep download` wrote. With --recursive, it is any folder with .jsonl files below it. Each source of a collection,
or file, becomes a dataset of its own in the folder OUT, and OUT/manifest.json lists them. Run again, this builds what
is new or changed.

Run again on the same output, build continues an interrupted build, says that the dataset is up to date, or names the
options for a source or recipe that has changed."""


#: The headings of the help, and the parameters below each.
_HEADINGS = {
    "Source": "config split revision text_column keep_columns ids_column ids_dtype document_end filter delimiter "
    "recursive source_storage_options",
    "Text": "text_unit template messages chat_template min_chars max_chars max_text_bytes language language_column "
    "decontaminate decontaminate_ngram decontaminate_drop dedup dedup_unit minhash_ngram minhash_bands minhash_rows",
    "Tokenizer": "tokenizer tokenizer_revision tokenizer_backend special_tokens add_special_tokens eos_token",
    "Layout": "layout block_size packing shuffle_batch_size shuffle seed shard_size",
    "Limits and splits": "max_rows max_source_rows max_tokens val_fraction val_tokens side strict",
    "Output": "output append overwrite skip_existing storage_options",
    "Running": "workers memory engine spark_master spark_conf dry_run",
}
HEADINGS = {heading: names.split() for heading, names in _HEADINGS.items()}


def _recipe_options(function: Any) -> Any:
    """One option for each field of the recipe, so that flags override any of them."""
    for name, field in reversed(Recipe.model_fields.items()):
        if name != "source":
            function = _option(name, field)(function)
    return function


def _option(name: str, field: FieldInfo) -> Any:
    flag, default, description = "--" + name.replace("_", "-"), field.default, _sentence(field.description or "")
    kinds = [kind for kind in _flat(field.annotation) if kind is not type(None)]
    shown = "" if default in (None, ()) or "[default" in description else f"  [default: {_plain(default)}]"
    if name == "template":
        description += r" In this option \n, \t and \\ are newline, tab and backslash."
        return click.option(flag, callback=_unescape, default=None, help=description)
    if name == "shard_size":
        return click.option(flag, callback=_large_enough, default=None, help=description + shown)
    if name == "block_size":
        return click.option(flag, "--max-seq-length", name, type=int, default=None, help=description + shown)
    if name == "keep_columns":
        return click.option(flag, metavar="A,B,...", callback=_split, default=None, help=description)
    if name == "language":
        return click.option(flag, metavar="A,B,...", default=None, help=description)
    if name == "decontaminate":
        return click.option(flag, metavar="SOURCE", default=None, help=description)
    if name == "messages":
        return click.option(flag, metavar="COLUMN[,COLUMN...]", default=None, help=description)
    if name == "chat_template":
        return click.option(flag, metavar="FILE", default=None, help=description)
    if bool in kinds:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=description + shown)
    choices = [value for kind in kinds for value in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal]
    if name == "layout":
        # Not a click.Choice: a layout may be registered after this module is imported.
        shape = f"[{'|'.join(LAYOUTS)}]"
        return click.option(flag, metavar=shape, callback=_known_layout, default=None, help=description + shown)
    if choices:
        return click.option(flag, type=click.Choice(choices), default=None, help=description + shown)
    # A field that parses text itself ("128MiB", "all") is handed the text.
    number = int in kinds and not any(isinstance(each, BeforeValidator) for each in field.metadata)
    return click.option(flag, type=int if number else str, default=None, help=description + shown)


def _known_layout(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and value not in LAYOUTS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, LAYOUTS))}.")
    return value


def _large_enough(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a size that was meant in MiB or GiB: 300 rows in shards of 1 byte took 54 seconds."""
    if value is not None and re.fullmatch(r"[1-9]\d{0,2}B?", value.strip(), re.IGNORECASE):
        raise click.BadParameter(f"{value} bytes are too few: use at least 1kB, such as 128MiB.")
    return value


def _sentence(description: str) -> str:
    """Write a field's description as the other options' help is written: `Seed of the shuffle.`"""
    said, default, rest = description.partition(" [default")
    return f"{said[:1].upper()}{said[1:]}.{' ' if default else ''}{default}{rest}"


def _flat(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _flat(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _flat(part)]
    return [annotation]


def _plain(default: Any) -> str:
    return {True: "yes", False: "no"}.get(default, str(default)) if isinstance(default, bool) else str(default)


def _unescape(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Shells pass backslashes on as they are, and a template without newlines is rarely meant."""
    if value is None:
        return None
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], value)


def _split(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if value is not None else None


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        memory = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return memory if memory is None else int(memory)


@command(
    "build sample",
    "build wikitext --max-rows all -o wikitext-all.lance",
    "build HuggingFaceFW/fineweb --config sample-10BT --block-size 2048 --max-rows 10000",
    "build 'data/*.jsonl' --text-column body --keep-columns n,lang --layout documents -o documents.lance",
    "build data --filter \"lang = 'en'\" --template 'Q: {{ title }}\\nA: {{ body }}' -o english.lance --dry-run",
    "build data --recursive --text-column body --block-size 1024 -o tokens",
    about=ABOUT,
    headings=HEADINGS,
)
@click.argument("source", nargs=-1, required=True, shell_complete=sources)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="Path or s3:// URI of the dataset; of a collection, its folder.  [default: SOURCE's name.lance; of a "
    "collection, its name-tokens]",
)
@_recipe_options
@click.option("--workers", type=click.IntRange(min=1), help="Shards built at once.  [default: number of cores]")
@click.option(
    "--engine",
    metavar="[local|spark]",
    default="local",
    help="Where shards are built: on this machine, or on the executors of a Spark cluster.  [default: local]",
)
@click.option(
    "--spark-master",
    metavar="URL",
    help="Spark master, such as spark://host:7077, yarn or local[4].  [default: local[*]]",
)
@click.option(
    "--spark-conf", metavar="KEY=VALUE", multiple=True, callback=pairs, help="Setting of Spark; may be repeated."
)
@click.option(
    "--recursive", is_flag=True, help="Build a dataset for each .jsonl file below the folder SOURCE, and a manifest."
)
@click.option("--append", is_flag=True, help="Add what is new in the source as a new version.")
@click.option("--overwrite", "--force", is_flag=True, help="Make a new version with the new content; old ones stay.")
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Leave a dataset that exists alone, whatever it was built from. In a collection, what is up to date is left "
    "alone in any case.",
)
@storage_option
@source_storage_option
@click.option(
    "--memory",
    metavar="SIZE",
    callback=_memory,
    help="Memory for comparing texts, such as 4GiB; what does not fit stays on the disk.  [default: 1GiB]",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and build nothing.")
@json_option
def build(
    source: tuple[str, ...],
    output: str | None,
    workers: int | None,
    engine: str,
    spark_master: str | None,
    spark_conf: dict[str, str] | None,
    recursive: bool,
    append: bool,
    overwrite: bool,
    skip_existing: bool,
    storage_options: dict[str, str] | None,
    source_storage_options: dict[str, str] | None,
    memory: int | None,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    overrides = {name: value for name, value in fields.items() if value is not None}
    from lance_prep.cli.summary import preview_text, summary
    from lance_prep.collection import is_collection, is_download
    from lance_prep.engine import RunOptions, preview_build, run_build
    from lance_prep.plan import default_output

    if output == "":
        raise click.UsageError("-o is empty; name a path, or remove the option")
    where_built = _engine(engine, spark_master, spark_conf, workers)
    if recursive or any(is_collection(name) or is_download(name) for name in source):
        if source_storage_options:
            raise click.UsageError("--source-storage-option has no effect on a collection: remove it")
        options = RunOptions(output, workers, append, overwrite, storage_options=storage_options, engine=where_built)
        options = replace(options, memory=memory)
        _build_many(source, options, overrides, recursive=recursive, dry_run=dry_run, as_json=as_json)
        return
    where = output or default_output(source)
    options = RunOptions(
        where,
        workers,
        append,
        overwrite,
        skip_existing,
        storage_options,
        engine=where_built,
        source_storage_options=source_storage_options,
        memory=memory,
    )
    recipe = load_recipe(source, overrides)
    refuse_unread(recipe, overrides)
    if dry_run:
        preview = preview_build(recipe, options, uri=options.uri(source))
        if as_json:
            print_json(preview.as_json())
        else:
            click.echo(printable(preview_text(preview, options)))
        if preview.error is not None:
            raise preview.error
        return
    with screen() as shown:
        report = run_build(recipe, replace(options, progress=Shown(shown)), uri=options.uri(source))
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(summary(report)))


def _engine(name: str, master: str | None, conf: dict[str, str] | None, workers: int | None) -> str | Engine:
    """Return the engine with its options, which other engines do not take."""
    from lance_prep.engine import SparkEngine

    given = [flag for flag, value in (("--spark-master", master), ("--spark-conf", conf)) if value]
    if name == "spark":
        return SparkEngine(master, conf, workers=workers)
    if given:
        raise click.UsageError(f"{given[0]} has no effect without --engine spark: add it, or remove the option")
    return name


def _build_many(
    source: tuple[str, ...],
    options: RunOptions,
    overrides: dict[str, Any],
    *,
    recursive: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from lance_prep.cli.many import build_many, preview_many

    if len(source) > 1:
        raise click.UsageError(f"a collection is one folder or recipe, got {len(source)} sources; build each by itself")
    if options.append:
        raise click.UsageError("--append has no effect on a collection: what is new is added without it; remove it")
    options = replace(options, refresh=not options.overwrite)
    act = preview_many if dry_run else build_many
    act(source[0], options, overrides, recursive=recursive, as_json=as_json)


class Shown:
    """Counts what a build has done, and shows how fast. Workers call it from their own threads."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._plan: Plan | None = None
        self._finished: set[int] = set()
        self._total = self._done = 0
        self._rows = self._tokens = self._text_bytes = 0
        self._compared = self._compared_bytes = 0
        screen.begin("planning")

    def compared(self, shard: int, rows: int, source_bytes: int) -> None:
        with self._lock:
            first = not self._compared
            self._compared += rows
            self._compared_bytes += source_bytes
            if first:
                self._screen.end("planning")
                self._screen.begin("compare")
        self._screen.show("compare", self._comparing, 0, None)

    def planned(self, plan: Plan, done: Sequence[int]) -> None:
        with self._lock:
            if self._compared:
                self._screen.end("compare")
                self._compared, self._started = 0, time.monotonic()
            self._plan = plan
            self._finished = set(done)
            # Only this run's shards: the time left is estimated from their speed.
            self._total = sum(shard.bytes for shard in plan.shards if shard.index not in self._finished)
        resumed = f", {len(done)} of them done by an earlier run" if done else ""
        self._screen.end("planning")
        self._screen.begin(
            "build", f"{counted(len(plan.files), 'file')} in {counted(len(plan.shards), 'shard')}{resumed}"
        )
        self._show()

    def advanced(self, shard: int, rows: int, tokens: int, source_bytes: int) -> None:
        with self._lock:
            self._rows += rows
            self._tokens += tokens
            self._text_bytes += source_bytes
        self._show()

    def finished(self, receipt: Receipt) -> None:
        with self._lock:
            if self._plan and receipt.shard not in self._finished:  # with max_rows, a shard may be built twice
                self._finished.add(receipt.shard)
                self._done += self._plan.shard(receipt.shard).bytes
        self._show()

    def warned(self, message: str) -> None:
        self._screen.say(f"warning: {as_options(message)}")

    def _show(self) -> None:
        shards = len(self._plan.shards) if self._plan else None
        self._screen.show("build", self._line, len(self._finished), shards)

    def _comparing(self) -> str:
        with self._lock:
            seconds = max(time.monotonic() - self._started, 1e-3)
            return f"comparing texts: {count(self._compared)} rows, {size(self._compared_bytes / seconds)}/s"

    def _line(self) -> str:
        """Return rows, tokens, MB/s, finished shards and the time left."""
        with self._lock:
            seconds = max(time.monotonic() - self._started, 1e-3)
            speed = f"{count(self._rows)} rows, {count(self._tokens)} tokens, {size(self._text_bytes / seconds)}/s"
            shards = f"shard {len(self._finished)}/{len(self._plan.shards) if self._plan else 0}"
            return f"{speed}, {shards}{left(seconds, self._done, self._total)}"
