"""Format of a shard set: a slice as bytes, a tar file of slices, the metadata and the index of a set."""
