"""The objective, as pure functions with one value per sample: `ssim` (map, region mean) and `objective` (all terms)."""
