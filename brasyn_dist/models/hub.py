"""Exports on the Hugging Face hub: `ORG/NAME` in place of a folder.

Files are downloaded once into the cache of `huggingface_hub`; without network the cached files are used. The
environment variables of that package apply: HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brasyn_dist.common.optional_packages import require
from brasyn_dist.config import RunConfig
from brasyn_dist.errors import CheckpointError

LOCAL = (RunConfig.runs_dir, ".", "..")
"""Folders that are meant by these words, although they do not exist yet."""


def is_hub_name(path: Path | str) -> bool:
    """Whether `path` has the form ORG/NAME, and ORG is neither a folder nor the default folder of runs."""
    folder = Path(path).parent
    form = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
    return form is not None and str(folder) not in LOCAL and not folder.exists()


def download(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Folder of the cache with `files` of a model.

    Args:
        name: ORG/NAME.
        files: File names in the model's repository.
        revision: Branch, tag or commit; None: `main`.

    Raises:
        ConfigError: The package huggingface_hub is not installed.
        CheckpointError: The model does not exist or is not accessible, or there is neither network nor cache.
    """
    require("huggingface_hub", "hub", f"the model {name} (no such folder)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the classes of network and access errors differ between versions
        raise CheckpointError(
            f"{name}: no such folder, and no such model could be fetched from the hub ({one_line(error)}); "
            "check the name, the network and the access token (HF_TOKEN)"
        ) from None


def upload(folder: Path, name: str, *, private: bool, message: str, token: str | None = None) -> str:
    """Create the model `name` if it does not exist, and upload the folder as one commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: The package huggingface_hub is not installed.
        CheckpointError: The hub refused it, or could not be reached.
    """
    require("huggingface_hub", "hub", "an upload to the hub")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit: Any = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:
        raise CheckpointError(
            f"{name}: could not be uploaded ({one_line(error)}); check the name, the network and the access "
            "token (HF_TOKEN, or `hf auth login`)"
        ) from None
    return str(commit.commit_url)


def one_line(error: Exception) -> str:
    """Class and text of an error without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
