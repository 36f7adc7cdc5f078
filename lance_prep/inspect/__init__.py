"""Inspect stage: a dataset in, what it is out. Reads what is on disk and trusts nothing."""

from lance_prep.inspect.against import SourceCheck
from lance_prep.inspect.diff import Difference, diff_versions
from lance_prep.inspect.found import Verification
from lance_prep.inspect.opened import Opened, open_ours
from lance_prep.inspect.rows import ShownRow, show_rows
from lance_prep.inspect.verify import Listener, verify, verify_dataset
from lance_prep.inspect.versions import Version, list_versions

__all__ = [
    "Difference",
    "Listener",
    "Opened",
    "ShownRow",
    "SourceCheck",
    "Verification",
    "Version",
    "diff_versions",
    "list_versions",
    "open_ours",
    "show_rows",
    "verify",
    "verify_dataset",
]
