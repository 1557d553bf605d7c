"""A short drill: inference and sharding that are killed and started again give equal bytes."""

from pathlib import Path

import pytest

from tests.robustness.drill import COMMANDS, drill


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_kills_end_with_equal_bytes(command: str, tmp_path: Path):
    hits, compared = drill(command, tmp_path / "drill", kills=2, seed=1)
    assert hits == 2 and compared >= 1
