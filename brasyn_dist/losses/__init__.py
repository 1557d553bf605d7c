"""The objective as functions with one value per sample: `ssim`, `tversky`, and `objective` (all terms)."""
