"""Data: from case folders to batches on the host.

case_folders, nifti    cases of cohort folders; volumes in one canonical form
sharding/              cohort folders to a shard set: reading, staging, tar files
format/                the shard set: a slice as bytes, a tar file of slices, the index of a set
loading/               storage and cache, order of samples, batches read ahead by threads
qc/                    quality control of cohort folders
"""
