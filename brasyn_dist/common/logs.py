"""Console logging of all commands: messages on stdout, warnings and errors on stderr.

`BRASYN_LOG=debug` (or info, warning, error) sets the level. At level debug every line has the time, the rank
and the module.
"""

import io
import logging
import os
import re
import sys

from brasyn_dist.errors import ConfigError

LEVEL_VARIABLE = "BRASYN_LOG"
LEVELS = ("debug", "info", "warning", "error")


class ConsoleFormatter(logging.Formatter):
    """The bare message at level info; `warning: ` and `error: ` in front of the others."""

    def format(self, record: logging.LogRecord) -> str:
        """Text of a record."""
        text = redact(super().format(record))
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class StandardStream(logging.StreamHandler):
    """Writes to the stream that `sys` names when the record is written, so that redirection works."""

    def __init__(self, name: str) -> None:
        logging.Handler.__init__(self)
        self.name = name

    @property
    def stream(self):
        """The standard stream at this moment."""
        return getattr(sys, str(self.name))


_SECRETS = re.compile(
    r"(?<=://)[^/@\s'\"]+(?=@)"  # user:password@host
    r"|(?<=\?)[^\s'\"#]*=[^\s'\"#]*"  # ?signature=...
    r"|(?<=authorization: )[^'\"]+|(?<=--user )\S+|(?<=-u )\S+:\S+",  # of a pipe: command
    re.I,
)


def redact(text: str) -> str:
    """`text` without the passwords and keys in URLs and in headers."""
    return _SECRETS.sub("***", text)


def make_printable() -> None:
    """Print characters that a stream's encoding lacks as escapes: file names can contain any bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_up_logging() -> None:
    """Send the package's log records to the console. A second call changes nothing but the level.

    Raises:
        ConfigError: The variable BRASYN_LOG names no level.
    """
    level = os.environ.get(LEVEL_VARIABLE, "info").lower()
    if level not in LEVELS:
        raise ConfigError(f"{LEVEL_VARIABLE}={level!r}: choose from {', '.join(LEVELS)}")
    log = logging.getLogger("brasyn_dist")
    log.setLevel(level.upper())
    log.handlers.clear()
    rank = os.environ.get("RANK", "0")
    detailed = logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    for name in ("stdout", "stderr"):
        handler = StandardStream(name)
        handler.setFormatter(detailed if level == "debug" else ConsoleFormatter())
        if name == "stdout":
            handler.addFilter(lambda record: record.levelno < logging.WARNING)
        else:
            handler.setLevel(logging.WARNING)
        log.addHandler(handler)
