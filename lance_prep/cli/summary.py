"""What a build did, and what one would do, as text."""

from __future__ import annotations

from lance_prep.cli.common import count, size, span, table
from lance_prep.engine import BuildPreview, BuildReport, RunOptions, default_workers
from lance_prep.ledger import Ledger
from lance_prep.plan import Plan
from lance_prep.recipe import Recipe


def summary(report: BuildReport, recipe: Recipe) -> str:
    """The end of a build: what there is now, and where each row and token went."""
    if report.status in ("unchanged", "skipped"):
        state = "is up to date" if report.status == "unchanged" else "exists and was left alone"
        return (
            f"{report.uri} {state}: version {report.version}, {report.rows:,} rows, {report.tokens:,} tokens, "
            f"content hash {report.content_hash}"
        )
    took = span(report.seconds)
    speed = (
        f", {size(report.text_bytes / report.seconds)}/s of text"
        if report.seconds > 0 and not report.shards_resumed
        else ""
    )
    rows = [
        ("dataset", f"{report.uri}, version {report.version}"),
        ("rows", f"{report.rows:,}"),
        ("tokens", f"{report.tokens:,}"),
        (
            "shards",
            f"{report.shards}" + (f", {report.shards_resumed} from an earlier run" if report.shards_resumed else ""),
        ),
        ("time", f"{took}{speed}" + (f", {report.retries} requests retried" if report.retries else "")),
        ("content hash", report.content_hash),
        *ledger_rows(report.ledger, recipe.layout),
    ]
    if report.rejected_file:
        rows.append(("rejected rows", report.rejected_file))
    return table(rows)


def ledger_rows(ledger: Ledger, layout: str) -> list[tuple[str, str]]:
    """The ledger, a line a unit."""
    rows = [
        (
            "source rows",
            f"{ledger.rows_in:,} = {ledger.rows_used:,} used + {ledger.empty:,} empty + {ledger.filtered:,} filtered "
            f"+ {ledger.rejected:,} rejected + {ledger.over_limit:,} over limit",
        )
    ]
    if ledger.reasons:
        rows.append(("rejected for", ", ".join(f"{reason}: {n:,}" for reason, n in sorted(ledger.reasons.items()))))
    if layout == "lines":
        rows.append(
            (
                "lines",
                f"{ledger.lines_in:,} = {ledger.lines_used:,} used + {ledger.lines_empty:,} empty "
                f"+ {ledger.lines_over_limit:,} over limit",
            )
        )
    if layout != "raw":
        rows.append(
            (
                "tokens made",
                f"{ledger.tokens_in:,} = {ledger.tokens_written:,} written + {ledger.tokens_over_limit:,} over limit",
            )
        )
    if layout == "blocks":
        slots = ledger.tokens_written + ledger.padding
        share = f" ({ledger.padding / slots:.2%})" if slots else ""
        cut = f"{ledger.documents_cut:,} documents cut"
        rows.append(("packing", f"{ledger.tokens_written:,} tokens kept, {ledger.padding:,} padding{share}, {cut}"))
    if ledger.rows_checked or ledger.shards_by_reference:
        turned = (
            f", {ledger.shards_by_reference} shards turned over to tokenizers" if ledger.shards_by_reference else ""
        )
        rows.append(("checked", f"{ledger.rows_checked:,} texts against tokenizers{turned}"))
    return rows


def preview_text(preview: BuildPreview, options: RunOptions) -> str:
    """Describe what a build would do, for `--dry-run`."""
    would = [("would", f"{preview.action}: {preview.why}")]
    if preview.action not in ("nothing", "skip", "refuse"):
        workers = min(options.workers or default_workers(), len(preview.plan.shards))
        would.append(("workers", f"{workers}"))
    return plan_text(preview.plan, would)


def plan_text(plan: Plan, would: list[tuple[str, str]]) -> str:
    recipe, source = plan.recipe, plan.source
    pinned = f" at {source.commit} ({source.revision})" if source.commit else ""
    rows = [
        ("source", f"{source.asked}{pinned}"),
        *[(name, value) for name, value in (("config", source.config), ("split", source.split)) if value],
        ("files", f"{len(plan.files)}, {size(sum(file.size for file in plan.files))}"),
        *([("left out", plan.left_out)] if plan.left_out else []),
        ("shards", f"{len(plan.shards)}"),
        ("rows", f"{plan.rows:,}" if plan.rows is not None else "not known before they are read"),
        ("column", recipe.text_column or ("template" if recipe.template else "-")),
        *([("text unit", f"a row is a {recipe.text_unit}")] if recipe.text_unit else []),
        *([("columns kept", ", ".join(recipe.keep_columns))] if recipe.keep_columns else []),
        *([("filter", recipe.filter)] if recipe.filter else []),
        (
            "layout",
            recipe.layout + (f", {recipe.block_size} tokens, {recipe.packing}" if recipe.layout == "blocks" else ""),
        ),
        *([("tokenizer", recipe.tokenizer or "-")] if recipe.layout != "raw" else []),
        (
            "order",
            f"batches of {recipe.shuffle_batch_size:,} rows shuffled, seed {recipe.seed}"
            if recipe.shuffle
            else "as in the source",
        ),
        *([("max rows", f"{recipe.max_rows:,}")] if recipe.max_rows else []),
        *would,
    ]
    lines = [table(rows), ""]
    for shard in plan.shards:
        parts = ", ".join(
            plan.files[part.file].url + (f" [{part.start:,}:{part.stop:,}]" if part.stop else "")
            for part in shard.parts[:3]
        )
        more = f" and {len(shard.parts) - 3} more" if len(shard.parts) > 3 else ""
        known = f", {count(shard.rows)} rows" if shard.rows is not None else ""
        lines.append(f"shard {shard.index}: {size(shard.bytes)}{known}: {parts}{more}")
    return "\n".join(lines)
