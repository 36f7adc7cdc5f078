"""Write the reference pages of the documentation: the command line, the recipe, and the index of the Python API.

    python docs/generate.py

Run it after a change to a command, an option, a field of the recipe, or an exported name. `tests/test_docs.py` fails if
a committed page differs from what this script writes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py; do not edit. -->\n"

#: Modules of the public API, and what their section says before the list of names.
MODULES = {
    "lance_prep": "Build, inspect and verify datasets. It does not import torch.",
    "lance_prep.train": "Read datasets as tensors. Install it with `pip install 'lance-prep[train]'`.",
    "lance_prep.spark": "Write Spark DataFrames to Lance and to the Hub. Install it with `pip install "
    "'lance-prep[spark]'`.",
}


def escaped(text: str) -> str:
    """Escape the characters that Markdown and HTML treat as markup, outside of `code`."""
    parts = re.split(r"(`[^`\n]+`)", text)
    plain = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in parts[::2]]
    return "".join(text for pair in zip(plain, [*parts[1::2], ""], strict=True) for text in pair)


def paragraphs(text: str) -> str:
    """Return a help text as Markdown: one line per paragraph, without the marks that click reads."""
    return "\n\n".join(escaped(" ".join(part.split())) for part in text.split("\n\n") if part.strip() != "\b")


def command_page() -> str:
    """Return the reference of the command line."""
    from lance_prep.cli.main import STAGES, cli

    context = click.Context(cli, info_name="lance-prep")
    lines = [MADE, "# Command line", "", paragraphs(cli.help or ""), ""]
    lines += [
        "Data and summaries are printed to stdout, progress and messages to stderr. The exit code is 0 for success, "
        "1 for an error, and 2 for wrong usage. An error is two lines: what is wrong, and what to do about it.",
        "",
        "<!-- The examples of each command are run by tests/test_cli.py. -->",
        "",
    ]
    for stage, names in STAGES.items():
        lines += [f"## {stage}", ""]
        for name in names:
            lines += command_section(name, cli.get_command(context, name), context)
    return "\n".join(lines).rstrip() + "\n"


def command_section(name: str, command: click.Command | None, parent: click.Context) -> Iterator[str]:
    """Yield the lines about one command: usage, help, options under their headings, examples."""
    assert command is not None, f"the command {name!r} has a heading, but does not exist"
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(["lance-prep", name, *command.collect_usage_pieces(context)])
    yield from (f"### {name}", "", f"`{usage}`", "", paragraphs(command.help or ""), "")
    headings = {field: heading for heading, fields in getattr(command, "headings", {}).items() for field in fields}
    rest = "Other" if headings else ""
    groups: dict[str, list[click.Option]] = {heading: [] for heading in (*dict.fromkeys(headings.values()), rest)}
    for option in command.get_params(context):
        if isinstance(option, click.Option) and not option.hidden and option.name != "help":
            groups[headings.get(option.name or "", rest)].append(option)
    for heading, options in groups.items():
        if options and heading:
            yield from (f"**{heading}**", "")
        for option in options:
            flags, text = option.get_help_record(context) or ("", "")
            yield from (f"`{flags}`", f":   {escaped(' '.join(text.split()))}", "")
    examples = inspect.cleandoc((command.epilog or "").partition("Examples:")[2])
    yield from ("```console", *(f"$ {line.strip()}" for line in examples.splitlines()), "```", "")


def recipe_page() -> str:
    """Return the reference of the recipe's fields."""
    from lance_prep.recipe import Recipe

    lines = [
        MADE,
        "# Recipe fields",
        "",
        "A recipe is a YAML file of these fields, or `lance_prep.Recipe`. `build` takes each field as a keyword, and "
        "the command line as an option of the same name with dashes. Fields that are not named here are refused.",
        "",
    ]
    properties = Recipe.model_json_schema()["properties"]
    for name, field in Recipe.model_fields.items():
        text = " ".join((field.description or "").split())
        described, _, default = text.removesuffix("]").partition(" [default: ")
        if not default and not field.is_required() and field.default not in (None, ()):
            default = {True: "true", False: "false"}.get(field.default, str(field.default))
        ends = f" Default: {escaped(default)}." if default else " Required." if field.is_required() else ""
        kind = kind_of(properties[name])
        lines += [f"`{name}` ({kind})", f":   {escaped(described[:1].upper() + described[1:])}.{ends}", ""]
    return "\n".join(lines).rstrip() + "\n"


def kind_of(schema: dict[str, object]) -> str:
    """Return the type of a field in words, from its JSON Schema."""
    if "anyOf" in schema:
        kinds = [kind_of(choice) for choice in schema["anyOf"] if choice != {"type": "null"}]  # type: ignore[attr-defined]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])  # type: ignore[attr-defined]
    if "const" in schema:
        return f"`{schema['const']}`"
    words = {"string": "text", "boolean": "true or false", "array": "list", "number": "number", "integer": "integer"}
    return words.get(str(schema.get("type")), "value")


def api_page() -> str:
    """Return the page of the Python API: a table of names per module, and the places where mkdocstrings fills in."""
    lines = [MADE, "# Python API", "", "Names that are not listed here may change without notice.", ""]
    for module, about in MODULES.items():
        try:
            package = import_module(module)
        except ModuleNotFoundError:
            continue
        names = [name for name in package.__all__ if not name.startswith("_")]
        lines += [f"## {module}", "", about, "", "| name | purpose |", "|---|---|"]
        lines += [f"| [`{name}`][{module}.{name}] | {purpose(getattr(package, name))} |" for name in names]
        lines += [""]
        for name in names:
            lines += [f"::: {module}.{name}"]
            lines += ["    options: {members: false}"] if module + name == "lance_prepRecipe" else []
            lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def purpose(value: object) -> str:
    """Return the first sentence of a docstring."""
    return escaped(" ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()))


PAGES = {"cli.md": command_page, "recipe.md": recipe_page, "api.md": api_page}


def main() -> None:
    """Write all pages, and name those that changed."""
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
