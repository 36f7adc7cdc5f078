"""Turns a dataset or a collection into one HTML page, and its parts into HTML for notebooks."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.report.fragments import Shown, facts_html, flow_chart, in_notebook, table_html, tokens_html
    from lance_prep.report.gather import ReportOptions, gather
    from lance_prep.report.page import render, write_report
    from lance_prep.report.palette import LIGHT, TERMINAL_MATCH, TERMINAL_TEXT, TERMINAL_TINTS

__getattr__, __dir__, __all__ = lazy_exports(__name__)
