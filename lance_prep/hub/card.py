"""The dataset card: what a pushed dataset is, how it was built, and how to open it.

Of a card that exists, only two things change: the keys of its YAML that are made here (`configs`, `size_categories`,
and missing tags), and the part between the markers of the same dataset. All else stays byte for byte, comments too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_prep.errors import RecipeError, UsageError, counted
from lance_prep.hub.contents import PushedDataset
from lance_prep.layouts import LAYOUTS, PATH_FIELDS
from lance_prep.ledger import Ledger
from lance_prep.recipe import Recipe, parse_yaml
from lance_prep.store import DatasetVersion, FileRecord

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_TAGS = ("lance", "lance-prep")
#: The Hub's names for numbers of rows of up to 3, 4, ... 13 digits.
_SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"]
_SIZES += ["10B<n<100B", "100B<n<1T", "n>1T"]
_FRONT = re.compile(r"\A---\r?\n(.*?)^---[ \t]*\r?\n?", re.DOTALL | re.MULTILINE)
_MANIFESTS = "/_versions/*.manifest"
#: Source files that the card names.
_MOST_FILES = 10


@dataclass(frozen=True)
class Licensed:
    """What the source's card on the Hub says of its license.

    Attributes:
        repo: the source.
        license: as its card says; None if it does not.
    """

    repo: str
    license: str | None


def update_card(
    card: str | None, name: str, datasets: Sequence[PushedDataset], licenses: Sequence[Licensed] = ()
) -> str:
    """Return the card of a repository with what is said of these datasets brought up to date.

    Args:
        card: the current text of the card; None for a repository without a card.
        name: of the repository.
        datasets: of this push.
        licenses: of their sources.

    Raises:
        UsageError: the YAML of the card is invalid, a marker is missing, or a config of the card has other files.
    """
    old = card or f"# {name.rpartition('/')[2]}\n"
    front = _FRONT.match(old)
    text, body = (front[1], old[front.end() :]) if front else ("", old)
    # The two lines of dashes keep the line ends that they have.
    opens, closes = (old[: front.start(1)], old[front.end(1) : front.end()]) if front else ("---\n", "---\n")
    closes = closes if closes.endswith("\n") else f"{closes}\n"
    part = _render(name, datasets, licenses)
    return f"{opens}{_update_front(text, datasets)}{closes}{_update_body(body, _key(datasets), part)}"


def _key(datasets: Sequence[PushedDataset]) -> str:
    """Return what the markers of a part name: the path of the dataset, or of the collection's folder."""
    first = datasets[0].path
    return first if len({one.config for one in datasets}) == 1 else first.rpartition("/")[0]


def _update_body(body: str, key: str, part: str) -> str:
    begin, end = f"<!-- lance-prep: begin {key} -->", f"<!-- lance-prep: end {key} -->"
    start, stop = body.find(begin), body.find(end)
    if (start < 0) != (stop < 0) or stop < start:
        raise UsageError(
            f"{CARD} has only one of the markers {begin!r} and {end!r}, or both in the wrong order",
            "put the other one back, or remove both: a new part is then added at the end",
        )
    made = f"{begin}\n{part.strip()}\n{end}"
    if start < 0:
        return f"{body.rstrip()}\n\n{made}\n".lstrip("\n")
    return body[:start] + made + body[stop + len(end) :]


def _update_front(text: str, datasets: Sequence[PushedDataset]) -> str:
    """Return the YAML of a card with our keys replaced, each as a block of lines."""
    import yaml

    found = _load(text)
    ours = {name: value for name, value in _front(found, datasets).items() if found.get(name) != value}
    for name, value in ours.items():
        text = _with_key(text, name, yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True))
    if _load(text) != {**found, **ours}:
        raise UsageError(
            f"the YAML at the top of {CARD} on the Hub is written in a way that cannot be edited",
            f"begin a line each with {', '.join(f'{name}:' for name in ours)}",
        )
    return text


def _load(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    where, advice = f"the YAML at the top of {CARD} on the Hub", f"correct {CARD} on the Hub, or remove its YAML"
    try:
        found = parse_yaml(text, where)
    except RecipeError as error:
        raise UsageError(str(error), advice) from error
    configs = found.get("configs") or []
    if not isinstance(configs, list) or len(_configs(found)) != len(configs):
        raise UsageError(f"{where}: `configs` must be a list of configs with a `config_name` each", advice)
    return found


def _with_key(text: str, name: str, block: str) -> str:
    """Return YAML with the lines of a top-level key replaced by a block, or with the block at the end."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    begins = re.compile(rf"""(["']?){name}\1[ \t]*:""")
    start = next((at for at, line in enumerate(lines) if begins.match(line)), len(lines))
    stop = start + 1
    while stop < len(lines) and re.match(r"[ \t]+\S|-\s", lines[stop]):
        stop += 1
    return "".join([*lines[:start], block, *lines[stop:]])


def _front(found: dict[str, Any], datasets: Sequence[PushedDataset]) -> dict[str, Any]:
    configs = {config["config_name"]: config for config in _configs(found)}
    for name in dict.fromkeys(one.config for one in datasets):
        files = {one.split: _data_files(one) for one in datasets if one.config == name}
        # A training set comes with its validation set, or has none: another one may hold the same documents.
        before = [] if "train" in files else _splits(configs.get(name, {}))
        _check_config(configs.get(name, {}), [entry for entry in before if entry["split"] not in files])
        kept = [files.pop(entry["split"], entry) for entry in before]
        configs[name] = {**configs.get(name, {"config_name": name}), "data_files": [*kept, *files.values()]}
    tags = [*_list(found, "tags"), *(tag for tag in _TAGS if tag not in _list(found, "tags"))]
    rows = sum(one.opened.metadata.rows for one in datasets)
    return {"configs": [*configs.values()], "tags": tags, "size_categories": [size_category(rows)]}


def _check_config(config: dict[str, Any], kept: Sequence[dict[str, Any]]) -> None:
    """Check that no files of the user would vanish from a config of the card.

    Args:
        kept: entries of its data files that stay.

    Raises:
        UsageError: its other data files are not those that a push named.
    """
    lost = [entry for entry in _list(config, "data_files") if entry not in kept and not _is_pushed(entry)]
    lost += [config["data_dir"]] if "data_dir" in config else []
    if lost:
        shown = ", ".join(str(entry.get("path", entry) if isinstance(entry, dict) else entry) for entry in lost)
        raise UsageError(
            f"the config {config['config_name']!r} in {CARD} on the Hub has other files, which `load_dataset` would no "
            f"longer read: {shown}",
            f"rename that config in {CARD} on the Hub, or push a single dataset with another path_in_repo, which names "
            "its config: data/NAME.lance",
        )


def _is_pushed(entry: Any) -> bool:
    """Return whether an entry of data files is as `_data_files` makes it, for any path."""
    if not isinstance(entry, dict) or entry.keys() != {"split", "path"} or not isinstance(entry["path"], list):
        return False
    path = str(entry["path"][0]).removesuffix(_MANIFESTS) if entry["path"] else ""
    return entry["path"] == _patterns(path)


def _patterns(path: str) -> list[str]:
    # `datasets` finds the root of a Lance dataset by its manifest, and chooses the builder by `.lance`.
    return [f"{path}{_MANIFESTS}", f"{path}/data/*.lance"]


def _configs(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in _list(found, "configs") if isinstance(one, dict) and isinstance(one.get("config_name"), str)]


def _splits(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a config that name their split."""
    return [entry for entry in _list(config, "data_files") if isinstance(entry, dict) and "split" in entry]


def dropped_splits(card: str | None, datasets: Sequence[PushedDataset]) -> list[str]:
    """Return the splits that the card lists beside these training sets, and that are not pushed with them."""
    front = _FRONT.match(card or "")
    configs = _configs(_load(front[1])) if front else []
    mine = {(one.config, one.split) for one in datasets}
    names = {one.config for one in datasets if one.split == "train"}
    found = [(config["config_name"], entry["split"]) for config in configs for entry in _splits(config)]
    return [str(split) for config, split in found if config in names and (config, split) not in mine]


def _list(found: dict[str, Any], name: str) -> list[Any]:
    value = found.get(name) or []
    return value if isinstance(value, list) else [value]


def _data_files(one: PushedDataset) -> dict[str, Any]:
    return {"split": one.split, "path": _patterns(one.path)}


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows."""
    return _SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]


def _render(name: str, datasets: Sequence[PushedDataset], licenses: Sequence[Licensed]) -> str:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters.update(code=code, counted=counted, public=public_name)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    first = datasets[0]
    return template.render(
        name=name,
        datasets=[_facts(one) for one in datasets],
        first=first,
        tokens=LAYOUTS[first.opened.metadata.layout].tokens,
        packed=LAYOUTS[first.opened.metadata.layout].packed,
        configs=len({one.config for one in datasets}),
        many=len(datasets) > 1,
        licenses=[item for item in licenses if item.license],
        unlicensed=[item for item in licenses if not item.license],
    )


def _facts(one: PushedDataset) -> dict[str, Any]:
    data = one.opened.metadata
    files = one.opened.source_files
    return {
        "name": one.name,
        "split": one.split,
        "config": one.config,
        "path": one.path,
        "version": one.opened.number,
        "data": data,
        "layout": LAYOUTS[data.layout].describe(data.recipe),
        "columns": [(field.name, str(field.type)) for field in one.opened.dataset.schema],
        "source": _source(one.opened),
        "files": [_file(file) for file in files[:_MOST_FILES]],
        "more_files": max(0, len(files) - _MOST_FILES),
        "recipe": _recipe(one.opened),
        "ledger": _ledger(data.ledger, data.layout),
        "license": one.license,
    }


def _source(opened: DatasetVersion) -> str:
    source = opened.metadata.source
    if source.repo is None:
        return code(public_name(source.asked))
    named = "".join(
        f", {what} {code(value)}" for what, value in (("config", source.config), ("split", source.split)) if value
    )
    return f"{code(source.repo)} on the Hub at commit {code(str(source.commit))}{named}"


def _file(file: FileRecord) -> str:
    return f"{code(public_name(file.url))} ({file.size:,} bytes)"


def _recipe(opened: DatasetVersion) -> str:
    """Return the fields that differ from the defaults, as YAML, without paths of this machine."""
    import yaml

    data = opened.metadata
    defaults = Recipe.model_validate({"source": "any"}).as_json()
    fields = {name: value for name, value in data.recipe.items() if name == "layout" or value != defaults.get(name)}
    for name in PATH_FIELDS:
        value = fields.get(name)
        if isinstance(value, list):
            fields[name] = [public_name(str(item)) for item in value]
        elif value is not None:
            fields[name] = public_name(str(value))
    if data.source.repo is not None and "://" not in str(fields.get("source")):
        fields["revision"] = data.source.commit
    if data.tokenizer is not None and data.tokenizer.commit is not None:
        fields["tokenizer_revision"] = data.tokenizer.commit
    return (
        yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
        .strip()
        .replace("```", "`` `")
        .replace("<!--", "<! --")
    )


def public_name(name: str) -> str:
    """Return the name of a source or tokenizer without the folders of this machine."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "./", "../", "~")) else name


def _ledger(ledger: Ledger, layout: str) -> list[tuple[str, int]]:
    """Return what became of the source rows, and the tokens: all that is not 0."""
    names = ("rows_used", "empty", "filtered", "rejected", "held_out", "dropped", "over_limit")
    rows = [("source rows", ledger.rows_in), *((f"{name.replace('_', ' ')}", getattr(ledger, name)) for name in names)]
    if LAYOUTS[layout].tokens:
        rows += [("tokens made", ledger.tokens_in), ("tokens written", ledger.tokens_written)]
    if LAYOUTS[layout].packed:
        rows += [("padding", ledger.padding), ("documents cut", ledger.documents_cut)]
    always = ("source rows", "rows used", "tokens written")
    return [(name, number) for name, number in rows if number or name in always]


def code(text: str) -> str:
    """Return a stranger's text as a code span of Markdown, which may be in a table. It cannot end a marker."""
    clean = "".join(" " if not character.isprintable() else character for character in str(text))
    clean = clean.replace("<!--", "<! --").replace("|", "\\|") or " "
    fence = "`" * (max(map(len, re.findall("`+", clean)), default=0) + 1)
    pad = " " if "`" in clean else ""
    return f"{fence}{pad}{clean}{pad}{fence}"
