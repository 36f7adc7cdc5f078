"""Helpers of the source tests: make files, read a recipe's rows back."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lance_prep.ledger import Rejected, Tally
from lance_prep.model import Plan
from lance_prep.plan import make_plan
from lance_prep.recipe import Recipe
from lance_prep.source import SourceBatch, read_shard


def parquet_bytes(columns: dict[str, Any], *, row_group_size: int = 100, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size, **options)
    return sink.getvalue()


def plan_of(source: object, **fields: Any) -> Plan:
    return make_plan(Recipe(source=str(source), **{"layout": "documents", **fields}))


def rows_of(plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows that a plan reads, and the reasons of those that it rejects."""
    batches, _, rejected = read_plan(plan)
    return [row for batch in batches for row in batch.columns.to_pylist()], [r.reason for r in rejected]


def read_plan(plan: Plan) -> tuple[list[SourceBatch], Tally, list[Rejected]]:
    """All batches of all shards, and what was counted."""
    rejected: list[Rejected] = []
    tally = Tally(on_reject=rejected.append)
    batches = []
    for shard in plan.shards:
        for batch in read_shard(plan, shard, tally):
            assert batch.columns.schema == plan.schema
            assert len(batch.rows) == len(batch.columns)
            batch.columns.validate(full=True)
            batches.append(batch)
    delivered = sum(len(batch.rows) for batch in batches)
    assert tally.ledger.rows_in == delivered + tally.ledger.filtered + tally.ledger.rejected
    return batches, tally, rejected


def read(source: object, **fields: Any) -> tuple[list[Any], Tally, list[Rejected]]:
    """The first column's values, and what was counted."""
    batches, tally, rejected = read_plan(plan_of(source, **fields))
    return [value for batch in batches for value in batch.columns.column(0).to_pylist()], tally, rejected
