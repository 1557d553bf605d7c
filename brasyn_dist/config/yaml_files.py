"""YAML files with bases, and values of the command line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from brasyn_dist.common.files import read_text
from brasyn_dist.errors import ConfigError, DataError


class Loader(yaml.SafeLoader):
    """YAML 1.1, which PyYAML reads, with numbers such as 5e-4 (YAML 1.1 wants 5.0e-4)."""


Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_value(text: str) -> Any:
    """Value of `section.key=value`. Raises ConfigError if it is not YAML."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{text!r}: not a YAML value; quote it") from None


def read_yaml(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """Mapping in a YAML file, merged over the mapping of its `base:` (a file, or a list: later ones win).

    Args:
        path: The file.
        above: Files that name this one as a base.

    Raises:
        ConfigError: A file cannot be read, is no mapping, or is a base of itself.
    """
    try:
        values = yaml.load(read_text(path, "`brasyn configs` lists the packaged ones"), Loader) or {}
        json.dumps(values, default=str)  # ValueError: an alias of a part of itself
    except DataError as error:
        raise ConfigError(str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    bases = values.pop("base", None) or []
    for base in reversed([bases] if isinstance(bases, str) else bases):
        if not isinstance(base, str) or path.resolve() in above:
            raise ConfigError(f"{path}: base: {base!r}: expected another file that does not lead back here")
        values = merge(read_yaml(path.parent / base, [*above, path.resolve()]), values)
    return values


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` merged over `base`, key by key within sections."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def set_by_path(values: dict[str, Any], dotted: str, value: Any) -> None:
    """values['a']['b'] = value for 'a.b'. Raises ConfigError if `a` is not a section."""
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{dotted}: {parent} is not a section")
    values[last] = value
