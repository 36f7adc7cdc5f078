"""Every error that lance-prep raises on purpose, and the one seam where others' errors become ours.

    LancePrepError
    ├── UsageError              wrong or contradicting options                    exit 2
    ├── RecipeError             a recipe that is not one: unknown name, bad field
    ├── SourceError             a source that cannot be read
    │   ├── SourceNotFound      no such file, repository, config, split, revision
    │   ├── ColumnNotFound      no such column; says which there are
    │   ├── SourceChanged       the source is not what it was when it was planned
    │   ├── BadFile             cut short, or not the format its name says
    │   ├── AccessDenied        gated, private, or no permission
    │   └── HubUnreachable      no answer from the Hub
    ├── TokenizerError          not a tokenizer, or it lacks a token that is needed
    ├── RowRejected             `--strict`: a row that would have been rejected
    ├── OutputError             the output cannot be written
    │   ├── OutputExists        something else is there already
    │   ├── OutputLocked        another process is building into it
    │   └── DiskFull
    ├── DatasetError            not a dataset of ours, or a version that is not there
    │   └── StateMismatch       a checkpoint made on another dataset, version, seed or block size
    └── Interrupted             stopped by a signal; the same command goes on             exit 1

Each says what is wrong, with the values (`str(error)`), and what to do about it (`error.advice`).
"""

# Names say what happened, as httpx and grain do; the suffix Error is for the branches of the tree.

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any


class LancePrepError(Exception):
    """Base of all errors of this package.

    Args:
        message: what is wrong, with the values, in one line.
        advice: what to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

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


class DiskFull(OutputError):
    pass


class DatasetError(LancePrepError):
    pass


class StateMismatch(DatasetError):
    pass


class Interrupted(LancePrepError):
    pass


HUB_ADVICE = (
    "check the network, or set HF_ENDPOINT to a mirror, or build from a local path; "
    "`lance-prep build sample` needs no network"
)
_LOGIN = "ask for access on the page of the dataset, then log in with `hf auth login` or set HF_TOKEN"
_SPACE = "free some space or write elsewhere; the same command then goes on where it stopped"
_S3 = "check the bucket, the region and the endpoint"
_S3_LOGIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_DAMAGED = "get the file again, or leave it out; its extension must say what it is"
_PATH_ADVICE = (
    "check the spelling; a source is a local file, folder or glob, a Hub id owner/name, or an hf:// or s3:// URL"
)
_PERMISSION = "change the permissions, or name another path"

_STD = "builtins"
_HUB = "huggingface_hub"
_Maker = Callable[[Any, str], LancePrepError]


def _line(error: BaseException) -> str:
    """The first line of an error's own message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _simple(kind: type[LancePrepError], text: str, advice: str) -> _Maker:
    return lambda error, doing: kind(text.format(doing=doing, error=_line(error)), advice)


def _http(error: Any, doing: str) -> LancePrepError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return AccessDenied(f"{doing}: the Hub refuses access (HTTP {status})", _LOGIN)
    if status == 404:
        return SourceNotFound(f"{doing}: not found on the Hub", "check the name and the revision")
    return HubUnreachable(f"{doing}: the Hub does not answer as it should ({_line(error)})", HUB_ADVICE)


def _recipe(error: Any, doing: str) -> LancePrepError:
    said = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        said.append(f"{name}: {item['msg']}" if name else str(item["msg"]).removeprefix("Value error, "))
    return RecipeError(f"{doing}: " + "; ".join(said), "`lance-prep build --help` lists the fields and what they take")


def _os_error(error: OSError, doing: str) -> LancePrepError | None:
    text = str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return DiskFull(f"{doing}: no space left on the disk", _SPACE)
    if error.errno == errno.EROFS:
        return OutputError(f"{doing}: read-only file system", _PERMISSION)
    if "Couldn't deserialize thrift" in text or "Unexpected end of stream" in text or "Corrupt" in text:
        return BadFile(f"{doing}: cut short or damaged ({_line(error)})", _DAMAGED)
    return None


def _named(error: OSError, doing: str) -> str:
    return f"{doing}: {error.filename}" if error.filename else f"{doing}: {_line(error)}"


# Top-level module and class name (so that nothing is imported to compare), most specific first. An error matches where
# any class of its MRO does.
_TABLE: tuple[tuple[str, str, _Maker], ...] = (
    (
        _HUB,
        "GatedRepoError",
        _simple(AccessDenied, "{doing}: gated, and this account has no access", _LOGIN),
    ),
    (_HUB, "DisabledRepoError", _simple(AccessDenied, "{doing}: disabled on the Hub", "take another one")),
    (
        _HUB,
        "RepositoryNotFoundError",
        _simple(
            SourceNotFound,
            "{doing}: no such repository on the Hub, or it is private",
            "check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN",
        ),
    ),
    (
        _HUB,
        "RevisionNotFoundError",
        _simple(SourceNotFound, "{doing}: no such revision", "check --revision"),
    ),
    (
        _HUB,
        "LocalEntryNotFoundError",
        _simple(HubUnreachable, "{doing}: the Hub cannot be reached, and the cache does not have it", HUB_ADVICE),
    ),
    (
        _HUB,
        "EntryNotFoundError",
        _simple(SourceNotFound, "{doing}: no such file in the repository", _PATH_ADVICE),
    ),
    (
        _HUB,
        "OfflineModeIsEnabled",
        _simple(
            HubUnreachable,
            "{doing}: HF_HUB_OFFLINE is set, so the Hub is not asked",
            "unset it; " + HUB_ADVICE,
        ),
    ),
    (_HUB, "HfHubHTTPError", _http),
    (
        _HUB,
        "HFValidationError",
        _simple(SourceNotFound, "{doing}: not a name of the Hub ({error})", _PATH_ADVICE),
    ),
    (_HUB, "HfUriError", _simple(SourceNotFound, "{doing}: not an hf:// URL ({error})", _PATH_ADVICE)),
    ("httpx", "HTTPError", _simple(HubUnreachable, "{doing}: the Hub cannot be reached ({error})", HUB_ADVICE)),
    ("httpx2", "HTTPError", _simple(HubUnreachable, "{doing}: the Hub cannot be reached ({error})", HUB_ADVICE)),
    ("datasets", "DatasetsError", _simple(SourceNotFound, "{doing}: {error}", _PATH_ADVICE)),
    ("datasets", "EmptyDatasetError", _simple(SourceNotFound, "{doing}: {error}", _PATH_ADVICE)),
    (
        "botocore",
        "NoCredentialsError",
        _simple(AccessDenied, "{doing}: no S3 credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ),
    (
        "botocore",
        "BotoCoreError",
        _simple(SourceError, "{doing}: {error}", "check the bucket, the region and the endpoint"),
    ),
    (
        "botocore",
        "ClientError",
        _simple(SourceError, "{doing}: {error}", "check the bucket, the region and the endpoint"),
    ),
    ("pydantic_core", "ValidationError", _recipe),
    ("pydantic", "ValidationError", _recipe),
    (
        "pyarrow",
        "ArrowInvalid",
        _simple(BadFile, "{doing}: cut short, or not what its name says ({error})", _DAMAGED),
    ),
    (
        "pyarrow",
        "ArrowKeyError",
        _simple(ColumnNotFound, "{doing}: {error}", "build files of different columns one by one"),
    ),
    ("pyarrow", "ArrowTypeError", _simple(BadFile, "{doing}: {error}", _DAMAGED)),
    ("pyarrow", "ArrowNotImplementedError", _simple(BadFile, "{doing}: {error}", _DAMAGED)),
    ("zstandard", "ZstdError", _simple(BadFile, "{doing}: damaged zstd data ({error})", _DAMAGED)),
    ("zlib", "error", _simple(BadFile, "{doing}: damaged gzip data ({error})", _DAMAGED)),
    ("_lzma", "LZMAError", _simple(BadFile, "{doing}: damaged xz data ({error})", _DAMAGED)),
    ("gzip", "BadGzipFile", _simple(BadFile, "{doing}: not gzip data ({error})", _DAMAGED)),
    (_STD, "EOFError", _simple(BadFile, "{doing}: cut short ({error})", _DAMAGED)),
    (
        _STD,
        "PermissionError",
        lambda e, doing: AccessDenied(_named(e, f"{doing}: permission denied"), _PERMISSION),
    ),
    (
        _STD,
        "FileNotFoundError",
        lambda e, doing: SourceNotFound(_named(e, f"{doing}: no such file"), _PATH_ADVICE),
    ),
    (_STD, "IsADirectoryError", lambda e, doing: SourceError(_named(e, f"{doing}: is a folder"), "name a file")),
    (_STD, "NotADirectoryError", lambda e, doing: SourceError(_named(e, f"{doing}: not a folder"), _PATH_ADVICE)),
    (_STD, "ConnectionError", _simple(HubUnreachable, "{doing}: the connection failed ({error})", HUB_ADVICE)),
    (_STD, "TimeoutError", _simple(HubUnreachable, "{doing}: no answer in time ({error})", HUB_ADVICE)),
    (
        _STD,
        "MemoryError",
        _simple(
            LancePrepError,
            "{doing}: out of memory",
            "use --workers 1 or a smaller --shuffle-batch-size",
        ),
    ),
)


def translate_output(error: BaseException, uri: str) -> LancePrepError | None:
    """What the system or Lance raised while something was written, as one of ours.

    Args:
        error: what was raised; one of ours comes back as it is.
        uri: of the dataset.

    Returns:
        The error to raise (`raise ours from error`), or None for one that has nothing to do with writing.
    """
    if isinstance(error, LancePrepError):
        return error
    if not isinstance(error, OSError) and "LanceError(" not in str(error):
        return None
    if isinstance(error, OSError) and (ours := _os_error(error, f"writing {uri}")) is not None:
        return ours
    text = str(error)
    if "NoSuchBucket" in text:
        return OutputError(f"writing {uri}: no such bucket", "make it, or check the spelling")
    if any(said in text for said in ("403 Forbidden", "401 Unauthorized", "AccessDenied", "Unauthenticated")):
        return OutputError(f"writing {uri}: the object store refuses access", f"{_S3_LOGIN}, and {_S3}")
    if isinstance(error, PermissionError):
        return OutputError(_named(error, f"writing {uri}: permission denied"), _PERMISSION)
    if isinstance(error, FileNotFoundError) or "Not found" in text:
        return OutputError(f"{uri} was removed while it was being built", "run the same command again")
    advice = "check the disk; " if "://" not in uri else f"{_S3}; "
    return OutputError(f"writing {uri}: {_line(error)}", advice + "the same command goes on where it stopped")


def translate(error: BaseException, *, doing: str) -> LancePrepError | None:
    """Another library's exception as one of ours.

    Args:
        error: what was raised; one of ours comes back as it is.
        doing: what was being done, with the name of the thing, such as `reading /data/x.parquet`; empty where it is
            not known.

    Returns:
        The error to raise (`raise ours from error`), or None for an exception that is in no row of the table: a bug, or
        something that nobody has thought of, whose traceback is worth seeing.
    """
    if isinstance(error, LancePrepError):
        return error
    ours = _ours(error, doing)
    if ours is None or doing:
        return ours
    return type(ours)(str(ours).removeprefix(": "), ours.advice)


def _ours(error: BaseException, doing: str) -> LancePrepError | None:
    if isinstance(error, OSError) and (ours := _os_error(error, doing)) is not None:
        return ours
    names = {(cls.__module__.split(".")[0], cls.__name__) for cls in type(error).__mro__}
    for module, name, make in _TABLE:
        if (module, name) in names:
            return make(error, doing)
    return None
