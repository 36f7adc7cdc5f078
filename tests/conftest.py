"""The tests need no network: huggingface_hub is pointed to a Hub on loopback before anything imports it.

`huggingface_hub` and `datasets` copy `HF_ENDPOINT` and `HF_HOME` into constants when they are imported, so one server
serves the whole run, and the `hub` fixture empties it for each test.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.loopback_hub import LoopbackHub

_hub = LoopbackHub()
_hub.__enter__()
atexit.register(_hub.__exit__)
_home = tempfile.mkdtemp(prefix="lance-prep-hf-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ.update(
    HF_ENDPOINT=_hub.url,
    HF_HOME=_home,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_UPDATE_DOWNLOAD_COUNTS="0",  # or `datasets` asks a bucket of its own, wherever HF_ENDPOINT points
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)
for name in (
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HUGGING_FACE_HUB_TOKEN",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
):
    os.environ.pop(name, None)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty Hub at `HF_ENDPOINT`, for this process and for those that it starts."""
    _hub.reset()
    yield _hub
    _hub.reset()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a byte-level tokenizer with `<|endoftext|>`."""
    from tests import tokenizers_made as made  # imports huggingface_hub, so after the environment is set

    return made.save(tmp_path_factory.mktemp("tokenizer"), made.byte_level(), eos_token="<|endoftext|>")
