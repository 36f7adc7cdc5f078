"""Files where they lie: local, on the Hub, in an object store. Exact byte ranges, fetched once, retried when cut.

Imports `errors` alone; `plan` reads footers and samples through it, `source` reads rows.
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.fetch.http import http_state
    from lance_prep.fetch.hub import HubPath, hub_api, hub_url_of, parse_hub_url
    from lance_prep.fetch.prefetch import Prefetch, RangeFile
    from lance_prep.fetch.ranges import Ranges, fsspec_of, identity_of, is_http, is_local, open_ranges, state_of
    from lance_prep.fetch.retry import Retries
    from lance_prep.fetch.stream import open_stream

__all__ = [
    "HubPath",
    "Prefetch",
    "RangeFile",
    "Ranges",
    "Retries",
    "fsspec_of",
    "http_state",
    "hub_api",
    "hub_url_of",
    "identity_of",
    "is_http",
    "is_local",
    "open_ranges",
    "open_stream",
    "parse_hub_url",
    "state_of",
]

__getattr__, __dir__ = lazy_exports(__name__)
