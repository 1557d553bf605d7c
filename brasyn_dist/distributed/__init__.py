"""Processes, devices and networks that are trained on all ranks."""
