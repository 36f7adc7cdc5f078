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

from __future__ import annotations


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
