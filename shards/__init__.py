"""From a corpus on disk to a micro-batch: manifest, continuations, WebDataset shards, plan, reader, collate."""
