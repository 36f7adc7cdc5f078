"""The Hub: byte ranges of files at a pinned commit.

The requests are those of `HfFileSystem` (same URLs, headers, session and redirects, so `HF_ENDPOINT`, `HF_TOKEN` and
proxies work alike). Its file object is not used: it reads in blocks of 5 MiB whatever is asked for, and starts a range
over when the connection is cut in the middle. Here a range is fetched exactly, and a cut one continues where it was.
"""

from __future__ import annotations

import re
from typing import Any

from lance_prep.errors import SourceChanged
from lance_prep.fetch.web import HttpRanges
from lance_prep.hub_path import parse_hub_url
from lance_prep.hub_session import LIBRARY, guard_session
from lance_prep.model import SourceFile
from lance_prep.transport import Transport

_BLOB_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class HubRanges(HttpRanges):
    """Byte ranges of one file on the Hub. Threads may share it."""

    def __init__(self, file: SourceFile, transport: Transport) -> None:
        from huggingface_hub import hf_hub_url

        guard_session()
        self._token = transport.storage_options.get("hf_token")
        at = parse_hub_url(file.url)
        address = hf_hub_url(at.repo, at.path, repo_type="dataset", revision=at.revision)
        super().__init__(file, transport, address)

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        return {**build_hf_headers(library_name=LIBRARY, token=self._token), **super()._headers()}

    def _check(self, response: Any) -> None:
        """Refuse another blob than the planned one.

        The Hub's ETags are blob ids, as in the plan. Those of a mirror may be anything and prove nothing.
        """
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        first = response.history[0] if response.history else response
        tag = first.headers.get("X-Linked-ETag") or ("" if response.history else response.headers.get("ETag", ""))
        tag = tag.removeprefix("W/").strip('"')
        if len(tag) == len(self._identity) and _BLOB_ID.fullmatch(tag) and tag != self._identity:
            raise SourceChanged(
                f"{self._name}: blob {tag[:12]} now, {self._identity[:12]} when it was planned",
                "run the same command again",
            )
