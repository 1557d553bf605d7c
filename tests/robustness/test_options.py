"""Kind 2: every option does what was meant, or is refused in one line, when it is read."""

import importlib
import typing
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

from brasyn_dist.cli.command import Command, typer_parameters
from brasyn_dist.cli.main import COMMANDS, INTERNAL, module_name
from brasyn_dist.config import TASKS, RunConfig, all_options, load_config
from brasyn_dist.errors import ConfigError

HUGE = ("1e300", "1" + "0" * 30, str(2**62))
OTHER_TASK = {task: () if task == "generator" else (f"task={task}",) for task in TASKS}


def command(name: str) -> Command[Any]:
    return importlib.import_module(module_name(name)).main


def numeric_run_options() -> list[tuple[str, str]]:
    found = {}
    for task, cls in TASKS.items():
        for key, option in all_options(cls):
            if "int" in option.allowed.split() or "float" in option.allowed.split():
                found.setdefault(key, task)
    return [(task, key) for key, task in found.items()]


def kind_of(annotation: Any) -> tuple[type, ...]:
    arguments = typing.get_args(annotation)
    return (
        tuple(t for a in arguments if a is not NoneType for t in kind_of(a)) if arguments else (annotation,)
    )


def words_for(name: str) -> list[str]:
    """A command line with the required options only."""
    given: dict[str, list[str]] = {"slurm-attempt": ["begin"], "shard": ["cohort", "--out", "out"]}
    words = given.get(name, [])
    if name in given:
        return words
    for parameter in typer_parameters(command(name).options):
        _, declared = typing.get_args(parameter.annotation)[:2]
        if parameter.default is parameter.empty:
            value = "out.json" if parameter.name == "out" and name == "fit-fusion" else "x"
            argument = type(declared).__name__ == "ArgumentInfo"
            words = [value, *words] if argument else [*words, f"--{parameter.name.replace('_', '-')}", value]
    return words


def numeric_command_options() -> list[tuple[str, str, int]]:
    found = []
    for name in (*COMMANDS, *INTERNAL):
        if not isinstance(getattr(importlib.import_module(module_name(name)), "main", None), Command):
            continue
        for parameter in typer_parameters(command(name).options):
            kinds = kind_of(typing.get_args(parameter.annotation)[0])
            if set(kinds) & {int, float}:
                found.append((name, f"--{parameter.name.replace('_', '-')}", len(kinds)))
    return found


@pytest.mark.parametrize(("task", "key"), numeric_run_options())
def test_numeric_options_of_a_run(task: str, key: str):
    """-1, NaN and huge values are refused by name; 0 is refused by name or has a meaning (off)."""
    for value in ("0", "-1", ".nan", ".inf", *HUGE):
        text = f"[{value}, {value}]" if key == "optimizer.betas" else value
        if key in ("runtime.rank_shares", "generator.channel_multipliers", "segmenter.widths"):
            text = f"[{value}]" if key != "segmenter.widths" else f"[{value}, {value}]"
        try:
            load_config(None, [*OTHER_TASK[task], f"{key}={text}"], RunConfig)
        except ConfigError as error:
            assert key in str(error) and "\n" not in str(error), f"{key}={text}: {error}"
        else:
            large_seed = "seed" in key and value == str(2**62)
            assert value == "0" or large_seed, f"{key}={text} was accepted"


@pytest.mark.parametrize(("name", "option", "count"), numeric_command_options())
def test_numeric_options_of_commands(name: str, option: str, count: int, capsys: pytest.CaptureFixture[str]):
    for value in ("-1", "nan", "inf", *HUGE):
        with pytest.raises(SystemExit) as ended:
            command(name).parse([*words_for(name), option, *[value] * count])
        assert ended.value.code == 2, f"{name} {option} {value}"
        assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["--lease", "0"], ["--lease", "0.5"], ["--batch-size", "0"]]
)
def test_zero_is_refused_where_nothing_can_be_meant(words: list[str]):
    with pytest.raises(SystemExit):
        command("infer").parse([*words_for("infer"), *words])


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("runs_dir", "~/runs", "{home}/runs"),
        ("data.shards", "$DATA/shards", "{data}/shards"),
        ("data.cache_dir", "${DATA}", "{data}"),
        ("objective.segmenter", "~/s", "{home}/s"),
        ("checkpoint.init_from", "$DATA/run", "{data}/run"),
    ],
)
def test_paths_of_a_run_are_expanded(option: str, text: str, expected: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path))
    value: Any = load_config(None, [f"{option}={text}"])
    for part in option.split("."):
        value = getattr(value, part)
    assert value == expected.format(home=tmp_path / "home", data=tmp_path)


@pytest.mark.parametrize("option", ["runs_dir", "data.shards", "data.cache_dir", "checkpoint.init_from"])
@pytest.mark.parametrize("text", ["''", "$BRASYN_UNSET/x"])
def test_a_path_that_is_empty_is_refused(option: str, text: str):
    with pytest.raises(ConfigError, match=option):
        load_config(None, [f"{option}={text}"])


@pytest.mark.parametrize("name", ["''", "x" * 201, "..", "../other", "/tmp/run", '"a\\nb"', "a/../../b"])
def test_a_name_stays_below_runs_dir(name: str):
    with pytest.raises(ConfigError, match="name=.*below runs_dir"):
        load_config(None, [f"name={name}"])


def test_paths_of_commands_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    options = command("infer").parse(["--weights", "~/w", "$DATA/v:axial", "--input=$DATA", "--output=~/out"])
    assert options.weights == [f"{tmp_path}/w", "/data/v:axial"]
    assert (options.input, options.output) == (Path("/data"), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("infer", ["--weights", "w", "--input", "in", "--output", ""]),
        ("infer", ["--weights", "", "--input", "in", "--output", "out"]),
        ("shard", ["", "--out", "out"]),
        ("evaluate", ["--predictions", "$BRASYN_UNSET", "--references", "r", "--out", "o"]),
        ("train", ["--config="]),
    ],
)
def test_empty_paths_of_commands_are_refused(name: str, words: list[str], capsys: pytest.CaptureFixture[str]):
    """`--out "$UNSET"` would otherwise be the working directory."""
    with pytest.raises(SystemExit):
        command(name).parse(words)
    assert "expected a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "data.views=[axial, axial]", "data.views=[]", "data.cohorts=[a, a]", "generator.image_size=[48, 4112]",
        "generator.heads=7", "objective.tversky=5", "generator.norm_groups=3", "telemetry.wandb=cloud",
        "data.views=axial", "training=5", "name=[a]", "seed=1.5", "training.max_steps=yes", "data.shards=3",
    ],
)  # fmt: skip
def test_other_mistakes_name_the_option(text: str):
    option = text.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        load_config(None, [text])
    assert option in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "base: self.yaml", "base: [3]", "base: missing.yaml", "- a", "seed: 2024-99-99", "a: &x [*x]", "{", "\0",
        "name: {a: 1}", "seed: 1\nseed: 2", "training: {epochs: 1}\ntraining: {samples: 2}", "seed: 010", "seed: 1:30",
        "training:\n\tmax_steps: 3", "seed: '1'", "seed: 1.5e0", "name: 1.10", "seed: 1\n---\nseed: 2",
    ],
)  # fmt: skip
def test_yaml_files_with_mistakes_are_named(text: str, tmp_path: Path):
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"\.yaml"):
        load_config(path, [], RunConfig)


@pytest.mark.parametrize(("text", "expected"), [("1e6", 1_000_000), ("1_000", 1000), ("0x10", 16), ("+3", 3)])
def test_whole_numbers_in_any_form(text: str, expected: int):
    assert load_config(None, [f"training.max_steps={text}"]).training.max_steps == expected
    assert load_config(None, [f"optimizer.base_rate={text}"]).optimizer.base_rate == expected


@pytest.mark.parametrize("text", ["training.max_steps=", "=5", ".seed=5", "training.=5", "r3", "seed"])
def test_overrides_without_key_or_value_are_refused(text: str):
    """`training.max_steps=$UNSET` would otherwise train ten epochs."""
    with pytest.raises(ConfigError, match=r"overrides are written section\.key=value|no value"):
        load_config(None, [text])
    assert load_config(None, ["training.max_steps = 5"]).training.max_steps == 5


def test_options_and_values_in_any_order():
    lines = (
        ["name=a", "--dry-run", "seed=3", "--config", "c.yaml"],
        ["--config=c.yaml", "name=a", "seed=3", "--dry-run"],
        ["--dry-run", "--config", "c.yaml", "name=a", "--", "seed=3"],
    )
    parsed = [command("train").parse(line) for line in lines]
    assert parsed[0] == parsed[1] == parsed[2]
    assert parsed[0].overrides == ["name=a", "seed=3"]


@pytest.mark.parametrize(
    "words", [["--local_rank=0"], ["--local-rank", "1"], ["--local-rank=1"], ["--local_rank", "0"]]
)
@pytest.mark.parametrize("name", ["train", "infer", "evaluate", "shard"])
def test_arguments_of_launchers_are_ignored(name: str, words: list[str]):
    assert command(name).parse([*words, *words_for(name)]) == command(name).parse(words_for(name))
