"""A GAN under DeepSpeed's ZeRO 1, 2 and 3: real processes, compared with DistributedDataParallel.

DDP, ZeRO 1, 2, 3    the same run of five updates: clipping, two micro-batches a rank, moving average, checkpoints
each stage           resumed from its third step: every byte of the end
across               a checkpoint of one is continued under another, on another number of processes
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from brasyn_dist.config import Config, RuntimeConfig, load_config
from brasyn_dist.errors import ConfigError
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.registry import Generator, build_generator
from tests.distributed.faults import train as warm_train
from tests.distributed.launch import SMALL, command, final_state, run
from tests.distributed.warm import free_port
from tests.small import small_shard_set
from tests.training.volumes import TASKS, volume_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="deepspeed is not installed (pip install deepspeed)",
    ),
]

STEPS, SAVED = 5, 3
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def options(work: Path) -> tuple[str, ...]:
    shards = small_shard_set(work / "shards")
    return (
        f"data.shards={shards}", f"training.max_steps={STEPS}", f"checkpoint.every_steps={SAVED}",
        "training.micro_batch_size=2", "validation.every_steps=0", "telemetry.log_every=1", f"runs_dir={work / 'runs'}",
    )  # fmt: skip


def train(
    work: Path, options: tuple[str, ...], name: str, launcher: str, processes: int = 2, warm: bool = True
) -> Path:
    """Run, or continue, to the last step. Returns the run folder.

    `warm`: from the fork server, with the environment that `accelerate launch` sets for this launch file.
    """
    log, wanted = work / f"{name}.log", (*options, f"name={name}")
    if warm:
        stage = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": launcher[-6]}
        local = {} if processes > 1 else local_rank()
        environment = {**stage, **local} if "zero" in launcher else {}
        status = warm_train(wanted, log, processes, environment=environment)
    else:
        status = run(command(wanted, processes, launcher), log, timeout=900)
    assert status == 0, log.read_text()[-6000:]
    strategy = "DistributedDataParallel" if "zero" not in launcher else f"ZeRO {launcher[-6]}"
    assert strategy in log.read_text()
    return work / "runs" / name


def local_rank() -> dict[str, str]:
    """Environment of the only rank of a launcher."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def file_of(stage: int) -> str:
    return f"launch/deepspeed_zero{stage}.yaml"


@pytest.fixture(scope="module")
def replicated(work: Path, options: tuple[str, ...]) -> Path:
    return train(work, options, "ddp", "accelerate")


@pytest.fixture(scope="module")
def shared_out(work: Path, options: tuple[str, ...]) -> dict[int, Path]:
    return {stage: train(work, options, f"zero{stage}", file_of(stage), warm=False) for stage in STAGES}


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Numbers of the run's optimiser steps."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == "train"]


def assert_losses_agree(
    actual: Path, expected: Path, tolerance: float, steps: int = STEPS, later: float | None = None
) -> None:
    """Every term and both gradient norms of every step; `later`: tolerance from the second step on."""
    lines = metrics(actual), metrics(expected)
    assert (
        [line["step"] for line in lines[0]]
        == [line["step"] for line in lines[1]]
        == list(range(1, steps + 1))
    )
    for a, e in zip(*lines):
        assert a.keys() == e.keys()
        limit = later if later is not None and e["step"] > 1 else tolerance
        for name, value in e.items():
            assert a[name] == pytest.approx(value, rel=limit, abs=limit), (e["step"], name)


def tensors(run_dir: Path, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:08d}/{name}.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all tensors together."""
    assert a.keys() == b.keys()
    return float(torch.stack([(a[k].double() - b[k].double()).square().sum() for k in a]).sum().sqrt())


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_updates_of_both_networks_are_those_of_ddp(
    stage: int, shared_out: dict[int, Path], replicated: Path
):
    config = load_config(None, SMALL)
    norms = [line["generator_norm"] for line in metrics(replicated)]
    assert min(norms) > 2 * config.optimizer.clip_norm, "clipping must have something to do"
    assert_losses_agree(shared_out[stage], replicated, 1e-5)
    start = {
        "generator": build_generator(config.generator, config.seed),
        "discriminator": build_discriminator(config.discriminator, config.seed),
    }
    start["average"] = start["generator"]
    for name, network in start.items():
        expected, actual = tensors(replicated, name), tensors(shared_out[stage], name)
        moved = distance(expected, dict(network.state_dict()))
        assert distance(actual, expected) < 2e-3 * moved, name
    for name in ("generator_adam", "discriminator_adam"):
        expected, actual = tensors(replicated, name), tensors(shared_out[stage], name)
        for entry in ("exp_avg", "exp_avg_sq", "step"):
            parts = [{k: v for k, v in t.items() if k.endswith(f".{entry}")} for t in (actual, expected)]
            size = distance(parts[1], {k: torch.zeros_like(v) for k, v in parts[1].items()})
            assert distance(*parts) <= (0 if entry == "step" else 1e-5 * size), (name, entry)


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_identical_at_the_same_geometry(
    stage: int, work: Path, options: tuple[str, ...], shared_out: dict[int, Path]
):
    name = f"resumed{stage}"
    from_third_step(shared_out[stage], work / "runs" / name)
    assert final_state(train(work, options, name, file_of(stage)), STEPS) == final_state(
        shared_out[stage], STEPS
    )


def from_third_step(source: Path, target: Path) -> None:
    """A copy of a run that was killed after its checkpoint of step SAVED."""
    shutil.copytree(source, target)
    shutil.rmtree(target / f"checkpoints/step-{STEPS:08d}")
    shutil.rmtree(target / "export")


@pytest.mark.parametrize(
    ("before", "launcher", "processes"),
    [(0, file_of(2), 1), (3, "python", 1), (1, file_of(3), 4)],
    ids=["DDP on 2 to ZeRO 2 on 1", "ZeRO 3 on 2 to one process", "ZeRO 1 on 2 to ZeRO 3 on 4"],
)
def test_a_checkpoint_goes_on_under_another_strategy_and_world(
    before: int,
    launcher: str,
    processes: int,
    work: Path,
    options: tuple[str, ...],
    replicated: Path,
    shared_out: dict[int, Path],
):
    name = f"moved-{before}-{processes}"
    from_third_step(shared_out.get(before, replicated), work / "runs" / name)
    run_dir = train(work, options, name, launcher, processes)
    assert_losses_agree(run_dir, replicated, 1e-5)


def test_export_loads_like_any_other(shared_out: dict[int, Path]):
    for run_dir in shared_out.values():
        generator = Generator.from_pretrained(run_dir)
        average = tensors(run_dir, "average")
        assert all(torch.equal(v, average[k]) for k, v in generator.state_dict().items())


def test_bf16_has_the_losses_of_bf16_under_ddp(
    work: Path, options: tuple[str, ...], shared_out: dict[int, Path]
):
    """The first update is the same. The second begins from weights that may differ in their last bit, which bf16 may
    round apart. float32 is further off from the start."""
    bf16 = (*options, "runtime.precision=bf16", "training.max_steps=2")
    reference = train(work, bf16, "bf16-ddp", "accelerate")
    actual = train(work, bf16, "bf16-zero2", file_of(2))
    assert_losses_agree(actual, reference, 1e-5, steps=2, later=1e-3)
    for bf16_run in (actual, reference):
        first, exact = metrics(bf16_run)[0], metrics(shared_out[2])[0]
        assert abs(first["generator_norm"] / exact["generator_norm"] - 1) > 1e-4


@pytest.fixture(scope="module")
def chunks(work: Path) -> Path:
    (work / "volumes").mkdir()
    return volume_shards(work / "volumes")


@pytest.mark.parametrize("task", TASKS)
def test_tasks_on_volumes_have_the_losses_of_ddp_and_resume(task: str, work: Path, chunks: Path):
    def train_volumes(name: str, stage: str | None = None) -> Path:
        options = (
            f"data.shards={chunks}", "training.max_steps=3", "checkpoint.every_steps=2", "validation.every_steps=0",
            "optimizer.warmup_steps=1", "telemetry.log_every=1", "telemetry.report=false", f"runs_dir={work / 'runs'}",
            f"name={name}",
        )  # fmt: skip
        zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage or ""}
        log = work / f"{name}.log"
        assert warm_train(options, log, 2, TASKS[task], zero if stage else {}) == 0, log.read_text()[-6000:]
        assert ("ZeRO 2" in log.read_text()) == (stage is not None)
        return work / "runs" / name

    replicated, sharded = train_volumes(f"{task}-ddp"), train_volumes(f"{task}-zero2", "2")
    assert_losses_agree(sharded, replicated, 1e-5, steps=3)
    end = final_state(sharded, 3, files_at_least=5)
    shutil.rmtree(sharded / "checkpoints/step-00000003")
    shutil.rmtree(sharded / "export")
    assert final_state(train_volumes(f"{task}-zero2", "2"), 3, files_at_least=5) == end


# ---- what cannot work ends at once, with the reason and what to do instead


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Sets the environment of `accelerate launch` with a stage and further variables; makes a Zero."""

    def make(stage: int, runtime: RuntimeConfig | None = None, **variables: str):
        from brasyn_dist.distributed.process_group import zero_of_launch

        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        monkeypatch.setenv("LOCAL_RANK", "0")
        for name, value in variables.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        return zero_of_launch(runtime or RuntimeConfig())

    return make


def test_impossible_launch_configurations_are_refused(
    launched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with pytest.raises(ConfigError, match="zero_stage: 0 shards nothing: use 1, 2 or 3"):
        launched(0)
    with pytest.raises(ConfigError, match="fp16 under DeepSpeed.*use bf16"):
        launched(2, RuntimeConfig(precision="fp16"))
    with pytest.raises(
        ConfigError, match=r"compile=default with ZeRO 3.*compile=off, or launch/deepspeed_zero2"
    ):
        launched(3, RuntimeConfig(compile="default"))
    with pytest.raises(ConfigError, match="encoder_execution=separate with ZeRO 3.*zero2"):
        launched(3, RuntimeConfig(encoder_execution="separate"))
    with pytest.raises(ConfigError, match=r"gradient_clipping .*optimizer\.clip_norm sets it"):
        launched(2, GRADIENT_CLIPPING="1.0")
    monkeypatch.delenv("ACCELERATE_GRADIENT_CLIPPING")
    with pytest.raises(ConfigError, match="offload_optimizer.*set its device to none"):
        launched(2, DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu")
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE")
    own = tmp_path / "zero.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}))
    with pytest.raises(ConfigError, match=r"bf16 in the launch configuration: runtime\.precision sets"):
        launched(2, DEEPSPEED_CONFIG_FILE=str(own))
    monkeypatch.delenv("LOCAL_RANK")
    from brasyn_dist.distributed.zero import Zero

    with pytest.raises(ConfigError, match="without a launcher"):
        Zero(RuntimeConfig())


def test_a_configuration_file_of_the_users_is_obeyed(launched, tmp_path: Path):
    own = tmp_path / "zero.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    zero = launched(1, DEEPSPEED_CONFIG_FILE=str(own))
    assert zero.stage == 3
    assert zero.engine_options()["zero_optimization"]["stage3_param_persistence_threshold"] == 0


def test_impossible_batches_and_averages_are_refused(launched):
    launched(2).check(world=3, global_batch_size=8, micro_batch_size=3, averaged=False)
    launched(1).check(world=3, global_batch_size=8, micro_batch_size=2, averaged=False)
    with pytest.raises(ConfigError, match="3 processes 1 or 2 micro-batches.*a multiple of 3"):
        launched(2).check(world=3, global_batch_size=8, micro_batch_size=2, averaged=True)
    unequal = RuntimeConfig(rank_shares=(3.0, 1.0))
    launched(1, unequal).check(world=2, global_batch_size=8, micro_batch_size=2, averaged=True)
    launched(2, unequal).check(world=2, global_batch_size=8, micro_batch_size=None, averaged=True)
    with pytest.raises(ConfigError, match="2 processes 1 or 3 micro-batches.*equal runtime.rank_shares"):
        launched(2, unequal).check(world=2, global_batch_size=8, micro_batch_size=2, averaged=True)
    with pytest.raises(ConfigError, match="ema_decay=0 with ZeRO 3.*use training.ema_decay above 0"):
        launched(3).check(world=2, global_batch_size=8, micro_batch_size=None, averaged=False)


def test_refusals_end_a_launch_with_one_line(work: Path, options: tuple[str, ...]):
    log = work / "refused.log"
    arguments = command((*options, "name=refused", "training.ema_decay=0"), 2, file_of(3))
    assert run(arguments, log) == 1
    text = log.read_text()
    assert "error: training.ema_decay=0 with ZeRO 3" in text and "start_run.py" not in text
    assert not (work / "runs/refused").exists()


def test_without_deepspeed_the_message_names_both_ways_out(launched, monkeypatch: pytest.MonkeyPatch):
    from brasyn_dist.distributed import zero as distributed_deepspeed

    monkeypatch.setattr(distributed_deepspeed, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"not installed: pip install 'brasyn_dist\[deepspeed\]', or use launch/one_node\.yaml",
    ):
        launched(2)


def test_defaults_have_no_deepspeed():
    from brasyn_dist.distributed.process_group import zero_of_launch

    assert zero_of_launch(Config().runtime) is None
