"""From shard sets to micro-batches: plan, reader, collate."""
