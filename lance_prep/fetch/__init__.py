"""Read files where they are: on this machine, the Hub, a web server or in an object store.

Byte ranges are exact, fetched once, and continued where a connection was cut.
"""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.fetch.hub import HubRanges
    from lance_prep.fetch.prefetch import RANGE_BYTES, Prefetch, Range, RangeFile, split_range
    from lance_prep.fetch.ranges import Ranges, identity_of, open_ranges, state_of
    from lance_prep.fetch.stream import open_stream, read_head
    from lance_prep.fetch.web import http_state

__getattr__, __dir__, __all__ = lazy_exports(__name__)
