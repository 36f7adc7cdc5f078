"""`lance-prep build`."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import replace
from typing import Any

import click
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from lance_prep.cli.common import command, json_option, print_json, printable, storage_option
from lance_prep.formats import COMPRESSIONS, registered
from lance_prep.layouts import LAYOUTS
from lance_prep.recipe import Recipe, builtin_recipes, load_recipe

EXAMPLES = f"""\b
SOURCE is a built-in recipe ({", ".join(builtin_recipes())}), a recipe .yaml, a Hub id
owner/name, an hf://, s3:// or https:// URL, or local files, folders and globs
({" ".join(extension for each in registered() for extension in each.extensions)}).
JSON, CSV and text may be compressed ({" ".join(COMPRESSIONS)}).
Several files, folders and globs are read in order, as one source.

\b
Examples:
  lance-prep build sample
  lance-prep build wikitext                     (the first 500,000 lines)
  lance-prep build wikitext --max-rows all -o wikitext-all.lance
  lance-prep build HuggingFaceFW/fineweb --config sample-10BT --layout blocks --block-size 2048
  lance-prep build logs/*.jsonl.zst --text-column message --keep-columns id,time --layout documents
  lance-prep build data.parquet --filter "lang = 'en'" --tokenizer ./tokenizer.json -o en.lance
  lance-prep build qa.jsonl --template "Q: {{{{ question }}}}\\nA: {{{{ answer }}}}"
  lance-prep build my-recipe.yaml --dry-run
"""


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
    if name == "keep_columns":
        return click.option(flag, metavar="A,B,...", callback=_split, default=None, help=description)
    if bool in kinds:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=description + shown)
    choices = [value for kind in kinds for value in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal]
    choices = list(LAYOUTS) if name == "layout" else choices
    if choices:
        return click.option(flag, type=click.Choice(choices), default=None, help=description + shown)
    # A field that parses text itself ("128MiB", "all") is handed the text.
    number = int in kinds and not any(isinstance(each, BeforeValidator) for each in field.metadata)
    return click.option(flag, type=int if number else str, default=None, help=description + shown)


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


@command(EXAMPLES)
@click.argument("source", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="PATH", help="Path or s3:// URI of the dataset.  [default: SOURCE's name.lance]"
)
@_recipe_options
@click.option("--workers", type=click.IntRange(min=1), help="Shards built at once.  [default: number of cores]")
@click.option("--append", is_flag=True, help="Add what is new in the source as a new version.")
@click.option("--overwrite", "--force", is_flag=True, help="Make a new version with the new content; old ones stay.")
@click.option("--skip-existing", is_flag=True, help="Leave a dataset that exists alone, whatever it was built from.")
@storage_option
@click.option("--dry-run", is_flag=True, help="Print the plan and build nothing.")
@json_option
def build(
    source: tuple[str, ...],
    output: str | None,
    workers: int | None,
    append: bool,
    overwrite: bool,
    skip_existing: bool,
    storage_options: dict[str, str] | None,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    overrides = {name: value for name, value in fields.items() if value is not None}
    from lance_prep.cli.progress import make_progress
    from lance_prep.cli.summary import preview_text, summary
    from lance_prep.engine import RunOptions, Silent, preview_build, run_build
    from lance_prep.plan import default_output

    where = output or default_output(source)
    options = RunOptions(where, workers, append, overwrite, skip_existing, storage_options, Silent())
    recipe = load_recipe(source, overrides)
    if dry_run:
        preview = preview_build(recipe, options, uri=options.uri(source))
        if as_json:
            print_json(preview.as_json())
        else:
            click.echo(printable(preview_text(preview, options)))
        if preview.error is not None:
            raise preview.error
        return
    with make_progress() as progress:
        report = run_build(recipe, replace(options, progress=progress), uri=options.uri(source))
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(printable(summary(report)))
