"""Report: a dataset or a collection in, one HTML page out, for people who look rather than query."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.report.gather import ReportOptions, gather
    from lance_prep.report.page import render, write_report

__getattr__, __dir__, __all__ = lazy_exports(__name__)
