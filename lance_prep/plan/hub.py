"""Hub sources: an id or URL in, files pinned at a commit out.

Which files make up a config and split is decided by `datasets` itself, so that a build reads what `load_dataset`
would read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lance_prep.errors import AccessDenied, HubUnreachable, SourceNotFound, UsageError, translating
from lance_prep.formats import check_one_family, format_of, is_data, pin_lance, require_format, stream_file
from lance_prep.hub_path import HubPath, hub_api, hub_info, list_paths, list_tree, parse_hub_url
from lance_prep.hub_session import limited
from lance_prep.model import PinnedSource, SourceFile
from lance_prep.plan.discover import Found, find_local, is_glob, left_out
from lance_prep.recipe import Recipe
from lance_prep.transport import FIRST_ATTEMPTS, Retries, Transport

CONVERTED = "refs/convert/parquet"


def find_hub(recipe: Recipe, at: HubPath, transport: Transport) -> Found:
    """Return the files of a Hub dataset, by config and split, or by the path or glob of a URL.

    A Lance dataset in it counts as one file.

    Raises:
        SourceNotFound: no such repository, revision, config, split or file; says which there are.
        AccessDenied, HubUnreachable: the Hub refuses, or does not answer.
        UsageError: options that contradict the URL.
    """
    if at.revision and recipe.revision not in (None, at.revision):
        raise UsageError(f"{recipe.asked} and revision={recipe.revision!r} name two revisions", "give one of them")
    revision = at.revision or recipe.revision or "main"
    retries = Retries(attempts=FIRST_ATTEMPTS)
    with limited(f"dataset {at.repo}"), translating(f"dataset {at.repo}"):
        info = hub_info(at.repo, revision, retries)
        if info is None:
            return _find_cached(recipe, at, revision)
        if at.path:
            return _find_paths(recipe, at, revision, info.sha, transport.retrying(attempts=FIRST_ATTEMPTS))
        return _find_split(recipe, at.repo, revision, info, transport.retrying(attempts=FIRST_ATTEMPTS))


def _find_paths(recipe: Recipe, at: HubPath, revision: str, sha: str, transport: Transport) -> Found:
    """Return the files that a path or glob names, at a commit."""
    if recipe.config is not None or recipe.split is not None:
        raise UsageError(f"{recipe.asked} names files: `config` and `split` cannot be combined with it", "remove them")
    tree = _tree(at.repo, sha, transport.retries)
    for root in sorted({name.partition("/_versions/")[0] for name in tree if "/_versions/" in name}):
        tree = {name: pin for name, pin in tree.items() if not name.startswith(f"{root}/")} | {root: None}
    if is_glob(at.path):
        import re

        from fsspec.utils import glob_translate

        pattern = re.compile(glob_translate(at.path))
        names = [name for name in tree if pattern.match(name) and format_of(name) is not None]
    elif at.path in tree:
        require_format(at.path)
        names = [at.path]
    else:
        folder = at.path.rstrip("/") + "/"
        names = [name for name in tree if name.startswith(folder) and is_data(name.removeprefix(folder))]
    if not names:
        data = [name for name in tree if is_data(name)]
        there = ", ".join(data[:8]) + (f" and {len(data) - 8} more" if len(data) > 8 else "")
        raise SourceNotFound(
            f"dataset {at.repo} has no data file {at.path!r} at {revision}", f"there are {there or 'none'}"
        )
    check_one_family(names, recipe.asked)
    files = tuple(_file(HubPath(at.repo, sha, name), tree[name], transport) for name in sorted(names))
    inside = [name for name in tree if name.startswith(at.path.rstrip("/") + "/")]  # none if it names a file or a glob
    source = PinnedSource(recipe.asked, at.repo, revision=revision, commit=sha)
    return Found(source, files, skipped=left_out(inside, set(names)))


#: Size and blob id of a file; None for the folder of a Lance dataset.
_Pin = tuple[int, str] | None


def _tree(repo: str, sha: str, retries: Retries) -> dict[str, _Pin]:
    """Return all files of a commit, sorted by path."""
    return {entry.path: (entry.size, entry.digest) for entry in list_tree(repo, sha, "", retries) or ()}


def _file(at: HubPath, pin: _Pin, transport: Transport) -> SourceFile:
    if pin is None:
        return pin_lance(at.url, transport)
    kind, compression = require_format(at.path)
    return SourceFile(at.url, kind, pin[0], pin[1], compression)


def choose(kind: str, asked: str | None, names: Sequence[str], default: str, where: str) -> str:
    """Return the config or split to read.

    Args:
        kind: `config` or `split`, for messages.
        default: the name to take if it exists and none is asked for. Otherwise the only name is taken.

    Raises:
        SourceNotFound: it does not exist, or there are several and none is asked for.
    """
    listed = ", ".join(names) or "none"
    if asked is not None:
        if asked in names:
            return asked
        raise SourceNotFound(f"{where} has no {kind} {asked!r}", f"there are {listed}")
    if default in names:
        return default
    if len(names) == 1:
        return names[0]
    raise SourceNotFound(f"{where} has several {kind}s", f"choose one with `{kind}`: {listed}")


def _find_split(recipe: Recipe, repo: str, revision: str, info: Any, transport: Transport) -> Found:
    """Return the files of a config and split, as `load_dataset` finds them."""
    where, retries = f"dataset {repo}", transport.retries
    try:
        config, splits = retries.call(lambda: _data_files(recipe, repo, info.sha, where), doing=where)
    except (FileNotFoundError, RuntimeError) as error:  # no known files, or a loading script
        if getattr(info, "gated", False) and "gated" in str(error):
            advice = "ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
            raise AccessDenied(f"{where} is gated, and this account has no access", advice) from error
        if (found := _find_converted(recipe, repo, revision, retries)) is not None:
            return found
        advice = "name its files: hf://datasets/owner/name/path, if it holds any of the formats known here"
        raise SourceNotFound(f"{where}: {str(error).splitlines()[0]}", advice) from error
    split = choose("split", recipe.split, list(splits), "train", f"{where}, config {config}")
    source = PinnedSource(recipe.asked, repo, config, split, revision, info.sha)
    paths = [parse_hub_url(url).path for url in splits[split] if "::" not in url]
    if len(paths) == len(splits[split]) and all(_readable(path) for path in paths):
        pins = _paths_info(repo, info.sha, paths, retries)
        return Found(source, tuple(_file(HubPath(repo, info.sha, path), pins[path], transport) for path in paths))
    if roots := sorted({path.partition("/_versions/")[0] for path in paths if "/_versions/" in path}):
        return Found(source, tuple(_file(HubPath(repo, info.sha, root), None, transport) for root in roots))
    return _find_converted(recipe, repo, revision, retries) or Found(source, (stream_file(source),))


def _readable(path: str) -> bool:
    known = format_of(path)
    return known is not None and known[0] != "lance"


def _data_files(recipe: Recipe, repo: str, sha: str, where: str) -> tuple[str, dict[str, list[str]]]:
    """Return the config and the files of each of its splits."""
    from datasets import DownloadConfig
    from datasets.load import dataset_module_factory

    # Asked by commit: with "main" it would also ask datasets-server, which mirrors do not have.
    module = dataset_module_factory(repo, revision=sha)
    parameters = module.builder_configs_parameters
    configs = {config.name: config for config in parameters.builder_configs or []}
    default = parameters.default_config_name or "default"
    name = choose("config", recipe.config, list(configs), default, where)
    config = configs[name]
    config._resolve_data_files(module.builder_kwargs.get("base_path"), DownloadConfig())
    return name, {str(split): [str(url) for url in urls] for split, urls in config.data_files.items()}


def _paths_info(repo: str, sha: str, paths: Sequence[str], retries: Retries) -> Mapping[str, _Pin]:
    pins = {entry.path: (entry.size, entry.digest) for entry in list_paths(repo, sha, paths, retries)}
    if missing := [path for path in paths if path not in pins]:
        raise HubUnreachable(
            f"dataset {repo}: the Hub lists {missing[0]!r}, and then does not know it", "use another Hub"
        )
    return pins


def _find_converted(recipe: Recipe, repo: str, revision: str, retries: Retries) -> Found | None:
    """Return the Hub's own conversion to Parquet (`config/split/0000.parquet`); None if this revision has none."""
    from huggingface_hub.errors import RevisionNotFoundError

    if revision != "main":
        return None
    try:
        info = retries.call(lambda: hub_api().dataset_info(repo, revision=CONVERTED), doing=f"dataset {repo}")
    except RevisionNotFoundError:
        return None
    tree = {name: pin for name, pin in _tree(repo, info.sha, retries).items() if name.endswith(".parquet")}
    parts = [name.split("/") for name in tree if name.count("/") == 2]
    if not parts:
        return None
    where = f"dataset {repo}"
    config = choose("config", recipe.config, sorted({p[0] for p in parts}), "default", where)
    splits = sorted({p[1] for p in parts if p[0] == config})
    split = choose("split", recipe.split, splits, "train", f"{where}, config {config}")
    inside = {name: pin for name, pin in tree.items() if name.startswith(f"{config}/{split}/")}
    files = tuple(_file(HubPath(repo, info.sha, name), pin, Transport()) for name, pin in inside.items())
    return Found(PinnedSource(recipe.asked, repo, config, split, CONVERTED, info.sha), files)


def _find_cached(recipe: Recipe, at: HubPath, revision: str) -> Found:
    """Return the files that `hf download` left in the cache, for offline mode."""
    import os

    from huggingface_hub import snapshot_download

    folder = snapshot_download(at.repo, repo_type="dataset", revision=revision, local_files_only=True)
    commit = os.path.basename(folder)  # noqa: PTH119
    if at.path:
        found = find_local(os.path.join(folder, at.path))  # noqa: PTH118
        if found is None:
            raise SourceNotFound(f"dataset {at.repo}: the cache has no {at.path}", "unset HF_HUB_OFFLINE")
        return Found(PinnedSource(recipe.asked, at.repo, revision=revision, commit=commit), found.files)
    config, splits = _data_files(recipe, folder, commit, f"dataset {at.repo}")
    split = choose("split", recipe.split, list(splits), "train", f"dataset {at.repo}, config {config}")
    files = tuple(file for path in splits[split] for file in (find_local(path) or Found(PinnedSource(""), ())).files)
    return Found(PinnedSource(recipe.asked, at.repo, config, split, revision, commit), files)
