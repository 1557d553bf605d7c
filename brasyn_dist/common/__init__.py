"""Shared by all packages: atomic files, processes, logging, provenance, panels."""
