"""Options that commands share."""

from __future__ import annotations

from typing import Any

import click


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str] | None:
    for pair in value:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
    return dict(pair.split("=", 1) for pair in value) or None


def json_option(function: Any) -> Any:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, for machines.")(function)


def storage_option(function: Any) -> Any:
    """`--storage-option KEY=VALUE`, as a dict or None."""
    return click.option(
        "--storage-option",
        "storage_options",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_pairs,
        help="For object stores; may be repeated.",
    )(function)


def dataset_options(function: Any) -> Any:
    """DATASET, `--version` and `--storage-option`."""
    function = storage_option(function)
    function = click.option("--version", metavar="N|TAG", help="Version or tag.  [default: the latest]")(function)
    return click.argument("uri", metavar="DATASET")(function)
