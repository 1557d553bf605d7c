"""From a shard set to batches: storage, node-local cache, order of samples, reader, loader, augmentation."""
