"""From cohort folders to a shard set: options, patient-level split, reading, staging, tar files."""
