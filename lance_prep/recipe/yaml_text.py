"""YAML to the fields of a recipe. Refuses what PyYAML accepts: names given twice or not text, aliases that explode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from lance_prep.errors import RecipeError, translating

#: Largest number of values in a recipe, with each alias counted as what it stands for. 10,000 sources have 120,000.
MOST_VALUES = 1_000_000

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"

# A recipe of 10,000 sources takes 0.9 CPU seconds this way, 1.3 with yaml.CSafeLoader and 3.0 with yaml.SafeLoader.
_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(Composer, SafeConstructor, Resolver):
    """Builds values from the events of libyaml, whose own composer crashes the interpreter on deep nesting."""

    def __init__(self, text: str) -> None:
        for base in (Composer, SafeConstructor, Resolver):
            base.__init__(self)
        self._events = yaml.parse(text, Loader=_PARSER)
        self._next: Any = None

    def peek_event(self) -> Any:
        self._next = self._next or next(self._events, None)
        return self._next

    def check_event(self, *kinds: Any) -> bool:
        return isinstance(self.peek_event(), kinds)

    def get_event(self) -> Any:
        event, self._next = self.peek_event(), None
        return event


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields of a recipe file.

    Raises:
        RecipeError: no such file, not UTF-8, or as `parse_yaml`.
    """
    if not path.is_file():
        raise RecipeError(f"no such recipe file: {path}", "name a .yaml file, or a built-in recipe")
    with translating(f"reading {path}"):
        data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Return the fields of a recipe.

    Args:
        where: name of the file, for messages.

    Raises:
        RecipeError: not valid YAML, or not a mapping; a name is given twice or is not text; aliases stand for too much.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _count(node, {}, where)
        fields = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}", "fix it") from error
    except ValueError as error:  # a date such as 2020-13-01, or a number of over 4,300 digits
        said = f"{where} holds a number or date that is not valid: {str(error).split(';')[0]}"
        raise RecipeError(said, "correct it, or put it in quotes if it is text") from error
    except RecursionError as error:
        raise RecipeError(f"{where} is nested too deep", "a collection has at most 6 levels") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{where} is not a mapping of fields", "write fields, such as `source: owner/name`")
    return fields


def _count(node: Any, counts: dict[int, int], where: str) -> int:
    """Return the number of values in a node. PyYAML shares the values of aliases; validation copies them.

    Args:
        counts: of the nodes seen so far, 0 while a node is being counted.
    """
    here = f"{where}, line {node.start_mark.line + 1}"
    if (known := counts.get(id(node))) is not None:
        if not known:
            raise RecipeError(f"{here}: an alias contains itself", "write the value out")
        return known
    counts[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
        inside = [each for pair in node.value for each in pair]
    else:
        inside = node.value if isinstance(node, yaml.SequenceNode) else []
    count = 1 + sum(_count(each, counts, where) for each in inside)
    if count > MOST_VALUES:
        raise RecipeError(f"{here}: holds over {MOST_VALUES:,} values", "use fewer aliases, or split the recipe")
    counts[id(node)] = count
    return count


def _check_keys(mapping: Any, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        here = f"{where}, line {key.start_mark.line + 1}"
        if key.tag == _MERGE:
            continue
        if key.tag != _TEXT:
            said = (
                f"{here}: the name {key.value} is not text"
                if isinstance(key, yaml.ScalarNode)
                else f"{here}: a name is not text"
            )
            raise RecipeError(said, "quote it: without quotes, YAML reads yes, no, on, off and numbers as other types")
        if key.value in lines:
            raise RecipeError(
                f"{here}: {key.value} is given twice, first in line {lines[key.value]}", "remove one of them"
            )
        lines[key.value] = key.start_mark.line + 1
