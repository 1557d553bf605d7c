"""Errors that a user can act on: every message names the thing, the problem and the remedy."""


class BrasynError(Exception):
    """Error that the user can correct: a file, an option, a run folder. Commands print it without a traceback."""


class ConfigError(BrasynError):
    """An option is unknown, of the wrong type, or contradicts another."""


class DataError(BrasynError):
    """A case, volume, shard or index cannot be used as it is."""


class CheckpointError(BrasynError):
    """A checkpoint or set of weights is incomplete, damaged, or belongs to another run."""
