"""Failures of the machine in words that help: a lost rank, a full or read-only disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brasyn_dist.distributed.process_group import Distributed, is_lost_peer
from brasyn_dist.errors import BrasynError

INTACT = "Complete checkpoints are untouched: when that is mended, the same command continues"


class MachineError(BrasynError):
    """Another process, the network or the file system failed this one."""


@contextmanager
def explaining(run_dir: Path, distributed: Distributed) -> Iterator[None]:
    """Turn errors of exchange between ranks and of the run folder into MachineError; others pass as they are."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"rank {distributed.rank}: {run_dir}: {error}. Free space, or make the folder writable. {INTACT}"
        ) from error
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        minutes = distributed.runtime.collective_timeout_minutes
        raise MachineError(
            f"rank {distributed.rank}: no answer from another rank; it has failed, or did not answer for {minutes:g} minutes "
            f"(runtime.collective_timeout_minutes). Its own message, above or in {run_dir}/logs/rank-*.log, says why. {INTACT}. "
            f"[{str(error).splitlines()[0]}]"
        ) from error
