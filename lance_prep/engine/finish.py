"""The end of a build: receipts in, one commit and a report out."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from lance_prep.engine.output import Existing
from lance_prep.engine.report import BuildReport
from lance_prep.engine.shard import BuildJob
from lance_prep.ledger import Ledger
from lance_prep.store.content_hash import combine
from lance_prep.store.files import files_of
from lance_prep.store.lance_io import commit
from lance_prep.store.metadata import FORMAT, TOKENIZER_FILE, versions_in_use, with_metadata
from lance_prep.store.receipt import Journal, Receipt


def commit_build(
    job: BuildJob, existing: Existing, receipts: list[Receipt], *, resumed: int, started: float
) -> BuildReport:
    """Make a build's shards one version, and report.

    Raises:
        OutputLocked: somebody else has committed meanwhile.
    """
    ledger = Ledger()
    for receipt in receipts:
        ledger.add(receipt.ledger)
    metadata = _metadata(job, receipts, ledger)
    if job.spec is not None:
        job.files().write(TOKENIZER_FILE, job.spec.file)
    rejected_file = _collect_rejected(job, receipts) if ledger.rejected else None
    version = commit(
        job.uri,
        with_metadata(job.schema, metadata),
        [receipt.fragment for receipt in receipts if receipt.fragment is not None],
        read_version=existing.version,
        properties={"lance_prep.build": job.key},
        storage_options=job.storage_options,
    )
    report = _report(job, metadata, ledger, version, time.monotonic() - started, "resumed" if resumed else "built")
    return replace(
        report,
        shards_resumed=resumed,
        retries=sum(receipt.retries for receipt in receipts),
        text_bytes=sum(receipt.text_bytes for receipt in receipts),
        rejected_file=rejected_file,
    )


def unchanged_report(job: BuildJob, existing: Existing, seconds: float) -> BuildReport:
    """The report of a build that found its own result."""
    assert existing.metadata is not None
    ledger = Ledger(**existing.metadata["ledger"])
    return _report(job, existing.metadata, ledger, existing.version, seconds, "unchanged")


def _report(
    job: BuildJob, metadata: dict[str, Any], ledger: Ledger, version: int, seconds: float, status: Any
) -> BuildReport:
    return BuildReport(
        status=status,
        uri=job.uri,
        version=version,
        rows=metadata["rows"],
        tokens=metadata["tokens"],
        ledger=ledger,
        content_hash=metadata["content_hash"],
        shards=sum(build["shards"] for build in metadata["builds"]),
        seconds=seconds,
    )


def _metadata(job: BuildJob, receipts: list[Receipt], ledger: Ledger) -> dict[str, Any]:
    plan, spec = job.plan, job.spec
    content_hash = combine(receipt.content_hash for receipt in receipts if receipt.rows)
    rows, tokens = sum(r.rows for r in receipts), sum(r.tokens for r in receipts)
    return {
        "format": FORMAT,
        "recipe": plan.recipe.as_json(),
        "source": {**asdict(plan.source), "files": [asdict(file) for file in plan.files]},
        "tokenizer": {**spec.as_json(), "backends": sorted({r.backend for r in receipts if r.backend})}
        if spec
        else None,
        "layout": plan.recipe.layout,
        "block_size": plan.recipe.block_size if plan.recipe.layout == "blocks" else None,
        "dtype": str(spec.dtype) if spec else None,
        "seed": plan.recipe.seed,
        "ledger": ledger.as_json(),
        "content_hash": content_hash,
        "rows": rows,
        "tokens": tokens,
        "builds": [
            {
                "key": job.key,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "shards": len(receipts),
                "rows": rows,
                "tokens": tokens,
            }
        ],
        "versions": versions_in_use(),
    }


def _collect_rejected(job: BuildJob, receipts: list[Receipt]) -> str:
    """Write the quarantine file beside the dataset; returns its path."""
    journal = Journal(job.files(), job.key)
    folder, _, name = job.uri.rpartition("/")
    name = f"{name.removesuffix('.lance')}.rejected.jsonl"
    lines = b"".join(journal.rejected(r.shard) for r in receipts if r.ledger.rejected)
    files_of(folder or "/", job.storage_options).write(name, lines)
    return f"{folder}/{name}"
