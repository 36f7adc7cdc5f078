"""Inspect stage: a dataset in, what it is out. Reads what is on disk and trusts nothing."""

from lance_prep.inspect.opened import Opened, open_ours
from lance_prep.inspect.rows import ShownRow, show_rows
from lance_prep.inspect.verify import Verification, verify

__all__ = ["Opened", "ShownRow", "Verification", "open_ours", "show_rows", "verify"]
