"""`push`: a dataset at one version, or a collection, to the Hub in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lance_prep.errors import LancePrepError, UsageError, counted
from lance_prep.hub.card import CARD, Licensed, dropped_splits, update_card
from lance_prep.hub.commit import HubCommit, commit_files
from lance_prep.hub.contents import Contents, PushedDataset, fetched_files, find_contents, hub_files, is_here
from lance_prep.hub.croissant import CROISSANT, croissant
from lance_prep.hub.repo import (
    HubRepo,
    asking,
    branch_head,
    check_ref,
    check_tag,
    check_token,
    ensure_repo,
    list_files,
    set_tag,
    writing,
)
from lance_prep.hub.upload import CHUNK_BYTES, HubFile, UploadedFile, UploadProgress, upload_files
from lance_prep.hub_path import hub_api
from lance_prep.store import BUILDS_FOLDER, FOLDER, LOADER_FILE, MANIFEST
from lance_prep.transport import Transport

#: Files that Lance and lance-prep write in the folder of a dataset.
_OF_DATASET = re.compile(
    r"_versions/[^/]+|_latest\.manifest|_transactions/[^/]+\.txn|_deletions/[^/]+\.(?:arrow|bin)|_indices/.+"
    rf"|_refs/.+\.json|data/[^/]+\.lance|{re.escape(FOLDER)}/.+|{re.escape(LOADER_FILE)}"
)
#: Files that a message names.
_NAMED = 5


@dataclass(frozen=True)
class PushOptions:
    """How a dataset is pushed.

    Attributes:
        version: number or tag of the dataset; the latest by default.
        private: make a new repository private.
        revision: branch, which is made if it is missing, or the ref of an open pull request; `main` by default.
        path_in_repo: folder of the dataset in the repository, by default `data/train.lance`; of a collection, the
            folder of its datasets, by default `data`.
        create_pr: propose the commit as a pull request.
        tag: name for the commit.
        message: title of the commit.
        storage_options: of the dataset's object store.
    """

    version: int | str | None = None
    private: bool = False
    revision: str | None = None
    path_in_repo: str | None = None
    create_pr: bool = False
    tag: str | None = None
    message: str | None = None
    storage_options: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.create_pr and self.tag:
            raise UsageError(
                "`tag` cannot be combined with create_pr: a tag names a commit of a branch", "remove one of them"
            )
        if self.create_pr and self.revision not in (None, "main"):
            raise UsageError("create_pr proposes a change of main, so `revision` cannot be given", "remove one of them")
        if self.tag is not None:
            check_ref("tag", self.tag)
            if "/" in self.tag:
                raise UsageError(f"invalid tag name {self.tag!r}", "use a name without /, such as v1")
        for name in ("path_in_repo", "message"):
            value = getattr(self, name)
            if value is not None and not value.strip(" /"):
                raise UsageError(f"`{name}` is empty", "leave it out for the default")


@dataclass(frozen=True)
class PushedInfo:
    """A dataset that is on the Hub.

    Attributes:
        path: its folder in the repository.
        uri: of the dataset on the Hub, for `LanceDataset`; on `main`, also for `lance.dataset`.
        config, split: how `datasets.load_dataset` names it.
        version, rows, tokens, content_hash: of the version that was pushed.
    """

    path: str
    uri: str
    config: str
    split: str
    version: int
    rows: int
    tokens: int
    content_hash: str


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Attributes:
        repo: `owner/name`.
        revision: the branch.
        created: whether the repository is new.
        commit: what became of the files.
        tag: the tag that names the commit, if one was asked for.
        datasets: what is on the Hub.
        notes: what was left out, what of an earlier push was removed, which unrelated datasets were replaced, and how
            many rejected rows of the source are on the Hub.
    """

    repo: str
    revision: str
    created: bool
    commit: HubCommit
    tag: str | None
    datasets: tuple[PushedInfo, ...]
    notes: tuple[str, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """Whether the Hub had the same files."""
        return not self.commit.made

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON."""
        return {**asdict(self), "up_to_date": self.up_to_date}


def push(
    source: str | Path,
    repo: str,
    options: PushOptions | None = None,
    *,
    progress: UploadProgress | None = None,
) -> PushReport:
    """Upload a dataset, or a collection, to the Hub in one commit, with a card and a Croissant file.

    Only the files that the version needs go up. The folder in the repository has that version and nothing else
    afterwards: the files of an earlier push that it does not need are removed in the same commit, and a folder with
    other files is refused. A push that was killed continues, and if the Hub has the same files, no commit is made.

    The text of rejected rows, and what texts share with a benchmark, go up with the builds; see `PushReport.notes`.

    Args:
        source: a dataset; one with `.val.lance` beside it is pushed with it, as the split `validation`. Or a folder
            with `manifest.json`.
        repo: `owner/name`, which is made if it is missing.
        options: see `PushOptions`.
        progress: told what is sent.

    Raises:
        UsageError: an option contradicts the source or the repository, or files there would be lost.
        DatasetError: a dataset cannot be read.
        AccessDenied: there is no token for the Hub, or it may not write there.
        BranchMoved: another commit was made meanwhile.
        HubUnreachable: the same call continues later.
    """
    options = options or PushOptions()
    place = HubRepo.parse(repo, options.revision)
    check_token()
    contents = find_contents(source, options.version, options.path_in_repo, Transport.of(options.storage_options))
    files: list[HubFile | UploadedFile] = []
    files += [file for one in contents.datasets if is_here(one) for file in hub_files(one)]
    created = ensure_repo(place, private=options.private)
    head = branch_head(place)
    card = _read_card(place, head)
    files += _descriptions(place, card, contents)
    replaced = _replaced(place, head, contents)
    for one in contents.datasets:
        if not is_here(one):
            files += _upload_from_store(place, one, options.create_pr, progress)
    commit = commit_files(
        place,
        files,
        options.message or _title(contents),
        description=_description(contents),
        parent=head,
        replaces=contents.folders,
        create_pr=options.create_pr,
        progress=progress,
        before=lambda: _check_tag(place, options.tag),
    )
    if options.tag is not None:
        set_tag(place, options.tag, commit.commit)
    datasets = tuple(_info(_place_of(place, commit), one) for one in contents.datasets)
    notes = contents.notes + (replaced if commit.made else ())
    notes += tuple(note for one in contents.datasets if (note := _source_rows(one)))
    if dropped := dropped_splits(card, contents.datasets):
        notes += (f"without the split {', '.join(dropped)} of an earlier push: this dataset has none beside it",)
    return PushReport(place.name, place.branch, created, commit, options.tag, datasets, notes)


def _source_rows(one: PushedDataset) -> str | None:
    """Return a note about source rows that go up although the dataset does not have them: nobody expects them there."""
    ledger = one.opened.metadata.ledger
    counts = ((ledger.rejected, "rejected"), (ledger.contaminated, "contaminated"))
    said = [f"{counted(count, f'{what} source row')}" for count, what in counts if count]
    if not said:
        return None
    return f"{one.path}: the text of {' and '.join(said)} is pushed too, in .lance_prep/builds, for `verify`"


def _replaced(repo: HubRepo, head: str, contents: Contents) -> tuple[str, ...]:
    """Return notes on datasets on the Hub that are not versions of those that replace them.

    Raises:
        UsageError: one of the folders has files that do not belong to a dataset, and that would be removed.
    """
    pushed = {one.path: one.opened for one in contents.datasets}
    notes: list[str] = []
    for folder in contents.folders:
        there = [path.removeprefix(f"{folder}/") for path in list_files(repo, head, folder)]
        if foreign := sorted(path for path in there if not _OF_DATASET.fullmatch(path)):
            more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
            raise UsageError(
                f"{folder} in {repo} has files that do not belong to a dataset, and that this push would remove: "
                + ", ".join(foreign[:_NAMED])
                + more,
                "move them to another folder on the Hub, or push with another path_in_repo",
            )
        before = {path.split("/")[2] for path in there if path.startswith(f"{BUILDS_FOLDER}/")}
        if there and folder in pushed and before.isdisjoint(build.key for build in pushed[folder].builds):
            what = (
                "another build: it shares no build with this one"
                if before
                else "a dataset that lance-prep did not build"
            )
            notes.append(f"{folder} replaces {what}; the commit before, {head}, still has it")
    return tuple(notes)


def _place_of(repo: HubRepo, commit: HubCommit) -> HubRepo:
    """Return where the files of a commit are: on the branch, or in the pull request whose page it names."""
    found = re.search(r"/discussions/(\d+)$", commit.url)
    return HubRepo(repo.name, f"refs/pr/{found[1]}") if found else repo


def _upload_from_store(
    repo: HubRepo, one: PushedDataset, create_pr: bool, progress: UploadProgress | None
) -> list[UploadedFile]:
    """Upload a dataset in an object store, of which only a part is on this disk at a time."""
    uploaded: list[UploadedFile] = []
    with tempfile.TemporaryDirectory(prefix="lance-prep-push-") as folder:
        for part in fetched_files(one, Path(folder), CHUNK_BYTES):
            uploaded += upload_files(repo, part, progress=progress, create_pr=create_pr)
    return uploaded


def _check_tag(repo: HubRepo, tag: str | None) -> None:
    """Refuse a tag that names a commit already, before another commit is made for it."""
    with writing(repo):
        if tag is not None and (found := check_tag(repo, tag)) is not None:
            raise UsageError(
                f"the tag {tag} of {repo.name} names commit {found}, which has other files",
                f"choose another tag, or remove it with `hf repos tag delete {repo.name} {tag} --type dataset`",
            )


def _descriptions(repo: HubRepo, card: str | None, contents: Contents) -> list[HubFile]:
    """Return the card, the Croissant file and, of a collection, the manifest."""
    page = f"{hub_api().endpoint}/datasets/{repo.name}"
    text = update_card(card, repo.name, contents.datasets, _licenses(contents.datasets))
    files = [HubFile(CARD, text.encode()), HubFile(CROISSANT, croissant(repo.name, page, contents.datasets))]
    if contents.manifest is not None:
        folder = contents.folders[0].rpartition("/")[0]
        # Where it was built is nobody else's business.
        manifest = replace(contents.manifest, input_path="", output_path="")
        files.append(HubFile(f"{folder}/{MANIFEST}", manifest.text().encode()))
    return files


def _read_card(repo: HubRepo, commit: str) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with writing(repo):
        try:
            path = asking(lambda: hf_hub_download(repo.name, CARD, repo_type="dataset", revision=commit), repo)
        except EntryNotFoundError:
            return None
    try:
        # Decode bytes, because text mode would replace CRLF. A byte order mark would hide the YAML.
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{CARD} of {repo.name} is not text in UTF-8", "replace or remove it on the Hub") from error


def _licenses(datasets: Sequence[PushedDataset]) -> list[Licensed]:
    """Ask the Hub for the licenses of the sources that are there. Those that cannot be asked are left out."""
    sources = {(one.opened.metadata.source.repo, one.opened.metadata.source.commit) for one in datasets}
    found = []
    for name, commit in sorted((name, commit or "main") for name, commit in sources if name is not None):
        try:
            repo = HubRepo(name)
            with writing(repo):
                card = hub_api().repo_info(name, repo_type="dataset", revision=commit).card_data
        except LancePrepError:  # removed, or gated, meanwhile: the card then says nothing
            continue
        said = getattr(card, "license", None)
        found.append(Licensed(name, ", ".join(said) if isinstance(said, list) else said))
    return found


def _title(contents: Contents) -> str:
    first, more = contents.datasets[0], len(contents.datasets) - 1
    others = f" and {more} more" if more else ""
    return f"Push {first.path}{others}, version {first.opened.number}, with lance-prep"


def _description(contents: Contents) -> str:
    lines = [f"{one.path}: content hash {one.opened.metadata.content_hash}" for one in contents.datasets[:20]]
    return "\n".join(lines)


def _info(repo: HubRepo, one: PushedDataset) -> PushedInfo:
    data = one.opened.metadata
    # The ref of a pull request may be written as it is; the slash of a branch must be quoted.
    branch = repo.branch if repo.branch.startswith("refs/pr/") else repo.branch.replace("/", "%2F")
    at = "" if branch == "main" else f"@{branch}"
    uri = f"hf://datasets/{repo.name}{at}/{one.path}"
    return PushedInfo(
        one.path, uri, one.config, one.split, one.opened.number, data.rows, data.tokens, data.content_hash
    )
