"""Training of generators, segmenters and networks of volumes; trainer.py has the loop."""
