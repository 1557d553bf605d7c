"""Preprocessing of volumes: statistics, normalisation, intensity scale, slices, chunks."""
