"""Evaluation: image and segmentation metrics, baselines, score tables, paired tests."""
