"""Dataclasses of options: checked types and ranges, errors of one line, descriptions from docstrings.

YAML or JSON mapping --from_dict (pydantic, strict)--> frozen dataclass --to_dict, to_yaml--> equal mapping
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

import annotated_types
import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema

from brasyn_dist.common.files import expand_path
from brasyn_dist.common.logs import redact
from brasyn_dist.errors import ConfigError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(frozen: bool):
        """Decorator: a dataclass whose constructor checks types and ranges and raises ConfigError."""

        def decorate(cls: type) -> type:
            made = pydantic_dataclass(cls, frozen=frozen, config=STRICT)
            check = made.__init__

            def __init__(self, *args, **values):
                try:
                    check(self, *args, **values)
                except ValidationError as error:
                    raise ConfigError(f"{cls.__name__}: {error_text(error, made)}") from None

            made.__init__ = __init__
            return made

        return decorate


PathText = Annotated[str, AfterValidator(expand_path)]
"""A path or URL; `~` and `$VARIABLES` are expanded."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, le=2**16)]
"""Channels, groups, heads: sizes of a network."""
Few = Annotated[int, Field(ge=1, le=1024)]
"""Threads, batches in memory."""
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Above0 = Annotated[float, Field(gt=0, le=1e9)]
Minutes = Annotated[float, Field(gt=0, le=525600)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
FALSE_IS_OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads the word `off` as false."""
FALSE_IS_NO = BeforeValidator(lambda value: "no" if value is False else value)
"""YAML reads the word `no` as false."""


KIND = "kind"


def kind_of(value: Any) -> str | None:
    """The kind that a mapping or a dataclass names; None: the first one of the option."""
    return value.get(KIND) if isinstance(value, dict) else getattr(value, KIND, None)


def kinds_of(annotation: Any) -> dict[str, type]:
    """Dataclasses of an option by their kind; empty unless the option has several."""
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return {}
    classes = [cls for cls in typing.get_args(annotation) if dataclasses.is_dataclass(cls)]
    return {next(o for o in options_of(cls) if o.name == KIND).default: cls for cls in classes}  # type: ignore[misc]


class ByKind:
    """Metadata of an option that is one of several dataclasses. Their fields `kind` distinguish them."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        choices = {kind: handler.generate_schema(cls) for kind, cls in kinds_of(source).items()}
        first = next(iter(choices))
        return core_schema.tagged_union_schema(choices, lambda value: kind_of(value) or first)


by_kind = ByKind()


def from_dict(cls: type[T], values: Any, where: str = "configuration", prefix: str = "") -> T:
    """Dataclass `cls` from a mapping as YAML or JSON give it.

    Args:
        cls: Class made by `dataclass` of this module.
        values: Mapping of options; lists for tuples.
        where: File that the message names.
        prefix: Section of `cls` in the message, such as `generator.`.

    Raises:
        ConfigError: An option is unknown, has the wrong type or is out of range; one line.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ConfigError(f"{where}: {error_text(error, cls, prefix)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain mapping (lists for tuples) that YAML and JSON can hold and `from_dict` reads back equal.

    Passwords in URLs are replaced by `***`.
    """
    return _without_secrets(json.loads(json.dumps(dataclasses.asdict(config))))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def to_yaml(config: Any) -> str:
    """Text of a YAML file that `from_dict` reads back equal."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def error_text(error: ValidationError, cls: type, prefix: str = "") -> str:
    """The first problem in one line: option, value, what is allowed."""
    problems = error.errors(include_url=False)
    # A union reports every alternative: the one whose kind fits is the one that was meant.
    problem = min(problems, key=lambda p: str(p["type"]).endswith("_type"))
    names: list[str] = []
    owner: Any = cls
    option: Option | None = None
    for part in problem["loc"]:
        if part in (kinds := kinds_of(owner)):
            owner = kinds[str(part)]
            continue
        if isinstance(part, int) and typing.get_origin(owner) is tuple:
            owner = typing.get_args(owner)[0]
            continue
        known = {o.name: o for o in options_of(owner)} if dataclasses.is_dataclass(owner) else {}
        if problem["type"] == "unexpected_keyword_argument" and part not in known:
            return (
                f"unknown option {prefix}{'.'.join([*names, str(part)])}; options here: "
                f"{', '.join(sorted(known))}"
            )
        if part not in known:
            break
        option = known[str(part)]
        owner = option.annotation
        names.append(str(part))
    name = prefix + ".".join(names)
    if problem["type"] == "union_tag_invalid":
        return f"{name}.{KIND}={problem['ctx']['tag']!r}: expected {' or '.join(kinds_of(owner))}"
    if option is None or dataclasses.is_dataclass(owner):
        return f"{name.rstrip('.') or 'configuration'} must be a mapping, got {problem['input']!r}"
    if problem["type"] == "value_error":
        return f"{name}={problem['input']!r}: expected {problem['ctx']['error']}"
    return f"{name}={problem['input']!r}: expected {option.allowed}"


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a dataclass, for messages and `--help`."""

    name: str
    annotation: Any
    default: Any
    description: str
    limits: tuple[Any, ...]

    @property
    def allowed(self) -> str:
        """Type and range in words."""
        return type_in_words(self.annotation, self.limits)


def options_of(cls: Any) -> Iterator[Option]:
    """Options of a dataclass in the order of their declaration."""
    for name, info in cls.__pydantic_fields__.items():
        # pydantic does not pass the docstring of an inherited field on.
        declared = [vars(base).get("__pydantic_fields__", {}).get(name) for base in cls.__mro__]
        text = next((field.description for field in declared if field and field.description), "")
        default = info.get_default(call_default_factory=True)
        yield Option(name, info.annotation, default, " ".join(text.split()), tuple(info.metadata))


def all_options(cls: Any, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """(`section.key`, option) of a dataclass and of the sections below it."""
    for option in options_of(cls):
        if kinds := kinds_of(option.annotation):
            yield from _options_of_kinds(kinds, f"{prefix}{option.name}.")
        elif dataclasses.is_dataclass(option.annotation):
            yield from all_options(option.annotation, f"{prefix}{option.name}.")
        else:
            yield prefix + option.name, option


def _options_of_kinds(kinds: dict[str, type], prefix: str) -> Iterator[tuple[str, Option]]:
    """Options of all kinds, each once; the description says which kinds have it."""
    found: dict[str, dict[str, Option]] = {}
    for kind, cls in kinds.items():
        for key, option in all_options(cls, prefix):
            found.setdefault(key, {})[kind] = option
    for key, by in found.items():
        first = next(iter(by.values()))
        if key == prefix + KIND:
            text = " ".join(f"{kind}: {option.description}" for kind, option in by.items())
            yield key, dataclasses.replace(first, annotation=Literal[tuple(kinds)], description=text)
        elif len(by) == len(kinds):
            yield key, first
        else:
            only = " or ".join(f"{prefix}{KIND}={kind}" for kind in by)
            yield key, dataclasses.replace(first, description=f"Only {only}. {first.description}")


def type_in_words(annotation: Any, limits: typing.Iterable[Any] = ()) -> str:
    """What values a field takes: `int of at least 1, or null`."""
    if typing.get_origin(annotation) is Annotated:
        annotation, *more = typing.get_args(annotation)
        limits = [*limits, *(m for item in more for m in getattr(item, "metadata", [item]))]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [type_in_words(a, limits) for a in arguments if a is not type(None)]
        return ", or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        item = type_in_words(arguments[0])
        least = next(
            (f"at least {m.min_length} " for m in limits if isinstance(m, annotated_types.MinLen)), ""
        )
        return (
            f"a list of {least}{item}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {item}"
        )
    bounds = [text for limit in limits if (text := _bound(limit))]
    return (
        " and ".join([f"{annotation.__name__} {bounds[0]}", *bounds[1:]]) if bounds else annotation.__name__
    )


def _bound(limit: Any) -> str:
    match limit:
        case annotated_types.Ge(ge=bound):
            return f"of at least {bound}"
        case annotated_types.Gt(gt=bound):
            return f"above {bound}"
        case annotated_types.Le(le=bound):
            return f"at most {bound}"
        case annotated_types.Lt(lt=bound):
            return f"below {bound}"
        case annotated_types.MultipleOf(multiple_of=bound):
            return f"a multiple of {bound}"
    return ""
