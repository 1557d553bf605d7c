"""Content of a URL in pieces, with a limit for stalls, and repeated attempts.

    http, https, ftp, ... --> curl      pipe:COMMAND --> shell      s3, gs, ... --> webdataset.gopen

A transfer without data for `STALL_SECONDS` is ended. A stop request (`processes.STOP`) ends it at once.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from brasyn_dist.common.logs import redact
from brasyn_dist.common.processes import STOP
from brasyn_dist.errors import DataError

T = TypeVar("T")
STALL_SECONDS = 60.0
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts."""
CHUNK = 2**20
_POLL = 0.2
_CURL = ("curl", "-f", "-sS", "--location", "--netrc-optional", "--connect-timeout", "30")
_PERMANENT = re.compile(
    r"curl: \((1|3|9|37|60|67|78)\)|error: 4(?!08|25|29)\d\d|no command|not found in|unknown|unsupported",
    re.I,
)
"""Causes that another attempt does not change: wrong URL, protocol, name or password."""


class TransferError(DataError):
    """A file behind a URL could not be fetched."""


class StoppedTransferError(TransferError):
    """A stop request has ended a transfer."""


def url_chunks(url: str) -> Iterator[bytes]:
    """Content of `url` in pieces.

    Raises:
        TransferError: With the cause and the bytes received; the URL is left to the caller.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "pipe":
        yield from _output(["bash", "-o", "pipefail", "-c", url.partition(":")[2]], "")
    elif scheme in ("http", "https", "ftp", "ftps", "sftp", "scp"):
        # The URL is not an argument: it may contain a password, and other users see arguments.
        quoted = url.replace("\\", "\\\\").replace('"', '\\"')
        yield from _output([*_CURL, "--config", "-"], f'url = "{quoted}"\n')
    else:
        from webdataset.gopen import gopen  # the import takes seconds

        try:
            with gopen(url, "rb") as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except (OSError, ValueError) as error:
            raise TransferError(str(error)) from None


def _output(command: list[str], text: str) -> Iterator[bytes]:
    """Output of a command that gets `text` as input."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        assert process.stdin and process.stdout
        received, last = 0, time.monotonic()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(text.encode(errors="surrogateescape"))
                process.stdin.close()
            while True:
                if STOP.requested:
                    raise StoppedTransferError("stopped on request")
                if select.select([process.stdout], [], [], _POLL)[0]:
                    if not (chunk := os.read(process.stdout.fileno(), CHUNK)):
                        break
                    received, last = received + len(chunk), time.monotonic()
                    yield chunk
                elif time.monotonic() - last > STALL_SECONDS:
                    raise TransferError(f"no data for {STALL_SECONDS:g} s after {received} bytes")
            status = process.wait(STALL_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()
        if status != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            cause = lines[-1] if lines else f"{command[0]} ended with status {status}"
            raise TransferError(f"{cause}, after {received} bytes")


def with_retries(fetch: Callable[[], T], url: str) -> T:
    """Result of `fetch`, which is repeated with growing pauses if it raises TransferError.

    Raises:
        TransferError: With URL, attempts, seconds and the last cause.
    """
    begin = time.monotonic()
    for attempt, pause in enumerate((*PAUSES, None), 1):
        try:
            return fetch()
        except StoppedTransferError:
            raise
        except TransferError as error:
            if pause is None or _PERMANENT.search(str(error)):
                seconds = time.monotonic() - begin
                raise TransferError(
                    f"{redact(url)}: cannot be fetched ({redact(str(error))}; attempts: {attempt}, "
                    f"{seconds:.0f} s); check the URL and the server, then run the same command again"
                ) from None
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if STOP.requested:
                raise StoppedTransferError(f"{redact(url)}: stopped on request")
            time.sleep(min(_POLL, pause))
    raise AssertionError
