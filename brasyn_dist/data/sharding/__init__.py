"""From cohort folders to a shard set: options, patient-level split, scan, staging, tar files."""
