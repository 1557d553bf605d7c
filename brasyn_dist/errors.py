"""Errors that a user can correct: every message names the file or option, the problem and the remedy."""


class BrasynError(Exception):
    """Error that the user can correct. Commands print it in one line, without a traceback."""


class ConfigError(BrasynError):
    """An option is unknown, of the wrong type, or contradicts another."""


class DataError(BrasynError):
    """A case, volume, shard or index cannot be used as it is."""


class CheckpointError(BrasynError):
    """A checkpoint or set of weights is incomplete, damaged, or belongs to another run."""
