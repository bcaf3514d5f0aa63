"""Folders to the Hugging Face hub, and from there."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from clsp_plugin.errors import ClspError, first_line

__all__ = ["from_hub", "push_to_hub"]


def push_to_hub(folder: str | Path, name: str, kind: str, private: bool = False) -> str:
    """Upload a folder to a repository of the hub, which is made if there is none.

    Args:
        folder: the folder.
        name: ``USER/NAME`` of the repository.
        kind: ``model`` or ``dataset``.
        private: whether a new repository is for the user's eyes only.

    Returns:
        The address of the repository.

    Raises:
        ClspError: the hub refuses it or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, repo_type=kind,
                          commit_message="Upload by clsp-plugin")  # fmt: skip
    except Exception as error:  # without a connection those of the library that it speaks HTTP by
        raise ClspError(
            f"--push-to-hub {name}: the hub did not take it ({first_line(error)}); log in by `hf "
            f"auth login`, and check the name and the connection."
        ) from error
    return str(address)


def from_hub(name: str, kind: str) -> Path:
    """Download a repository of the hub, or take it from the cache; return its folder.

    Raises:
        ClspError: there is no such repository, or it cannot be reached.
    """
    try:
        return Path(snapshot_download(name, repo_type=kind))
    except Exception as error:  # see above
        raise ClspError(
            f"hf:{name} cannot be had from the hub ({first_line(error)}); check the name and the "
            f"connection."
        ) from error
