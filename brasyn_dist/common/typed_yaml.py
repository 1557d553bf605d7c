"""YAML to frozen dataclasses and back, types checked: knows nothing of what is configured.

file.yaml --read_yaml (bases merged)--> mapping --set_by_path (overrides)--> mapping --from_dict--> dataclass --to_yaml--> text
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from brasyn_dist.errors import ConfigError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file, laid over that of its `base:`."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    base = values.pop("base", None)
    return merge(read_yaml(path.parent / base), values) if base else values


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def set_by_path(values: dict[str, Any], dotted: str, value: Any) -> None:
    """values['a']['b'] = value for 'a.b'."""
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{dotted}: {parent} is not a section")
    values[last] = value


def from_dict(cls: type[T], values: dict[str, Any], where: str = "configuration", prefix: str = "") -> T:
    """Dataclass `cls` from a mapping, types checked. Raises ConfigError naming the key, the problem and the choices."""
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.') or 'configuration'} must be a mapping, got {values!r}"
        )
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{where}: unknown option {prefix}{unknown[0]}; options here: {', '.join(sorted(hints))}"
        )
    converted = {key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where, f"{key}.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inners = [a for a in arguments if a is not type(None)]
        is_list = isinstance(value, list | tuple)
        chosen = [a for a in inners if (typing.get_origin(a) is tuple) == is_list] or inners
        return _convert(chosen[0], value, where, key)
    if origin is Literal:
        if value is False:  # YAML reads `off` and `no` as false
            value = next((a for a in arguments if a in ("off", "no")), value)
        if value not in arguments:
            raise ConfigError(f"{where}: {key}={value!r}; choose from {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {key}={value!r}; expected a list")
        inners = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inners) != len(value):
            raise ConfigError(f"{where}: {key}={value!r}; expected {len(inners)} values")
        return tuple(_convert(i, v, where, key) for i, v in zip(inners, value))
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 5e-4 (no dot) as text.
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: {key}={value!r}; expected {hint.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Plain mapping (lists for tuples) that YAML and JSON can hold and from_dict reads back equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)
