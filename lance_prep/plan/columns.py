"""Which columns a recipe reads and which it delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from lance_prep.errors import ColumnNotFound, UsageError
from lance_prep.plan.where import compile_where, describe
from lance_prep.recipe import Recipe


@dataclass(frozen=True)
class Columns:
    """What is read and what comes of it.

    Attributes:
        recipe: with `column` as resolved (None with a template, and for layout `raw`).
        read: schema of the columns to read, in the source's order: delivered, filtered by, or used in the template.
        out: schema of what is delivered, as `Plan.schema`.
    """

    recipe: Recipe
    read: pa.Schema
    out: pa.Schema


def resolve_columns(recipe: Recipe, schema: pa.Schema) -> Columns:
    """Find the text column and check every other that is named.

    Args:
        schema: of all columns of the source.

    Raises:
        ColumnNotFound: no such column, or no text column to be found; lists the columns with their types.
        UsageError: a filter or template that is none.
    """
    for name in (*recipe.columns, *([recipe.column] if recipe.column else [])):
        _require(name, schema, "")
    filtered = compile_where(recipe.filter, schema).columns if recipe.filter else ()
    if recipe.layout == "raw":
        named = {*recipe.columns, *([recipe.column] if recipe.column else [])}
        out = pa.schema([f for f in schema if f.name in named]) if recipe.columns else schema
        return Columns(recipe, _subset(schema, [*out.names, *filtered]), out)
    if recipe.template is not None:
        names = template_columns(recipe.template)
        for name in names:
            _require(name, schema, "the template uses it: ")
        text, read = "text", [*names, *recipe.columns, *filtered]
        if text in recipe.columns:
            raise UsageError(
                "the template's column is called text, and --columns keeps another of that name", "leave it out"
            )
    else:
        text = recipe.column or _text_column(schema)
        _require_text(schema.field(text), schema)
        recipe = recipe.model_copy(update={"column": text})
        read = [text, *recipe.columns, *filtered]
    kept = [schema.field(name) for name in dict.fromkeys(recipe.columns) if name != text or recipe.template]
    out = pa.schema([pa.field(text, pa.large_string()), *kept])
    return Columns(recipe, _subset(schema, read), out)


def _subset(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([f for f in schema if f.name in names])


def _require(name: str, schema: pa.Schema, why: str) -> None:
    if name not in schema.names:
        raise ColumnNotFound(f"{why}no column {name!r} in the source", f"there are {describe(schema)}")


def _require_text(field: pa.Field, schema: pa.Schema) -> None:
    kind = field.type
    if not (is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        said = f"column {field.name!r} is {kind}, not text"
        raise ColumnNotFound(said, f"name another with --column, or make the text with --template: {describe(schema)}")


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _text_column(schema: pa.Schema) -> str:
    if "text" in schema.names:
        return "text"
    strings = [str(f.name) for f in schema if is_text(f.type)]
    if len(strings) == 1:
        return strings[0]
    found = "several columns hold text" if strings else "no column holds text"
    raise ColumnNotFound(f"no column 'text' in the source, and {found}", f"name it with --column: {describe(schema)}")


def template_columns(template: str) -> list[str]:
    """The columns that a jinja2 template names, sorted.

    Raises:
        UsageError: not a template; says where.
    """
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return sorted(meta.find_undeclared_variables(SandboxedEnvironment().parse(template)))
    except TemplateSyntaxError as error:
        raise UsageError(
            f"the template is not jinja2: {error.message} (line {error.lineno})", "such as '{{ title }}'"
        ) from error
