"""Completes the words of a command line in the shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def sources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a built-in recipe, or a path."""
    from click.shell_completion import CompletionItem

    from lance_prep.recipe import builtin_collections, builtin_recipes

    names = [*builtin_recipes(), *builtin_collections()]
    found = [CompletionItem(name) for name in names if incomplete and name.startswith(incomplete)]
    return found or [*map(CompletionItem, names if not incomplete else ()), *paths(ctx, param, incomplete)]


def tags(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a tag of the dataset that is already in the command line.

    The names of Lance's files are read, since importing Lance takes over a second. The words are the shell's: click has
    parsed none of them if the last is an option without its value.
    """
    from click.shell_completion import CompletionItem
    from click.shell_completion import split_arg_string as words

    folders = [Path(word) / "_refs" / "tags" for word in words(os.environ.get("COMP_WORDS", ""))]
    names = sorted(file.stem for folder in folders for file in folder.glob("*.json"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def datasets_or_tags(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a tag of the dataset that is already in the command line, or a path."""
    return tags(ctx, param, incomplete) or paths(ctx, param, incomplete)
