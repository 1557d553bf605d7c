"""A command of `brasyn`: its options are a frozen dataclass, of which the command line and `--help` are made.

words --Typer--> options dataclass --run--> exit status

    @dataclass(frozen=True, kw_only=True)
    class Options:
        cases: Annotated[Path, Argument(metavar="CASES")]
        '''Folder of complete cases.'''             # the text of `--help`
        seed: int = 0
        '''Seed of the split.'''

    main = Command("example", Options, run)     # main(["cases", "--seed", "1"]) returns the exit status

Typer's `Option(...)` in `Annotated` is only needed for limits and metavars.
"""

import ast
import copy
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, Generic, Literal, TypeVar

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.errors import BrasynError

T = TypeVar("T")
Precision = Literal["no", "bf16", "fp16"]
OVERRIDES = "section.key=value"
Overrides = Annotated[list[str] | None, Argument(metavar=OVERRIDES)]
Positive = Annotated[int, Option(min=1)]
Index = Annotated[int, Option(min=0)]
LabelEditionOption = Annotated[
    Literal["auto", "brats2021", "brats2023", "brats2024", "ped"],
    Option(
        "--label-edition",
        help="Meaning of the labels. auto: decided for each cohort from all its files. "
        "brats2021: 4 enhancing; brats2023: 3 enhancing; brats2024: 3 enhancing, 4 resection cavity; "
        "ped: 1 enhancing, 2 non-enhancing, 3 cyst, 4 oedema.",
    ),
]
SkipBadOption = Annotated[
    bool, Option("--skip-bad", help="Leave out bad cases instead of stopping; each is reported.")
]


class View(StrEnum):
    """Choices of `--views`; the names are brats.VIEWS."""

    axial = "axial"
    sagittal = "sagittal"
    coronal = "coronal"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of the commands that run generators on cases."""

    weights: Annotated[list[str], Option(metavar="W...")]
    """Run or export folder; several as FOLDER:VIEW; or a YAML file of members."""
    views: list[View] | None = None
    """Views to run over.  [default: all that a model was trained on]"""
    any_view: bool = False
    """Allow views that a model was not trained on."""
    batch_size: Annotated[int | None, Option(min=1)] = None
    """Slices at a time.  [default: 16 on GPUs, 4 on CPUs]"""
    precision: Precision = "no"
    """Autocast."""
    device: str | None = None
    """Such as cpu or cuda:1.  [default: a GPU if there is one]"""


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """Options of the commands whose processes share cases."""

    workers: Positive = 1
    """Processes that share the cases, each with its own GPU if there are several."""
    lease: Annotated[float | None, Option(metavar="SECONDS")] = None
    """Heartbeat timeout after which another process takes over a case.  [default: 60]"""


class Command(Generic[T]):
    """Callable that parses a command line and runs the command."""

    def __init__(
        self,
        name: str,
        options: type[T],
        run: Callable[[T], int | None],
        lists: Sequence[str] = (),
        more_help: Callable[[], str] | None = None,
    ) -> None:
        """Declare a command.

        Args:
            name: Subcommand of `brasyn`.
            options: Frozen dataclass, see above.
            run: Does the work; returns the exit status (None: 0).
            lists: Options that take several values: `--views axial sagittal`.
            more_help: Text that follows the options in `--help`.
        """
        self.name = name
        self.options = options
        self.run = run
        self.lists = lists
        self.more_help = more_help

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Exit status of the command. A BrasynError is printed as one `error:` line, status 1.

        Raises:
            SystemExit: 2 for wrong usage, 0 after `--help`.
        """
        options = self.parse(sys.argv[1:] if arguments is None else arguments)
        try:
            set_up_logging()
            return self.run(options) or 0
        except BrasynError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1

    def parse(self, arguments: Sequence[str]) -> T:
        """Options of a command line. Raises SystemExit as `__call__` does."""
        parsed: list[T] = []

        def callback(**values: Any) -> None:
            parsed.append(self.options(**values))

        parameters = typer_parameters(self.options)
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cls=_with_help(self._description(), self.more_help))(callback)
        try:
            typer.main.get_command(app).main(
                spread_lists(arguments, self.lists), prog_name=f"brasyn {self.name}"
            )
        except SystemExit:
            if not parsed:
                raise
        return parsed[0]

    def _description(self) -> str:
        return (sys.modules[self.options.__module__].__doc__ or "").strip()


def typer_parameters(options: type) -> list[inspect.Parameter]:
    """Parameters for Typer: the docstring below a field is its help, and `a_b: bool` is the flag `--a-b`."""
    texts: dict[str, str] = {}
    for cls in reversed(options.__mro__[:-1]):
        definition: Any = ast.parse(dedent(inspect.getsource(cls))).body[0]
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = ast.literal_eval(text.value)
    parameters, defaults = [], inspect.signature(options).parameters
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        kind, *declared = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        flag = [f"--{name.replace('_', '-')}"] if kind is bool else []
        info = copy.copy(declared[0]) if declared else Option(*flag)
        info.help = info.help or texts.get(name)
        parameters.append(defaults[name].replace(annotation=Annotated[kind, info]))
    return parameters


def _with_help(description: str, more_help: Callable[[], str] | None) -> type[TyperCommand]:
    """A command class whose `--help` shows the module's docstring as it is written, and `more_help` last."""

    class DescribedCommand(TyperCommand):
        def format_help_text(self, ctx: Any, formatter: Any) -> None:
            formatter.write(f"\n{description}\n")

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            if more_help is not None:
                formatter.write(f"\n{more_help()}\n")

    return DescribedCommand


def spread_lists(arguments: Sequence[str], lists: Sequence[str]) -> list[str]:
    """`--views a b` as `--views a --views b`, for the options in `lists`; the next option ends a list."""
    spread: list[str] = []
    current = ""
    for position, word in enumerate(arguments):
        if word == "--":
            return [*spread, *arguments[position:]]
        if word.startswith("-"):
            current = word if word in lists else ""
            following = arguments[position + 1 : position + 2]
            if current and following and not following[0].startswith("-"):
                continue
            spread.append(word)
        else:
            spread += [current, word] if current else [word]
    return spread


def at_most_one(**given: Any) -> None:
    """Raise a usage error if more than one of these options has a value."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(names)} exclude each other")
