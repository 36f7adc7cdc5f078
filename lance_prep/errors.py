"""Every error that lance-prep raises on purpose, and the one place where other libraries' errors become ours.

    LancePrepError
    ├── UsageError              invalid or contradicting options                  exit 2
    ├── RecipeError             an invalid recipe: unknown name or field, bad value
    ├── SourceError             a source that cannot be read
    │   ├── SourceNotFound      no such file, repository, config, split or revision
    │   ├── ColumnNotFound      no such column; lists the columns
    │   ├── SourceChanged       the source has changed since it was planned
    │   ├── BadFile             cut short, or not the format that its name says
    │   ├── AccessDenied        gated, private, or no permission
    │   ├── HubUnreachable      no answer from the Hub
    │   └── StoreUnreachable    no answer from an object store or server
    ├── TokenizerError          an invalid tokenizer, or one that lacks a required token
    ├── RowRejected             `strict`: a row that would have been rejected
    ├── OutputError             the output cannot be written
    │   ├── OutputExists        something else is there already
    │   ├── OutputLocked        another process is building into it
    │   ├── BranchMoved         another commit on the Hub came first
    │   └── DiskFull
    ├── DatasetError            not a dataset of lance-prep, or no such version
    │   ├── DamagedDataset      its files or metadata are missing, damaged or invalid
    │   └── StateMismatch       a checkpoint made on another dataset, seed or block size
    ├── EngineError             Spark does not start, or fails
    └── Interrupted             stopped by a signal; the same command continues   exit 1

Each says what is wrong, with the values (`str(error)`), and what to do about it (`error.advice`).
"""

# Names say what happened, as httpx and grain do; the suffix Error is for the branches of the tree.

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class LancePrepError(Exception):
    """Base of all errors of this package.

    Args:
        message: what is wrong, with the values, in one line.
        advice: what to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(without_answers(message))
        self.advice = advice
        if advice:  # tracebacks show notes: torch passes on an error of a worker process as the text of its traceback
            self.add_note(f"try: {advice}")

    def __reduce__(self) -> tuple[type[LancePrepError], tuple[str, str]]:
        # Errors cross process boundaries (Spark executors, loader workers) with their advice.
        return type(self), (str(self), self.advice)


class UsageError(LancePrepError):
    exit_code = 2


class RecipeError(LancePrepError):
    pass


class SourceError(LancePrepError):
    pass


class SourceNotFound(SourceError):
    pass


class ColumnNotFound(SourceError):
    pass


class SourceChanged(SourceError):
    pass


class BadFile(SourceError):
    pass


class AccessDenied(SourceError):
    pass


class HubUnreachable(SourceError):
    pass


class StoreUnreachable(SourceError):
    pass


class TokenizerError(LancePrepError):
    pass


class RowRejected(LancePrepError):
    pass


class OutputError(LancePrepError):
    pass


class OutputExists(OutputError):
    pass


class OutputLocked(OutputError):
    pass


class BranchMoved(OutputError):
    pass


class DiskFull(OutputError):
    pass


class DatasetError(LancePrepError):
    pass


class DamagedDataset(DatasetError):
    pass


class StateMismatch(DatasetError):
    pass


class EngineError(LancePrepError):
    pass


class Interrupted(LancePrepError):
    pass


_HUB_ADVICE = (
    "check the network, or set HF_ENDPOINT to a mirror, or build from a local path; "
    "`lance-prep build sample` needs no network"
)
#: What is wrong on Windows, and what to do there.
UNSUPPORTED = (
    f"lance-prep runs on Linux and macOS, not on this platform ({sys.platform})",
    "run it in WSL (Windows Subsystem for Linux), a container or a virtual machine",
)
_LOGIN = "ask for access on its page on the Hub, then log in with `hf auth login` or set HF_TOKEN"
_SPACE = "free some space or write elsewhere; the same command then continues"
#: What to do before a build for which the disk is too small.
LESS_SPACE = "free some space, choose another output, or build less with max_rows or max_tokens"
_STORE_ADVICE = "check the bucket, the region and the endpoint"
_STORE_LOGIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and " + _STORE_ADVICE
#: How Lance words that a store refuses access.
_REFUSED = ("403 Forbidden", "401 Unauthorized", "AccessDenied", "Unauthenticated")
_DAMAGED = "get the file again, or leave it out; its extension must match its format"
_PATH_ADVICE = (
    "check the spelling; a source is a local file, folder or glob, a Hub id owner/name, or an hf:// or s3:// URL"
)
_PERMISSION = "change the permissions, or name another path"
_SHORTER = "use a shorter one: most systems allow 255 bytes in a name and 4,095 in a path"
_NO_JSON = "check the network and HF_ENDPOINT: a proxy or a login page may answer in place of the Hub"
_RATE_LIMIT = "wait five minutes, then run the same command again; with a token, the Hub allows more requests"
_NO_HUB = "the Hub cannot be reached"


@contextmanager
def translating(
    doing: str, using: Callable[[BaseException, str], LancePrepError | None] | None = None
) -> Iterator[None]:
    """Raise other libraries' errors in the block as ours, with the original as the cause.

    Errors that no row of the table knows, and those that are ours already, pass through unchanged.

    Args:
        doing: see `translate`.
        using: `translate` (the default) or `translate_output`.
    """
    try:
        yield
    except Exception as error:  # the table decides; what it does not know is raised as it is
        ours = (using or translate)(error, doing)
        if ours is None or ours is error:
            raise
        raise ours from as_cause(error)


def translate(error: BaseException, doing: str) -> LancePrepError | None:
    """Return another library's exception as one of ours.

    Args:
        error: the exception; one of ours is returned unchanged.
        doing: what was being done, with the name of the thing, such as `reading s3://bucket/x.parquet`; empty if
            unknown. If it names a URL other than `hf://`, connection errors are reported as the object store's.

    Returns:
        The error to raise, or None for an exception that no row of the table knows. That is a bug, or a case nobody has
        thought of, and its traceback is worth seeing.
    """
    if isinstance(error, LancePrepError):
        return error
    doing = without_credentials(doing)
    if isinstance(error, json.JSONDecodeError) and doing.startswith("pushing to "):
        return HubUnreachable(f"{doing}: the Hub's answer is not JSON", _NO_JSON)
    ours = (
        _system(error, doing) or (_of_store(error, doing) if _names_store(doing) else None) or _from_table(error, doing)
    )
    if ours is None or doing:
        return ours
    return type(ours)(str(ours).removeprefix(": "), ours.advice)


def translate_output(error: BaseException, uri: str) -> LancePrepError | None:
    """Return what the system or Lance raised while writing the dataset at `uri` as one of ours.

    Returns:
        The error to raise, or None for an exception that has nothing to do with writing. One of ours is returned
        unchanged.
    """
    if isinstance(error, LancePrepError):
        return error
    if not isinstance(error, OSError) and "LanceError(" not in str(error):
        return None
    if (ours := _system(error, f"writing {uri}")) is not None:
        return ours
    text = str(error)
    if "NoSuchBucket" in text:
        return OutputError(f"writing {uri}: no such bucket", "create it, or check the spelling")
    if any(said in text for said in _REFUSED):
        return OutputError(f"writing {uri}: the object store refuses access", _STORE_LOGIN)
    if isinstance(error, PermissionError):
        return OutputError(_named(error, f"writing {uri}: permission denied"), _PERMISSION)
    if isinstance(error, FileNotFoundError) and error.filename and _is_inside(uri, str(error.filename)):
        said = f"cannot create the folder {uri}: the file system has no place for it"
        return OutputError(said, "name a folder on an ordinary disk")
    # Lance words it in its own way for each call, and as the system does when it renames its temporary file.
    if isinstance(error, FileNotFoundError) or "Not found" in text or "No such file or directory" in text:
        return OutputError(f"{uri} was removed while it was being built", "run the same command again")
    if not _names_store(uri):
        return OutputError(f"writing {uri}: {one_line(error)}", "check the disk; the same command continues")
    advice = f"{_STORE_ADVICE}; the same command continues"
    if (found := _NO_ANSWER.search(text)) is not None:
        why = found[1] or "no answer"
        return OutputError(f"writing {uri}: the object store does not answer as it should ({why})", advice)
    return OutputError(f"writing {uri}: {one_line(error)}", advice)


def _is_inside(path: str, folder: str) -> bool:
    """Return whether a path is that of a folder, or inside it. It need not exist."""
    return (path.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")


@contextmanager
def reading_dataset(uri: str) -> Iterator[None]:
    """Raise what Lance and Arrow raise while the block reads a dataset as a `DatasetError`.

    A damaged file makes Lance raise almost anything, and panic, which arrives as a `BaseException`.

    Raises:
        DamagedDataset: a local dataset cannot be read.
        DatasetError: the path has control characters, or a remote dataset cannot be read. Connection errors are a
            SourceError, as `translate` says.
        DiskFull, AccessDenied: from the system.
    """
    try:
        yield
    except BaseException as error:  # a panic of Lance is no Exception; all others are raised as they are
        panic = type(error).__name__ == "PanicException"
        if isinstance(error, LancePrepError) or not (panic or isinstance(error, OSError | RuntimeError | ValueError)):
            raise
        doing, remote = f"reading {uri}", "://" in uri
        if (control := re.search(r"[\x00-\x1f\x7f]", uri)) and not remote:
            raise DatasetError(
                f"the dataset's path, {uri!r}, has the control character {control.group()!r}, which Lance cannot open",
                "rename the folder",
            ) from as_cause(error)
        ours = _system(error, doing)
        if ours is None and isinstance(error, PermissionError):
            ours = AccessDenied(_named(error, f"{doing}: permission denied"), _PERMISSION)
        if ours is None and remote:
            ours = _of_store(error, doing) or DatasetError(
                f"{doing}: {one_line(error)}", "run `lance-prep verify` on it"
            )
        raise ours or DamagedDataset(
            f"{uri} cannot be read: {one_line(error)}",
            "`lance-prep verify` names the damaged files; restore them from a backup, or build the dataset again",
        ) from as_cause(error)


_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^/\s?#]*)@)?(?P<rest>[^\s?#]*)(?P<query>\?[^\s#]*)?"
)


def without_credentials(text: str) -> str:
    """Return `text` with user, password and query removed from each URL in it.

    A glob's `?` and the revision of an `hf://` URL (`owner/name@revision`) are kept.
    """
    if "://" not in text:
        return text

    def clean(match: re.Match[str]) -> str:
        # A signed URL's query is made of `name=value`; a `?` without one is a glob's.
        query = match["query"] or ""
        return f"{match['scheme']}://{match['rest']}" + ("" if "=" in query else query)

    return _URL.sub(clean, text)


#: How Lance words that a store answers with an error, or not at all.
_NO_ANSWER = re.compile(r"Server returned non-2xx status code: ([1-5]\d\d[A-Za-z ]*)|error sending request")
_ANSWER = re.compile(r"(<\?xml[^>]*\?>\s*)?<Error>.*?(</Error>|$)", re.DOTALL)


def without_answers(text: str) -> str:
    """Return `text` with each answer of an S3 store in it cut to its code and message.

    The rest of an answer may repeat what was sent: the name of the key, and the session token.
    """

    def cut(match: re.Match[str]) -> str:
        found = (re.search(f"<{name}>([^<]*)</{name}>", match[0]) for name in ("Code", "Message"))
        return ": ".join(each[1] for each in found if each is not None)

    return _ANSWER.sub(cut, text) if "<Error>" in text else text


def as_cause(error: BaseException) -> BaseException:
    """Return an error as the cause of one of ours: itself, or a copy without the answers of a store in its text."""
    text = str(error)
    clean = without_answers(text)
    if clean == text:
        return error
    kind = type(error) if type(error) in (OSError, RuntimeError, ValueError) else RuntimeError
    return kind(clean).with_traceback(error.__traceback__)


def _names_store(doing: str) -> bool:
    """Whether a URL of an object store or server is named, as opposed to a local path or a file on the Hub."""
    scheme = re.search(r"([A-Za-z][A-Za-z0-9+.-]*)://", doing)
    return scheme is not None and scheme[1] not in ("hf", "file", "memory")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `1,234 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean NAME? ` for the known name that is most like another one, or nothing if none is."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}? " if close else ""


def no_such_field(name: str, known: Iterable[str]) -> str:
    """Return `no such field`, with the name that was probably meant."""
    return f"no such field; {did_you_mean(name, known)}".rstrip("; ")


def size(number: float) -> str:
    """Format bytes as B, kB, MB, GB or TB (powers of 1000)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


#: The place in a library's source code with which Lance ends most of its messages.
_RUST_PLACE = re.compile(r",? *\S*\.rs:\d+(:\d+)?$")


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, without a place in the source code of Lance."""
    lines = [line.strip() for line in without_answers(str(error)).splitlines() if line.strip()]
    return without_credentials(_RUST_PLACE.sub("", lines[0])[:300]) if lines else type(error).__name__


def _named(error: OSError, doing: str) -> str:
    return f"{doing}: {error.filename}" if error.filename else f"{doing}: {one_line(error)}"


def _system(error: BaseException, doing: str) -> LancePrepError | None:
    """Translate errors of the system and of Arrow that mean the same wherever they are raised, or return None."""
    text = str(error)
    if isinstance(error, ImportError) and ("failed to map segment" in text or "allocate memory" in text):
        return LancePrepError(f"{doing}: out of memory while a library was loaded", "raise the memory limit to 4 GB")
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return DiskFull(f"{doing}: no space left on the disk", _SPACE)
    if error.errno == errno.EFBIG:
        said = f"{doing}: a file is larger than the system allows"
        return OutputError(said, "raise the limit (`ulimit -f`), write to another file system, or write smaller files")
    if error.errno == errno.EROFS:
        return OutputError(f"{doing}: read-only file system", _PERMISSION)
    if error.errno == errno.ENAMETOOLONG:
        name = str(error.filename or "")
        return LancePrepError(f"name too long: {len(os.fsencode(name)):,} bytes, {name[:60]!r}...", _SHORTER)
    if error.errno == errno.ELOOP:
        return SourceError(_named(error, doing) + " is a link that leads back to itself", "remove the link")
    if error.errno == errno.ENOMEM:
        return LancePrepError(f"{doing}: out of memory", _MEMORY)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LancePrepError(f"{doing}: too many open files", "raise the limit with `ulimit -n`, or use workers=1")
    if "encrypted" in text and "no decryption" in text:
        return BadFile(f"{doing}: the file is encrypted", "decrypt it first")
    damaged = ("Couldn't deserialize thrift", "Unexpected end of stream", "Corrupt", "could not verify page integrity")
    if any(said in text for said in damaged):
        return BadFile(f"{doing}: cut short or damaged ({one_line(error)})", _DAMAGED)
    return None


def _of_store(error: BaseException, doing: str) -> LancePrepError | None:
    """Translate errors of s3fs, botocore, aiohttp and Lance while reading from an object store, or return None.

    s3fs turns the answers that it knows into OSErrors: EBUSY for "slow down", EREMOTEIO for an internal error.
    """
    names = _names(error)
    refused = "LanceError(" in str(error) and any(said in str(error) for said in _REFUSED)
    if refused or isinstance(error, PermissionError) or ("botocore", "NoCredentialsError") in names:
        return AccessDenied(f"{doing}: the object store refuses access ({one_line(error)})", _STORE_LOGIN)
    if isinstance(error, FileNotFoundError):
        return SourceNotFound(f"{doing}: no such bucket or object", "check the spelling, and " + _STORE_ADVICE)
    unreachable = {(module, "HTTPError") for module in ("httpx", "httpx2")}
    unreachable |= {("aiohttp", "ClientError"), ("botocore", "HTTPClientError"), ("botocore", "ConnectionError")}
    busy = isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EREMOTEIO)
    if busy or isinstance(error, ConnectionError | TimeoutError) or names & unreachable:
        server = re.search(r"\b(https?|ftp|sftp|ssh|smb)://", doing)
        store, advice = ("server", "check the URL and the network") if server else ("object store", _STORE_ADVICE)
        return StoreUnreachable(f"{doing}: the {store} does not answer as it should ({one_line(error)})", advice)
    if names & {("botocore", "BotoCoreError"), ("botocore", "ClientError")} or isinstance(error, OSError):
        return SourceError(f"{doing}: the object store reports an error ({one_line(error)})", _STORE_ADVICE)
    return None


def _names(error: BaseException) -> set[tuple[str, str]]:
    """Return top-level module and name of each class of an error, so that comparing needs no import."""
    return {(cls.__module__.split(".")[0], cls.__name__) for cls in type(error).__mro__}


def _from_table(error: BaseException, doing: str) -> LancePrepError | None:
    names = _names(error)
    for module, classes in _TABLE.items():
        for name, row in classes.items():
            if (module, name) not in names:
                continue
            if not isinstance(row, tuple):
                return row(error, doing)
            kind, text, advice = row
            said = text.format(error=one_line(error), file=getattr(error, "filename", None) or one_line(error))
            return kind(f"{doing}: {said}", advice)
    return None


def _http(error: Any, doing: str) -> LancePrepError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return AccessDenied(f"{doing}: the Hub refuses access (HTTP {status})", _LOGIN)
    if status == 404:
        return SourceNotFound(f"{doing}: not found on the Hub", "check the name and the revision")
    if status == 429:
        return HubUnreachable(f"{doing}: the Hub refuses requests for now (HTTP 429)", _RATE_LIMIT)
    return HubUnreachable(f"{doing}: the Hub does not answer as it should ({one_line(error)})", _HUB_ADVICE)


def _recipe(error: Any, doing: str) -> LancePrepError:
    said = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        said.append(f"{name}: {item['msg']}" if name else str(item["msg"]).removeprefix("Value error, "))
    return RecipeError(f"{doing}: " + "; ".join(said), "`lance-prep build --help` lists the fields and their values")


_OFFLINE = "unset it; " + _HUB_ADVICE
_PRIVATE = "check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN"
_MEMORY = "use workers=1 or a smaller shuffle_batch_size"
_COLUMNS = "build files with other columns separately"

#: Top-level module -> class -> error, text and advice, or a function that makes the error. The most specific class is
#: first. An error matches if any class of its MRO does.
_TABLE: dict[str, dict[str, tuple[type[LancePrepError], str, str] | Callable[[Any, str], LancePrepError]]] = {
    "huggingface_hub": {
        "GatedRepoError": (AccessDenied, "gated, and this account has no access", _LOGIN),
        "DisabledRepoError": (AccessDenied, "disabled on the Hub", "use another one"),
        "RepositoryNotFoundError": (SourceNotFound, "no such repository on the Hub, or it is private", _PRIVATE),
        "RevisionNotFoundError": (SourceNotFound, "no such revision", "check the revision"),
        "LocalEntryNotFoundError": (HubUnreachable, f"{_NO_HUB}, and the cache does not have it", _HUB_ADVICE),
        "EntryNotFoundError": (SourceNotFound, "no such file in the repository", _PATH_ADVICE),
        "OfflineModeIsEnabled": (HubUnreachable, "HF_HUB_OFFLINE is set, so the Hub is not asked", _OFFLINE),
        "HfHubHTTPError": _http,
        "HFValidationError": (SourceNotFound, "not a valid Hub name ({error})", _PATH_ADVICE),
        "HfUriError": (SourceNotFound, "not a valid hf:// URL ({error})", _PATH_ADVICE),
    },
    # huggingface_hub ships httpx under either name, depending on its version.
    "httpx": {"HTTPError": (HubUnreachable, f"{_NO_HUB} ({{error}})", _HUB_ADVICE)},
    "httpx2": {"HTTPError": (HubUnreachable, f"{_NO_HUB} ({{error}})", _HUB_ADVICE)},
    "datasets": {
        "DatasetsError": (SourceNotFound, "{error}", _PATH_ADVICE),
        "EmptyDatasetError": (SourceNotFound, "{error}", _PATH_ADVICE),
    },
    "botocore": {
        "NoCredentialsError": (AccessDenied, "no S3 credentials", _STORE_LOGIN),
        "BotoCoreError": (SourceError, "{error}", _STORE_ADVICE),
        "ClientError": (SourceError, "{error}", _STORE_ADVICE),
    },
    "pydantic_core": {"ValidationError": _recipe},
    "pydantic": {"ValidationError": _recipe},
    "pyarrow": {
        "ArrowInvalid": (BadFile, "cut short, or not what its name says ({error})", _DAMAGED),
        "ArrowKeyError": (ColumnNotFound, "{error}", _COLUMNS),
        "ArrowTypeError": (BadFile, "{error}", _DAMAGED),
        "ArrowNotImplementedError": (BadFile, "{error}", _DAMAGED),
    },
    "zstandard": {"ZstdError": (BadFile, "damaged zstd data ({error})", _DAMAGED)},
    "zlib": {"error": (BadFile, "damaged gzip data ({error})", _DAMAGED)},
    "_lzma": {"LZMAError": (BadFile, "damaged xz data ({error})", _DAMAGED)},
    "gzip": {"BadGzipFile": (BadFile, "not gzip data ({error})", _DAMAGED)},
    "builtins": {
        "EOFError": (BadFile, "cut short ({error})", _DAMAGED),
        "PermissionError": (AccessDenied, "permission denied: {file}", _PERMISSION),
        "FileNotFoundError": (SourceNotFound, "no such file: {file}", _PATH_ADVICE),
        "IsADirectoryError": (SourceError, "is a folder: {file}", "name a file"),
        "NotADirectoryError": (SourceError, "not a folder: {file}", _PATH_ADVICE),
        "ConnectionError": (HubUnreachable, "the connection failed ({error})", _HUB_ADVICE),
        "TimeoutError": (HubUnreachable, "no answer in time ({error})", _HUB_ADVICE),
        "MemoryError": (LancePrepError, "out of memory", _MEMORY),
    },
}
