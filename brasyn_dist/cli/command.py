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
import logging
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Generic, Literal, TypeVar

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from brasyn_dist.common.files import expand_path, os_error_text
from brasyn_dist.common.logs import make_printable, redact, set_up_logging
from brasyn_dist.errors import BrasynError, out_of_memory

log = logging.getLogger(__name__)
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
ModalitySetOption = Annotated[
    Path | None,
    Option(
        "--modality-set",
        help="YAML file with name, modalities and optionally titles, suffixes, labels and regions of other "
        "studies.  [default: BraTS]",
    ),
]
SkipBadOption = Annotated[
    bool, Option("--skip-bad", help="Leave out bad cases instead of stopping; each is reported.")
]
MOST = {"workers": 1024, "seed": 2**32 - 1}
"""Largest values by option; of other whole numbers 2**31 - 1, of other numbers 1e9."""
CaseNumber = Annotated[int, Option(max=99_999)]
"""Synthetic cases; their names have five digits."""
Folds = Annotated[int, Option(min=2)]
Headroom = Annotated[float, Option(metavar="F", min=0.1, max=100)]
Seconds = Annotated[float | None, Option(metavar="SECONDS", min=1, max=1e6)]
PATHS = {
    "cases", "cohorts", "completed", "config", "evaluation", "plan", "references", "shards", "statistics",
    "weights",
}  # fmt: skip
"""Texts that are paths, or names in place of them."""
_LAUNCHER = re.compile(r"--local[-_]rank(=.*)?")
"""Argument that some launchers add; environment variables have the same value."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""


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
    lease: Seconds = None
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
        """Exit status of the command. What the user can correct is printed as one `error:` line, status 1.

        Raises:
            SystemExit: 2 for wrong usage, 0 after `--help`.
        """
        make_printable()
        options = self.parse(sys.argv[1:] if arguments is None else arguments)
        try:
            set_up_logging()
            return self.run(options) or 0
        except BrasynError as error:
            text = str(error)
        except BrokenPipeError:  # such as `brasyn status | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            log.debug("%s", self.name, exc_info=True)
            text = os_error_text(error)
        except ValueError as error:  # PyTorch checks the variable when it is imported
            if "Invalid log settings" not in str(error):
                raise
            text = f"TORCH_LOGS={os.environ.get('TORCH_LOGS')!r} is no setting of PyTorch; unset it"
        except (MemoryError, RuntimeError) as error:
            if not (problem := out_of_memory(error)):
                raise
            text = f"{problem}; use a smaller --batch-size, fewer --workers or a larger machine"
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return INTERRUPTED
        print(f"error: {redact(text)}", file=sys.stderr, flush=True)
        return 1

    def parse(self, arguments: Sequence[str]) -> T:
        """Options of a command line. Raises SystemExit as `__call__` does."""
        parsed: list[T] = []

        parameters = typer_parameters(self.options)

        def callback(**values: Any) -> None:
            check_finite(**values)
            parsed.append(self.options(**values))

        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cls=_with_help(self._description(), self.more_help))(callback)
        try:
            typer.main.get_command(app).main(
                spread_lists(without_launcher(arguments), self.lists), prog_name=f"brasyn {self.name}"
            )
        except SystemExit:
            if not parsed:
                raise
        return parsed[0]

    def _description(self) -> str:
        return (sys.modules[self.options.__module__].__doc__ or "").strip()


def path_parser(kind: Callable[[str], T]) -> Callable[[str], T]:
    """Parser of a path for Typer: expands `~` and `$VARIABLES`, and refuses empty paths (--out "$UNSET")."""

    def path(text: str) -> T:
        try:
            return kind(expand_path(os.fspath(text)))
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: expected {error}") from None

    return path


def check_finite(**values: Any) -> None:
    """Raise a usage error for NaN and infinity, which are in no range and yet not outside of one."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise typer.BadParameter(f"--{name.replace('_', '-')}: {value} is not a finite number")


def without_launcher(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that launchers add."""
    kept, skip = [], False
    for word in arguments:
        found = None if skip else _LAUNCHER.fullmatch(word)
        if not skip and not found:
            kept.append(word)
        skip = found is not None and found[1] is None
    return kept


def typer_parameters(options: type) -> list[inspect.Parameter]:
    """Parameters for Typer: the docstring below a field is its help, and `a_b: bool` is the flag `--a-b`.

    Numbers without limits are between 0 and `MOST`, and paths are expanded.
    """
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
        kinds = _kinds(kind)
        if int in kinds or float in kinds:
            info.min = 0 if info.min is None else info.min
            if info.max is None:
                info.max = MOST.get(name, 2**31 - 1 if int in kinds else 1e9)
        if Path in kinds:
            info.parser, info.metavar = path_parser(Path), info.metavar or "PATH"
        elif name in PATHS:
            info.parser, info.metavar = path_parser(str), info.metavar or "PATH"
        parameters.append(defaults[name].replace(annotation=Annotated[kind, info]))
    return parameters


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation: {int, NoneType} of `list[int] | None`."""
    arguments = typing.get_args(annotation)
    return set().union(*map(_kinds, arguments)) if arguments else {annotation}


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
