"""Packages that are installed by extras, and the message if one is missing."""

from importlib.util import find_spec

from brasyn_dist.errors import ConfigError


def require(package: str, extra: str, purpose: str) -> None:
    """Raise ConfigError that names the extra, unless the package is installed.

    Args:
        package: Name that is imported.
        extra: Extra of pyproject.toml that installs it.
        purpose: What needs it, such as `telemetry.wandb=offline`.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed: pip install 'brasyn_dist[{extra}]'"
        )
