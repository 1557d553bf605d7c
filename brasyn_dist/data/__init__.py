"""Data: from case folders to batches on the host.

case_folders, nifti    cases of cohort folders; volumes in one canonical form
sharding/              cohort folders to a shard set: reading, staging, tar files
format/                the shard set: a slice or chunk as bytes, a tar file of samples, the index of a set
loading/               storage and cache, sample order, batches of slices or patches, read ahead by threads
qc/                    quality control of cohort folders
patients, label_editions, case_notes    what is decided or reported about the cases
"""
