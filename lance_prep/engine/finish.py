"""The end of a build: receipts in, one commit and a report out."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any, Literal

from lance_prep.engine.changes import record_files
from lance_prep.engine.output import Decision, Existing
from lance_prep.engine.report import BuildReport
from lance_prep.engine.shard import BuildJob
from lance_prep.ledger import Ledger
from lance_prep.store.content_hash import combine
from lance_prep.store.files import files_of
from lance_prep.store.lance_io import commit
from lance_prep.store.leftovers import remove_leftovers
from lance_prep.store.metadata import FORMAT, TOKENIZER_FILE, versions_in_use, with_metadata
from lance_prep.store.receipt import Journal, Receipt, receipts_of


def commit_build(decision: Decision, receipts: list[Receipt], *, resumed: int, started: float) -> BuildReport:
    """Make a build's shards one version, and report.

    Raises:
        OutputLocked: somebody else has committed meanwhile.
        SourceChanged: a file was changed while it was read.
    """
    job, existing = decision.job, decision.existing
    assert job is not None
    earlier = existing if decision.appends else Existing()
    metadata = _metadata(decision, earlier, receipts)
    if job.spec is not None:
        job.files().write(TOKENIZER_FILE, job.spec.file)
    new = [receipt.fragment for receipt in receipts if receipt.fragment is not None]
    journal = Journal(job.files(), job.key)
    remove_leftovers(job.uri, keep=[*earlier.fragments, *new], overwritten=existing.version > 0, journal=journal)
    version = commit(
        job.uri,
        with_metadata(job.schema, metadata),
        [*earlier.fragments, *new],
        read_version=existing.version,
        properties={"lance_prep.build": job.key},
        storage_options=job.storage_options,
    )
    journal.close(version)
    rejected_file = _write_rejected(job, metadata)
    report = _report(job.uri, metadata, version, time.monotonic() - started, "resumed" if resumed else "built")
    return replace(
        report,
        shards_resumed=resumed,
        retries=sum(receipt.retries for receipt in receipts),
        text_bytes=sum(receipt.text_bytes for receipt in receipts),
        rejected_file=rejected_file,
    )


def existing_report(
    uri: str, existing: Existing, status: Literal["unchanged", "skipped"], seconds: float
) -> BuildReport:
    """Return the report of a build that had nothing to do."""
    assert existing.metadata is not None
    report = _report(uri, existing.metadata, existing.version, seconds, status)
    return replace(report, rejected_file=_rejected_path(uri, existing.metadata))


def _report(uri: str, metadata: dict[str, Any], version: int, seconds: float, status: Any) -> BuildReport:
    return BuildReport(
        status=status,
        uri=uri,
        version=version,
        rows=metadata["rows"],
        tokens=metadata["tokens"],
        ledger=Ledger(**metadata["ledger"]),
        content_hash=metadata["content_hash"],
        shards=sum(build["shards"] for build in metadata["builds"]),
        seconds=seconds,
    )


def _metadata(decision: Decision, earlier: Existing, receipts: list[Receipt]) -> dict[str, Any]:
    job, replaced = decision.job, decision.existing.version
    assert job is not None
    plan, spec = job.plan, job.spec
    before = earlier.metadata or {"builds": [], "source": {"files": []}, "rows": 0, "tokens": 0, "ledger": {}}
    ledger = Ledger(**before["ledger"])
    for receipt in receipts:
        ledger.add(receipt.ledger)
    files = record_files(plan, job.storage_options)
    rows, tokens = sum(r.rows for r in receipts), sum(r.tokens for r in receipts)
    build = {
        "key": job.key,
        "how": "append" if earlier.metadata else "overwrite" if replaced else "build",
        "version": replaced + 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "first_shard": decision.first_shard,
        "shards": len(receipts),
        "rows": rows,
        "tokens": tokens,
        "commit": plan.source.commit,
        "files": [file["url"] for file in files],
    }
    everything = [r for b in before["builds"] for r in receipts_of(job.files(), b)] + receipts
    return {
        "format": FORMAT,
        "recipe": plan.recipe.as_json(),
        "source": {**asdict(plan.source), "files": before["source"]["files"] + files},
        "tokenizer": {**spec.as_json(), "backends": _backends(everything)} if spec else None,
        "layout": plan.recipe.layout,
        "block_size": plan.recipe.block_size if plan.recipe.layout == "blocks" else None,
        "dtype": str(spec.dtype) if spec else None,
        "seed": plan.recipe.seed,
        "ledger": ledger.as_json(),
        "content_hash": combine(receipt.content_hash for receipt in everything if receipt.rows),
        "rows": before["rows"] + rows,
        "tokens": before["tokens"] + tokens,
        "builds": [*before["builds"], build],
        "versions": versions_in_use(),
    }


def _backends(receipts: list[Receipt]) -> list[str]:
    return sorted({receipt.backend for receipt in receipts if receipt.backend})


def _write_rejected(job: BuildJob, metadata: dict[str, Any]) -> str | None:
    """Write the quarantine file of the whole version beside it, if a row was rejected; returns its path."""
    path = _rejected_path(job.uri, metadata)
    if path is not None:
        files, folder = job.files(), job.uri.rpartition("/")[0]
        lines = [
            Journal(files, build["key"]).rejected(receipt.shard)
            for build in metadata["builds"]
            for receipt in receipts_of(files, build)
            if receipt.ledger.rejected
        ]
        files_of(folder or "/", job.storage_options).write(path.rpartition("/")[2], b"".join(lines))
    return path


def _rejected_path(uri: str, metadata: dict[str, Any]) -> str | None:
    return f"{uri.removesuffix('.lance')}.rejected.jsonl" if metadata["ledger"]["rejected"] else None
