"""Options, messages and number formats that commands share."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import click

from lance_prep.cli.completion import paths, tags
from lance_prep.cli.terminal import width

if TYPE_CHECKING:
    from lance_prep.dataset import Verification

#: Characters that reorder the text around them, which can make a message read as something else.
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


#: Parameters of library functions that are options of commands, in addition to the fields of a recipe.
_PARAMETERS = (
    "append",
    "by",
    "column",
    "create_pr",
    "dtype",
    "engine",
    "eos_id",
    "force",
    "format",
    "mask_boundaries",
    "max_seq_length",
    "memory",
    "output",
    "overwrite",
    "path_in_repo",
    "private",
    "skip_existing",
    "skip_special_tokens",
    "splits",
    "storage_options",
    "tables",
    "tag",
    "source_storage_options",
    "version",
    "workers",
)


class GroupedCommand(click.Command):
    """A command whose options are listed under headings; those that no heading names come last.

    Attributes:
        headings: heading -> names of parameters.
    """

    headings: Mapping[str, Sequence[str]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = {name: heading for heading, names in self.headings.items() for name in names}
        rest = "Other" if self.headings else "Options"
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*self.headings, rest)}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups[named.get(param.name or "", rest)].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def command(
    *examples: str, about: str = "", headings: Mapping[str, Sequence[str]] | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command that takes `--debug`.

    Its help is its line in `main.COMMANDS`, then `about`, the options and the examples.

    Args:
        examples: command lines, without `lance-prep`. Tests run those that do not need the Hub.
        about: what the line does not say, as paragraphs.
        headings: heading -> names of the parameters that its help lists under it.
    """

    def make(function: Callable[..., Any]) -> click.Command:
        made = click.command(cls=GroupedCommand, help=about, epilog=examples_text(examples))(function)
        made.headings = headings or {}
        made.params.append(DEBUG)
        return made

    return make


def examples_text(examples: Iterable[str]) -> str:
    """Return the end of a help text. click wraps lines unless their paragraph starts with `\\b`."""
    return "\n".join(["\b", "Examples:", *(f"  lance-prep {example}" for example in examples)])


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(dict)["debug"] = True


DEBUG = click.Option(
    ["--debug"], is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
)


def json_option(function: Any) -> Any:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, for machines.")(function)


def storage_option(function: Any, of: str = "", help: str = "Option for an object store; may be repeated.") -> Any:
    """`--storage-option KEY=VALUE`, as a dict or None; or `--<of>-storage-option`."""
    flag = f"--{of}-storage-option" if of else "--storage-option"
    name = flag[2:].replace("-", "_") + "s"
    return click.option(flag, name, metavar="KEY=VALUE", multiple=True, callback=pairs, help=help)(function)


def source_storage_option(function: Any) -> Any:
    """`--source-storage-option KEY=VALUE`, as a dict or None."""
    return storage_option(function, "source", "Option for the object store of SOURCE, if it is not the output's.")


def check_storage_options(storage_options: dict[str, str] | None, *places: str) -> None:
    """Refuse `--storage-option` if none of the places would use it."""
    if storage_options and not any("://" in place for place in places):
        raise click.UsageError(f"--storage-option has no effect: {places[0]} is not in an object store; remove it")


def dataset_argument(function: Any) -> Any:
    """DATASET and `--storage-option`, which is refused if nothing would use it."""

    @wraps(function)
    def checked(*args: Any, uri: str, storage_options: dict[str, str] | None, **options: Any) -> Any:
        if not options.get("against_source"):
            check_storage_options(storage_options, uri, *(options.get("tables") or {}).values())
        return function(*args, uri=uri, storage_options=storage_options, **options)

    return click.argument("uri", metavar="DATASET", shell_complete=paths)(storage_option(checked))


def dataset_options(function: Any) -> Any:
    """DATASET, `--version` and `--storage-option`."""
    version = click.option(
        "--version", metavar="N|TAG", shell_complete=tags, help="Version or tag.  [default: the latest]"
    )
    return dataset_argument(version(function))


_VALUE = r"=(?:'[^']*'|[\w./:-]*\w)?"


@cache
def _parameters() -> re.Pattern[str]:
    from lance_prep.recipe import Recipe

    names = {*Recipe.model_fields, *_PARAMETERS} - {"source"}
    name = "|".join(sorted(names, key=len, reverse=True))
    quoted = r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\""
    return re.compile(rf"`(?P<marked>{name})`|{quoted}|(?<![\w.-])(?P<name>{name})(?![\w-]|\.\w)(?P<value>{_VALUE})?")


def as_options(message: str, keep: Container[str] = ()) -> str:
    """Rewrite the fields and parameters that a library message names as options of the command line.

    `text_column` becomes `--text-column`, `overwrite=True` `--overwrite`, `shuffle=False` `--no-shuffle`, and
    `layout='raw'` `--layout 'raw'`. A name of one word may be an ordinary word: it is rewritten only in backticks, or
    at the start of a message before `:`, a quote or `has no effect`. Quoted text is kept.

    Args:
        keep: names that are not rewritten.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["marked"] or match["name"], match["value"]
        named = not match.start() and re.match(r":| '| has no effect", message[match.end() :])
        if name is None or name in keep or (not match["marked"] and value is None and "_" not in name and not named):
            return match[0]
        flag = {"output": "-o", "tables": "--with"}.get(name, "--" + name.replace("_", "-"))
        flag = flag.removesuffix("s") if name.endswith("storage_options") else flag
        if value == "=False":
            return f"--no-{flag[2:]}"
        return flag if value in (None, "=", "=True") else f"{flag} {value[1:]}"

    return _parameters().sub(option, message)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Return the text with control characters escaped, except newline and tab.

    A source's text must not be able to move the cursor, recolour or rename the terminal.
    """
    return re.sub(r"[^\n\t\x20-\x7e]", lambda match: _escaped(match[0]), text)


def printable_json(text: str) -> str:
    """Return the same JSON, with control characters in its strings escaped as JSON does."""
    return re.sub(r"[^\n\x20-\x7e]", lambda at: json.dumps(at[0])[1:-1] if _is_control(at[0]) else at[0], text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI


def _escaped(character: str) -> str:
    if _is_control(character):
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


def pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str] | None:
    """Return the values of an option, each `KEY=VALUE`, as a dict, or None if the option is not given."""
    for pair in value:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
    return dict(pair.split("=", 1) for pair in value) or None


def count(number: float) -> str:
    """Format a count: 1,234 or 1.23 M."""
    number = round(number)
    if number < 100_000:
        return f"{number:,}"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def span(seconds: float) -> str:
    """Format a duration: 1.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def columns(rows: Sequence[Sequence[str]], *, numbers: int | None = None) -> str:
    """Format rows of equal length as columns.

    Args:
        numbers: first column that is aligned to the right, as numbers are; None for no such column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = len(widths) if numbers is None else numbers
    lines = (
        "  ".join(
            f"{cell:>{width}}" if at >= right else f"{cell:<{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def table(rows: list[tuple[str, str]], indent: str = "") -> str:
    """Format two columns, the first as wide as its widest entry. On a terminal, values are wrapped to its width."""
    widest = max((len(name) for name, _ in rows), default=0)
    room = width()
    lines = []
    for name, value in rows:
        label = f"{indent}{name:<{widest}}  "
        if room is not None and room < 2 * len(label):  # values would be narrow columns of words
            lines.append(indent + name)
            label = f"{indent}  "
        lines += wrapped(label, value, room)
    return "\n".join(lines)


def wrapped(label: str, value: str, room: int | None) -> list[str]:
    """Return a value behind its label, in lines of at most `room` columns. A path is never split."""
    lines: list[str] = []
    for line in value.split("\n"):
        if room is None or len(label) + len(line) <= room:
            lines.append(line)
            continue
        space = max(room - len(label), 20)
        lines += textwrap.wrap(line, space, break_long_words=False, break_on_hyphens=False)
    return [(label if i == 0 else " " * len(label)) + line for i, line in enumerate(lines)]


def verdict(found: Verification) -> str:
    """Return the last line of a check: whether all is well, and what was checked."""
    checked = ", ".join(f"{number:,} {what}" for what, number in found.checks.items())
    number = len(found.problems) + found.more
    said = "whole" if found.ok else "1 problem" if number == 1 else f"{number:,} problems"
    return f"{said}: {checked or 'not opened'}"
