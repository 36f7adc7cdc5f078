"""Hub stage: datasets to and from the Hugging Face Hub, one commit at a time."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.hub.cached import cached_dataset
    from lance_prep.hub.commit import HubCommit, commit_files
    from lance_prep.hub.fetching import PullProgress
    from lance_prep.hub.pull import PullReport, pull
    from lance_prep.hub.push import PushedInfo, PushOptions, PushReport, push
    from lance_prep.hub.repo import HubRepo, branch_head, check_token, ensure_repo, list_files, set_tag
    from lance_prep.hub.snapshot import Snapshot
    from lance_prep.hub.upload import HubFile, UploadedFile, UploadProgress, upload_files

__getattr__, __dir__, __all__ = lazy_exports(__name__)
