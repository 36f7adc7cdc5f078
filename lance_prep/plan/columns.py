"""Which columns a recipe reads and which it delivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lance_prep.errors import ColumnNotFound, UsageError
from lance_prep.filter import compile_where, describe
from lance_prep.formats import LENGTH_COLUMNS, delivered_type
from lance_prep.layouts import LAYOUTS
from lance_prep.loss_mask import MASK_COLUMN
from lance_prep.plan.template import template_columns
from lance_prep.recipe import TOOLS_COLUMN, Recipe

#: Columns that are written for every row, by all layouts but `raw`.
ROW_COLUMNS = ("input_ids", "num_tokens", "doc_id")

# 20,000 rows of JSON with a key of their own each make 400 million values, nearly all of them null.
_MOST_KEPT = 10_000

_TYPES = pa.types
# What Lance's file format 2.1 refuses, or panics at, by how it is called in messages.
_UNWRITABLE: dict[str, Callable[[pa.DataType], bool]] = {
    "maps": _TYPES.is_map,
    "unions": _TYPES.is_union,
    "intervals": _TYPES.is_interval,
    "list views": lambda kind: _TYPES.is_list_view(kind) or _TYPES.is_large_list_view(kind),
    "decimals of 32 or 64 bits": lambda kind: _TYPES.is_decimal32(kind) or _TYPES.is_decimal64(kind),
    "run-end encoded columns": _TYPES.is_run_end_encoded,
    "structs without fields": lambda kind: _TYPES.is_struct(kind) and kind.num_fields == 0,
    "binary values of 0 bytes": lambda kind: _TYPES.is_fixed_size_binary(kind) and kind.byte_width == 0,
    "fixed-size lists but of numbers": lambda kind: (
        _TYPES.is_fixed_size_list(kind) and (kind.list_size == 0 or not _is_number(kind.value_type))
    ),
}


@dataclass(frozen=True)
class Columns:
    """The columns to read and to deliver.

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
        UsageError: invalid filter or template, two columns of a name, or a column that cannot be written.
    """
    for name in (*recipe.keep_columns, *([recipe.text_column] if recipe.text_column else [])):
        _require(name, schema)
    filtered = compile_where(recipe.filter, schema).columns if recipe.filter is not None else ()
    label = _label(recipe, schema)
    if not LAYOUTS[recipe.layout].tokens:
        out = _subset(schema, recipe.keep_columns) if recipe.keep_columns else schema
        if not out.names:
            raise ColumnNotFound("the source has no columns", "name a source with something in it")
        if len(out.names) > _MOST_KEPT:
            said = f"the source has {len(out.names):,} columns, and layout 'raw' keeps at most {_MOST_KEPT:,}"
            raise UsageError(said, f"name columns with keep_columns: {describe(schema)}")
        for name in out.names:
            _require_one(name, schema)
        _check_written(out, "name the other columns with keep_columns")
        return Columns(recipe, _subset(schema, [*out.names, *filtered]), out)
    if recipe.ids_column is not None:
        return _id_columns(recipe, schema, filtered)
    if recipe.makes_text:
        names = template_columns(recipe.template, schema) if recipe.template else _chat_columns(recipe, schema)
        if not names:
            raise UsageError(
                f"the template {recipe.template!r} uses no column, so that every text would be the same",
                f"such as '{{{{ {_example(schema)} }}}}'; there are {describe(schema)}",
            )
        for name in names:
            _require_one(name, schema)
        text, read = "text", [*names, *recipe.keep_columns, *filtered, *label]
        if text in recipe.keep_columns:
            maker = "the template" if recipe.template else "messages"
            raise UsageError(f"{maker} makes a column 'text', and keep_columns names another of that name", "remove it")
    else:
        text = recipe.text_column or _text_column(schema)
        _require_one(text, schema)
        _require_text(schema.field(text), schema)
        recipe = recipe.model_copy(update={"text_column": text})
        read = [text, *recipe.keep_columns, *filtered, *label]
    kept = _kept_columns(recipe, schema, "" if recipe.makes_text else text)
    more = [schema.field(name) for name in label if name not in recipe.keep_columns]
    out = pa.schema([pa.field(text, pa.large_string()), *kept, *more])
    return Columns(recipe, _subset(schema, read), out)


def _kept_columns(recipe: Recipe, schema: pa.Schema, but: str) -> list[pa.Field]:
    """Return the columns to keep beside the one named `but`.

    Raises:
        UsageError: one cannot be written.
    """
    kept = [schema.field(name) for name in dict.fromkeys(recipe.keep_columns) if name != but]
    for field in kept:
        if field.name in ROW_COLUMNS or (recipe.messages is not None and field.name == MASK_COLUMN):
            said = f"keep_columns keeps {field.name!r}, and lance-prep writes a column of that name itself"
            raise UsageError(said, "leave it out, or rename it in the source; layout 'raw' keeps any name")
    _check_written(kept, "remove it from keep_columns, or rename it in the source")
    return kept


def _id_columns(recipe: Recipe, schema: pa.Schema, filtered: Iterable[str]) -> Columns:
    """Return the column of ids, and what says which of a row's ids are padding, if rows become blocks as they are."""
    name = str(recipe.ids_column)
    _require(name, schema)
    kind = delivered_type(schema.field(name).type)
    if kind is None:
        said = f"column {name!r} is {schema.field(name).type}, and not lists of token ids"
        raise ColumnNotFound(said, f"choose another ids_column: {describe(schema)}")
    kept, beside = _kept_columns(recipe, schema, name), []
    read = [name, *recipe.keep_columns, *filtered, *(each for each in LENGTH_COLUMNS if each in schema.names)]
    if recipe.packing != "rows" and "seq_lengths" in schema.names:
        said = "the source has a column seq_lengths, so its rows hold several documents"
        raise UsageError(said, "use layout='blocks' with packing='rows', and the length of its rows as block_size")
    if recipe.packing == "rows":
        beside = [pa.field("seq_lengths", pa.large_list(pa.uint32()))]
    return Columns(recipe, _subset(schema, read), pa.schema([pa.field(name, kind), *beside, *kept]))


def _label(recipe: Recipe, schema: pa.Schema) -> tuple[str, ...]:
    """Return the column with the language, if there is one."""
    name = recipe.language_column
    if name is None:
        return ()
    _require(name, schema)
    if not is_text(schema.field(name).type) or name == recipe.text_column:
        kind = schema.field(name).type
        said = f"language_column {name!r} is {'the text itself' if is_text(kind) else f'{kind}, not text'}"
        raise UsageError(said, f"name a column with codes of languages: {describe(schema)}")
    return (name,)


def _chat_columns(recipe: Recipe, schema: pa.Schema) -> list[str]:
    """Return the columns that conversations are made of."""
    names = list(recipe.messages or ())
    for name in names:
        _require(name, schema)
    return [*names, *([TOOLS_COLUMN] if TOOLS_COLUMN in schema.names and TOOLS_COLUMN not in names else [])]


def _subset(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([f for f in schema if f.name in names])


def _require(name: str, schema: pa.Schema) -> None:
    if name not in schema.names:
        raise ColumnNotFound(
            f"no column {name!r} in the source", f"use one of the source's columns: {describe(schema)}"
        )
    _require_one(name, schema)


def _require_one(name: str, schema: pa.Schema) -> None:
    if (count := schema.names.count(name)) > 1:
        raise UsageError(f"the source has {count} columns named {name!r}", "rename all but one in the source")


def _check_written(fields: Iterable[pa.Field], advice: str) -> None:
    """Refuse what Lance cannot hold.

    Raises:
        UsageError: names the column.
    """
    for field in fields:
        if not field.name:
            raise UsageError("a column of the source has no name (''), and Lance needs one", advice)
        if "." in field.name:
            said = f"column {field.name!r} has a dot in its name, which Lance takes for a field of a struct"
            raise UsageError(said, advice)
        if (bad := _unwritable(field.type)) is not None:
            raise UsageError(f"column {field.name!r} is {field.type}, and Lance files hold no {bad}", advice)


def _unwritable(kind: pa.DataType) -> str | None:
    """Return which kind of type, `kind` or one inside it, Lance's file format 2.1 cannot hold; None if it holds all."""
    for said, test in _UNWRITABLE.items():
        if test(kind):
            return said
    inside = (_unwritable(kind.field(i).type) for i in range(kind.num_fields))
    return next((said for said in inside if said is not None), None)


def _is_number(kind: pa.DataType) -> bool:
    """Return True for a type that a fixed-size list may hold, which includes further such lists."""
    tests = (_TYPES.is_primitive, _TYPES.is_decimal, _TYPES.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _example(schema: pa.Schema) -> str:
    return next((str(name) for name in schema.names if name.isidentifier()), "title")


def _require_text(field: pa.Field, schema: pa.Schema) -> None:
    kind = field.type
    if not (is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        said = f"column {field.name!r} is {kind}, not text"
        raise ColumnNotFound(said, f"choose another text_column, or use `template`: {describe(schema)}")


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _text_column(schema: pa.Schema) -> str:
    if "text" in schema.names:
        return "text"
    strings = [str(f.name) for f in schema if is_text(f.type)]
    if len(strings) == 1:
        return strings[0]
    found = "several columns hold text" if strings else "no column holds text"
    raise ColumnNotFound(
        f"no column 'text' in the source, and {found}", f"choose one with text_column: {describe(schema)}"
    )
