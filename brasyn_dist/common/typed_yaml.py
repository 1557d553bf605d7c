"""Old place of these functions; import them from brasyn_dist.config."""

from brasyn_dist.config import from_dict, merge, read_yaml, set_by_path, to_dict, to_yaml

__all__ = ["from_dict", "merge", "read_yaml", "set_by_path", "to_dict", "to_yaml"]
