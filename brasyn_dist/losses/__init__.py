"""The objective, as pure functions with one value per sample: `ssim` (map, region mean), `tversky` and `objective` (all terms)."""
