"""The end of a build: receipts in, one commit and a report out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Literal

from lance_prep.engine.decide import Decision, Existing, record_files
from lance_prep.engine.report import BuildReport
from lance_prep.engine.shard import BuildJob
from lance_prep.errors import OutputLocked, SourceError, counted
from lance_prep.layouts import LAYOUTS
from lance_prep.ledger import DocumentLengths, Ledger
from lance_prep.store import (
    LOADER,
    LOADER_FILE,
    MOST_NAMES,
    BuildRecord,
    ChatRecord,
    Journal,
    Lengths,
    Metadata,
    OutputLock,
    Receipt,
    SourceRecord,
    TokenizerRecord,
    asked,
    combine,
    portable_url,
    publish,
    published,
    receipts_of,
    recipe_as_json,
    versions_in_use,
    with_metadata,
    write_list,
)
from lance_prep.tokenizer import TokenizerSpec

#: What is written beside a dataset, if its ledger counts any of it.
BESIDE: tuple[Literal["rejected", "contaminated"], ...] = ("rejected", "contaminated")


def commit_build(
    decision: Decision,
    receipts: list[Receipt],
    lock: OutputLock,
    *,
    resumed: int,
    started: float,
    others: Iterable[Journal] = (),
) -> BuildReport:
    """Make a build's shards one version, and report.

    Args:
        lock: the output's, held.
        others: journals of unfinished builds, to be discarded with the leftovers.

    Raises:
        OutputLocked: another process has committed meanwhile.
        SourceChanged: a file was changed while it was read.
    """
    job, existing = decision.job, decision.existing
    assert job is not None
    builds, all_receipts = _gather(decision, job, receipts)
    metadata = _metadata(job, builds, all_receipts)
    _check_learned(job, metadata.ledger)
    if job.output.files.read(LOADER_FILE) is None:
        job.output.files.write(LOADER_FILE, LOADER)
    old = decision.before.fragments() if decision.before is not None else []
    new = [receipt.fragment for receipt in receipts if receipt.fragment is not None]
    journal = job.journal
    leftovers = job.output.leftovers(journal, receipts, overwritten=existing.number > 0, others=others)
    if job.output.is_local:
        leftovers.remove(lock)
    why = {"lance_prep.build": job.key}
    version = job.output.commit(with_metadata(job.schema, metadata), [*old, *new], on=existing.number, why=why)
    if not job.output.is_local:
        with suppress(OutputLocked):  # the version is committed; the process that took the lock over removes the rest
            leftovers.remove(lock)  # not before the commit: see `store.leftovers`
    journal.close(version)
    files = job.output.files
    rejected, contaminated = (
        publish(job.uri, files, builds, metadata.builds, job.output.transport, kind)
        if getattr(metadata.ledger, kind)
        else None
        for kind in BESIDE
    )
    report = _report(job.uri, metadata, version, time.monotonic() - started, "resumed" if resumed else "built")
    return replace(
        report,
        shards_resumed=resumed,
        retries=sum(receipt.retries for receipt in receipts),
        text_bytes=sum(receipt.text_bytes for receipt in receipts),
        rejected_file=rejected,
        contaminated_file=contaminated,
    )


def _check_learned(job: BuildJob, ledger: Ledger) -> None:
    """Refuse conversations from which nothing would be learned: training on them would change nothing.

    Raises:
        SourceError: the assistant wrote no token of any conversation, or all of them are rejected.
    """
    if job.spec is None or job.spec.chat is None or ledger.tokens_learned:
        return
    if not ledger.rows_used:
        if ledger.rejected:
            reason = max(ledger.reasons, key=lambda each: ledger.reasons[each], default="")
            said = f"none of {counted(ledger.rejected, 'conversation')} can be used, mostly because: {reason}"
            raise SourceError(
                f"{job.plan.recipe.asked}: {said}",
                "check messages, which names the columns, and the chat template",
            )
        return
    raise SourceError(
        f"{job.plan.recipe.asked}: the assistant wrote no token of {ledger.rows_used:,} conversations",
        "check the roles of the messages, and what the chat template puts into {% generation %}",
    )


def existing_report(existing: Existing, status: Literal["unchanged", "skipped"], seconds: float) -> BuildReport:
    """Return the report of a build that had nothing to do.

    An unchanged dataset whose build was killed before it wrote the quarantine file gets it now. The output's lock is
    held then, but not if the build was skipped.
    """
    there = existing.ours
    assert there is not None
    report = _report(there.uri, there.metadata, there.number, seconds, status)
    paths: dict[str, str | None] = dict.fromkeys(BESIDE)
    for kind in BESIDE:
        if not getattr(there.metadata.ledger, kind):
            continue
        paths[kind] = published(there.uri, there.files, there.metadata.builds, kind)
        if paths[kind] is None and status == "unchanged":
            paths[kind] = publish(there.uri, there.files, there.builds, there.metadata.builds, there.transport, kind)
    return replace(report, rejected_file=paths["rejected"], contaminated_file=paths["contaminated"])


def _report(
    uri: str,
    metadata: Metadata,
    version: int,
    seconds: float,
    status: Literal["built", "resumed", "unchanged", "skipped"],
) -> BuildReport:
    return BuildReport(
        status=status,
        uri=uri,
        version=version,
        rows=metadata.rows,
        tokens=metadata.tokens,
        ledger=metadata.ledger,
        content_hash=metadata.content_hash,
        shards=metadata.shards,
        seconds=seconds,
        recipe=metadata.recipe,
        lengths=metadata.lengths,
    )


def _gather(
    decision: Decision, job: BuildJob, receipts: list[Receipt]
) -> tuple[tuple[BuildRecord, ...], tuple[Receipt, ...]]:
    """Record the build and its source files. Return all builds of the new version, and their receipts, in order."""
    existing, before, files = decision.existing, decision.before, job.output.files
    found = record_files(job.plan, decision.digests, job.origin)
    sources = [replace(file, url=portable_url(file.url, job.uri)) for file in found]
    build = BuildRecord(
        key=job.key,
        how="append" if before else "overwrite" if existing.number else "build",
        version=existing.number + 1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        first_shard=decision.first_shard,
        shards=len(receipts),
        rows=sum(receipt.rows for receipt in receipts),
        tokens=sum(receipt.tokens for receipt in receipts),
        commit=job.plan.source.commit,
        files=len(sources),
        sources=write_list(files, sources),
        receipts=job.journal.record(receipts),
    )
    earlier = before.builds if before else ()
    old = [receipt for one in earlier for receipt in receipts_of(files, one)]
    return (*earlier, build), (*old, *receipts)


def _lengths(receipts: Iterable[Receipt]) -> Lengths | None:
    total = DocumentLengths()
    for receipt in receipts:
        if receipt.lengths is not None:
            total.merge(receipt.lengths)
    if not total.longest:
        return None
    return Lengths(total.quantile(0.5), total.quantile(0.99), total.longest, total.longest_doc_id)


def _metadata(job: BuildJob, builds: tuple[BuildRecord, ...], receipts: tuple[Receipt, ...]) -> Metadata:
    recipe, spec = job.plan.recipe, job.spec
    recorded = recipe_as_json(job.plan, job.uri)
    source = SourceRecord(**{**asdict(job.plan.source), "asked": asked(recorded)})
    if len(recorded["source"]) > MOST_NAMES and not isinstance(recorded["source"], str):
        recorded["source"] = []  # a shell may expand a glob to thousands of names: the list of source files has them
    ledger = Ledger()
    for receipt in receipts:
        ledger.add(receipt.ledger)
    return Metadata(
        recipe=recorded,
        source=source,
        tokenizer=_tokenizer(spec, recorded["tokenizer"] or spec.name, receipts) if spec else None,
        layout=recipe.layout,
        block_size=recipe.block_size if LAYOUTS[recipe.layout].packed else None,
        dtype=spec.dtype.name if spec else None,  # type: ignore[arg-type]
        seed=recipe.seed,
        ledger=ledger,
        content_hash=combine(receipt.content_hash for receipt in receipts if receipt.rows),
        rows=sum(build.rows for build in builds),
        tokens=sum(build.tokens for build in builds),
        shards=sum(build.shards for build in builds),
        files=sum(build.files for build in builds),
        build=builds[-1],
        builds=write_list(job.output.files, builds),
        lengths=_lengths(receipts),
        versions=versions_in_use(),
    )


def _tokenizer(spec: TokenizerSpec, name: str, receipts: Iterable[Receipt]) -> TokenizerRecord:
    backends = tuple(sorted({receipt.backend for receipt in receipts if receipt.backend}))
    chat = ChatRecord(spec.chat.sha256, spec.chat.template_sha256, spec.chat.origin) if spec.chat else None
    return TokenizerRecord(**{**spec.as_json(), "name": name}, backends=backends, chat=chat)
