"""YAML files with bases, and values of the command line."""

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from brasyn_dist.common.files import read_text
from brasyn_dist.errors import ConfigError, DataError


class Loader(yaml.SafeLoader):
    """YAML 1.1, which PyYAML reads, with the numbers of YAML 1.2, and without keys that are given twice.

    5e-4 is a number (YAML 1.1 wants 5.0e-4), 1e6 a whole one; 010 and 1:30 are texts, not 8 and 90.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of two equal keys, the first would be lost without a word."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """A whole number, also 1e6."""
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 16) if text.startswith("0x") else int(Decimal(text))


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NUMBERS = {
    _INT: r"[-+]?(0|[1-9][\d_]*)([eE]\+?\d\d?)?|0x[\da-fA-F]+",
    _FLOAT: r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$", re.ASCII), list("-+0123456789."))
Loader.add_constructor(_INT, Loader.construct_whole)


def parse_value(text: str) -> Any:
    """Value of `section.key=value`. Raises ConfigError if it is not YAML."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(
            f"{text!r}: not text in the encoding of this locale; set LC_ALL=C.UTF-8 and unset PYTHONUTF8"
        )
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
