"""Store stage: record batches and receipts in, one fragment a shard and one commit a build out."""
