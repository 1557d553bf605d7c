"""Errors that a user can correct: every message names the file or option, the problem and the remedy."""


class BrasynError(Exception):
    """Error that the user can correct. Commands print it in one line, without a traceback."""


class ConfigError(BrasynError):
    """An option is unknown, of the wrong type, or contradicts another."""


class DataError(BrasynError):
    """A case, volume, shard or index cannot be used as it is."""


class CheckpointError(BrasynError):
    """A checkpoint or set of weights is incomplete, damaged, or belongs to another run."""


def out_of_memory(error: BaseException) -> str:
    """Message if the host or a GPU has no memory left, for which torch raises RuntimeErrors; else empty."""
    signs = ("out of memory", "can't allocate memory", "std::bad_alloc", "ALLOC_FAILED")
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    found = isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)
    return f"out of memory ({cause})" if found else ""
