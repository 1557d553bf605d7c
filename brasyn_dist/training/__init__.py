"""Training of generators and segmenters; trainer.py has the loop."""
