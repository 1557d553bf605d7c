"""Packages of the wheel; the rest is in pyproject.toml. Three top-level folders become package data."""

from setuptools import find_packages, setup

DATA = ("configs", "launch", "slurm")

setup(
    packages=[*find_packages(include=["brasyn_dist*"]), *(f"brasyn_dist.{name}" for name in DATA)],
    package_dir={f"brasyn_dist.{name}": name for name in DATA},
    package_data={
        "brasyn_dist": ["py.typed"],
        "brasyn_dist.report": ["templates/*.j2", "third_party/*"],
        **{f"brasyn_dist.{name}": ["**/*.yaml", "*.sbatch", "*.sh"] for name in DATA},
    },
)
