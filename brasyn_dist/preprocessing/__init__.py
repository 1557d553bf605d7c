"""Preprocessing of volumes: statistics, normalisation, intensity scale, slicing."""
