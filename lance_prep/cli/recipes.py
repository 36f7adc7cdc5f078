"""`lance-prep recipes`: list the built-in recipes, or print one to copy and edit."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lance_prep.cli.common import command, json_option, print_json, table
from lance_prep.cli.completion import sources

if TYPE_CHECKING:
    from lance_prep.collection import CatalogEntry


@command(
    "recipes",
    "recipes distillation",
    "recipes --schema",
    about="""Without NAME, lists the built-in recipes: single datasets, for `lance-prep build`, and collections of
sources, for `lance-prep download` and `lance-prep build`.

With NAME, prints the recipe as YAML. To change a recipe, print it into a .yaml file, edit the file, and give its path
where a built-in name is taken.""",
)
@click.argument("name", required=False, shell_complete=sources)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a collection recipe, for editors.")
@json_option
def recipes(name: str | None, schema: bool, as_json: bool) -> None:
    if schema and name is not None:
        raise click.UsageError("--schema cannot be combined with NAME: it describes all collection recipes")
    from lance_prep.collection import collection_schema, list_recipes, load_collection, recipe_text
    from lance_prep.recipe import builtin_recipes, load_recipe

    if schema:
        click.echo(json.dumps(collection_schema(), indent=2))
    elif name is None:
        entries = list_recipes()
        if as_json:
            print_json([asdict(entry) for entry in entries])
        else:
            click.echo("\n".join(map(_entry_text, entries)))
    elif as_json:
        text = recipe_text(name)  # refuses an unknown name
        loaded = load_recipe(name) if name in builtin_recipes() else load_collection(name)
        print_json({"name": name, "yaml": text, "recipe": loaded.model_dump(mode="json")})
    else:
        click.echo(recipe_text(name), nl=False)


def _entry_text(entry: CatalogEntry) -> str:
    what = f"collection of {entry.sources} sources" if entry.kind == "collection" else "dataset"
    rows = [("kind", what), ("about", entry.description), ("license", _license(entry))]
    if entry.gated:
        rows.append(("gated", f"{', '.join(entry.gated)}: request access on the Hub"))
    return f"{entry.name}\n{table(rows, indent='  ')}"


def _license(entry: CatalogEntry) -> str:
    if entry.kind == "collection":
        return f"of each source, see `lance-prep recipes {entry.name}`"
    return entry.licenses[entry.name]
