"""Format of a shard set: a sample (slice or chunk) as bytes, a tar file of samples, metadata, index."""
