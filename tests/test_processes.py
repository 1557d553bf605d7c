"""Exit of a process: its status, and that pending work is finished."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def leave(body: str) -> subprocess.CompletedProcess[str]:
    code = f"import atexit, sys, threading, time\nfrom brasyn_dist.common.processes import run_and_leave\n{body}\nrun_and_leave(main)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("return 0", 0),
        ("return 75", 75),
        ("sys.exit(3)", 3),
        ("sys.exit()", 0),
        ("sys.exit('why')", 1),
        ("1 / 0", 1),
    ],
)
def test_status_is_that_of_main(statement: str, status: int):
    done = leave(f"def main():\n    {statement}")
    assert done.returncode == status
    assert ("ZeroDivisionError" in done.stderr) == (statement == "1 / 0")
    assert ("why" in done.stderr) == ("why" in statement)


def test_threads_finish_exit_handlers_run_and_output_is_written():
    done = leave("""
def late():
    time.sleep(0.3)
    print("thread")

def main():
    atexit.register(lambda: sys.stdout.write("handler"))
    threading.Thread(target=late).start()
    return 0
""")
    assert (done.returncode, done.stdout) == (0, "thread\nhandler")


@pytest.mark.parametrize(("statement", "status"), [("return 0", 0), ("raise OSError('disk full')", 1)])
def test_an_open_thread_pool_does_not_keep_the_process(statement: str, status: int):
    """torch.compile on a CPU keeps such a pool: its threads wait for the exit functions of concurrent.futures."""
    done = leave(f"""
from concurrent.futures import ThreadPoolExecutor

def main():
    global pool
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()
    {statement}
""")
    assert done.returncode == status, done.stderr
