"""From a shard set to batches: storage, node-local cache, sample order, reader, slices or patches."""
