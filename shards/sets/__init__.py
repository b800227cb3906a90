"""What a shard set is, and what can be done with one: read, verify, index, remove from."""
