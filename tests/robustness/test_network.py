"""Kind 6: transfers that stall, break or fail, trackers without network, and secrets in URLs."""

import http.server
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.common.logs import redact
from brasyn_dist.common.processes import STOP
from brasyn_dist.config import TelemetryConfig, load_config, to_yaml
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading import transfer
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.loading.transfer import StoppedTransferError, TransferError
from brasyn_dist.errors import BrasynError
from brasyn_dist.training import loggers, run_dir
from tests.data.shard_sets import write_set

FIRST = "train-00000.tar"


class FaultyServer:
    """HTTP server of a folder; `faults` is what happens to the next requests for a file."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {}
        self.released = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = Path(self.path.partition("?")[0]).name
                outer.requests[name] += 1
                data = (folder / name).read_bytes()
                fault = (outer.faults.get(name) or [""]).pop(0)
                if fault.isdigit():
                    return self.send_error(int(fault))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if fault:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    if fault == "stall":
                        outer.released.wait(30)
                    self.connection.close()
                else:
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *a: None  # type: ignore[method-assign]
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.address}/set"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0.02, 0.04, 0.08, 0.16))
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.6)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_set(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    yield server
    server.close()


def first_shard(index: ShardIndex) -> bytes:
    assert index.storage is not None
    descriptor = index.storage.open(index.shards[0])
    try:
        return os.read(descriptor, index.shards[0].size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "faults",
    [["stall"], ["break"], ["break"] * 4, ["503"], ["503", "break", "stall", "429"], ["500"] * 4, ["408"]],
    ids="-".join,
)
@pytest.mark.parametrize("name", ["index.json", FIRST])
def test_temporary_faults_are_survived(
    name: str, faults: list[str], server: FaultyServer, folder: Path, tmp_path: Path
):
    server.faults[name] = [*faults]
    index = open_shard_set(server.url, tmp_path)
    assert first_shard(index) == (folder / FIRST).read_bytes()
    assert server.requests[name] == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "cause", "attempts"),
    [
        ("stall", r"no data for 0\.6 s after \d+ bytes", 5),
        ("break", r"curl: \(18\).*after \d+ bytes", 5),
        ("503", "503", 5),
        ("404", "404", 1),
        ("401", "401", 1),
        ("403", "403", 1),
    ],
)
@pytest.mark.parametrize("name", ["index.json", FIRST])
def test_lasting_faults_are_named(
    name: str, fault: str, cause: str, attempts: int, server: FaultyServer, tmp_path: Path
):
    """With URL, number of attempts, last cause and remedy. The sample is not to be left out for that."""
    server.faults[name] = [fault] * 9
    expected = rf"^{server.url}/{name}: cannot be fetched \(.*{cause}.*attempts: {attempts}, .*check the URL"
    with pytest.raises(TransferError, match=expected) as error:
        first_shard(open_shard_set(server.url, tmp_path))
    assert server.requests[name] == attempts
    assert "quarantine" not in str(error.value)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://127.0.0.1:9/x", "curl: "),
        ("pipe:echo {} no such bucket >&2; exit 4", "no such bucket"),
        ("pipe:sleep 60; echo {}", "no data for"),
        ("nosuchscheme://host/x", "nosuchscheme"),
        ("pipe:false | cat {}", ""),
    ],
)
def test_other_sources_have_the_same_limits(url: str, cause: str, tmp_path: Path):
    with pytest.raises(TransferError, match=f"cannot be fetched .*{cause}"):
        open_shard_set(url, tmp_path)


def test_the_pauses_grow(monkeypatch: pytest.MonkeyPatch):
    moments: list[float] = []

    def fail() -> None:
        moments.append(time.monotonic())
        raise TransferError("no route to host")

    with pytest.raises(TransferError, match="attempts: 5"):
        transfer.with_retries(fail, "http://host/x")
    pauses = np.diff(moments)
    assert (pauses >= transfer.PAUSES).all() and (np.diff(pauses) > 0).all()


def test_a_stop_request_ends_a_stalled_transfer(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 60)
    index = open_shard_set(server.url, tmp_path)
    server.faults[FIRST] = ["stall"] * 9
    monkeypatch.setattr(STOP, "requested", False)
    threading.Timer(0.3, lambda: setattr(STOP, "requested", True)).start()
    with pytest.raises(StoppedTransferError):
        first_shard(index)
    assert server.requests[FIRST] == 1


@pytest.mark.slow
def test_sigterm_ends_a_training_that_waits_for_data(tmp_path: Path):
    """The checkpoint of the completed steps is saved, status 75."""
    from tests.distributed.warm import WarmRun
    from tests.small import small_shard_set

    shards = small_shard_set(tmp_path / "shards")
    server = FaultyServer(shards)
    last = sorted(path.name for path in shards.glob("train-*.tar"))[-1]
    server.faults[last] = ["stall"] * 9
    run = WarmRun(
        (f"runs_dir={tmp_path}", f"data.shards={server.url}", f"data.cache_dir={tmp_path}/cache",
         "training.epochs=3", "validation.slices=0"), tmp_path / "log", 1,
        environment={"no_proxy": "127.0.0.1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not server.requests[last] and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    rank = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0]
    os.kill(int(rank), signal.SIGTERM)
    status = run.wait(60)
    server.close()
    assert status == 75, (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "stopped"


SECRET = "s3cr3t"
URLS = (
    f"https://user:{SECRET}@host/set",
    f"https://{SECRET}@host/set",
    f"https://host/set/{{}}?X-Amz-Signature={SECRET}&x=1",
    f"pipe:curl -s -u name:{SECRET} https://host/{{}}",
    f"pipe:curl --user name:{SECRET} https://host/{{}}",
    f"pipe:curl -H 'Authorization: Bearer {SECRET}' https://host/{{}}",
    f"ftp://user:{SECRET}@host/set",
)


@pytest.mark.parametrize("url", URLS)
def test_secrets_are_in_no_message_and_no_file(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from brasyn_dist.cli.train import main

    monkeypatch.setattr(transfer, "PAUSES", ())
    monkeypatch.setattr(transfer, "_CURL", ("false",))
    monkeypatch.setattr("sys.argv", ["brasyn", "train", f"data.shards={url}"])
    config = load_config(None, [f"data.shards={json.dumps(url)}", f"runs_dir={tmp_path}"])
    assert SECRET not in to_yaml(config)
    (tmp_path / "run").mkdir()
    run_dir.record(tmp_path / "run", config, 1, "cpu", {})
    run_dir.note_failure(tmp_path / "run", BrasynError(f"{url}: cannot be fetched"))
    shown = redact(url)
    assert "host" in shown and SECRET not in shown
    url = url.replace("https://host", "http://127.0.0.1:9")
    assert main(["--dry-run", f"data.shards={json.dumps(url)}", f"data.cache_dir={tmp_path}/c"]) == 1
    output = capsys.readouterr()
    assert "cannot be fetched" in output.err and SECRET not in output.err + output.out
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET not in path.read_text(), path


@pytest.mark.parametrize("path", ["/data/a@b/c", "runs/x?y", "user@host:/x", "s3://bucket/a", "C=1?"])
def test_other_names_are_not_changed(path: str):
    assert redact(path) == path


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled")])
def test_variables_of_wandb_have_priority(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    assert loggers.wandb_mode(TelemetryConfig(wandb="online")) == value
    assert loggers.wandb_mode(TelemetryConfig()) == "off"


class Hanging:
    """A tracker whose connection is gone."""

    def scalars(self, lines: object) -> None: ...
    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None: ...

    def close(self, status: str) -> None:
        time.sleep(30)


def test_a_tracker_that_hangs_at_the_end_does_not_keep_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from brasyn_dist.common.logs import set_up_logging

    set_up_logging()
    monkeypatch.setattr(loggers, "END_SECONDS", 0.2)
    logger = loggers.RunLogger(TelemetryConfig(), tmp_path, is_main=True, total_steps=1)
    logger._trackers["W&B"] = Hanging()
    logger.close("finished")
    assert "W&B failed and is switched off" in capsys.readouterr().err
