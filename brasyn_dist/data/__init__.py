"""Data, from BraTS folders to batches on the device. Modules in the order in which it passes them:

phantom               synthetic cases, where there are no real ones
nifti, slicing        one volume in canonical form; volumes to slices and back
cohorts, split        cases of several folders, checked; whole patients held out
survey, statistics    every case read once: checks, exact intensity statistics
spool, make_shards    pass 2: slices encoded, shuffled into shards; summary says what came of it
codec, header, shards, index    the format: a slice as bytes, a tar of slices, a set of tars
source, cache, reader           bytes of a shard set from a folder or URL, slices from bytes
plan, stream, normalise         which slices form batch k; batches in order; what the networks see
"""
