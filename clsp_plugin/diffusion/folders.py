"""Folders of networks in diffusers' format: their configuration, weights and digests."""

from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError
from clsp_plugin.system.digests import changed_files, write_digests
from clsp_plugin.system.json_files import read_json

__all__ = ["INDEX", "check_weights", "load_network", "read_config", "write_weight_digests"]

INDEX = "model_index.json"  # file of a pipeline's folder that names its parts
_DIGESTS = "weights.b2"  # file of digests beside the weights
_ADVICE = "a denoiser is a directory in diffusers' format, `clsp denoiser` trains one."


def read_config(path: Path, advice: str = _ADVICE) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ClspError: it is missing or damaged; the sentence ends with ``advice``.
    """
    try:
        return read_json(path, dict[str, Any], "a configuration in diffusers' format", advice)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClspError(f"{path} cannot be read, it is missing; {advice}") from error


def write_weight_digests(folder: Path) -> None:
    """Write the digests of the weights in a network's folder beside them."""
    write_digests(folder / _DIGESTS, sorted(folder.glob("*.safetensors")))


def check_weights(folder: Path) -> None:
    """Refuse weights that changed since they were written, if the folder has their digests."""
    listing = folder / _DIGESTS
    changed = changed_files(listing) if listing.is_file() else []
    if changed:
        raise ClspError(
            f"{folder / changed[0]} changed since being written, as the digest in {_DIGESTS} "
            f"beside says; take the denoiser from a copy or make it again, or delete {listing} "
            f"if you changed it yourself."
        )


def load_network(kind: Any, folder: Path, advice: str) -> Any:
    """Load a network, and refuse one with missing, unexpected or changed weights.

    Args:
        kind: its class in diffusers.
        folder: the folder with ``config.json`` and the weights.
        advice: what to do instead; ends the sentence.

    Returns:
        The network in evaluation mode, in float32 on the CPU.
    """
    try:
        network, info = kind.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
        )
    except Exception as error:  # diffusers may raise anything on a damaged or foreign file
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the system
        reason = " ".join(str(error).split())[:200]
        raise ClspError(f"The weights in {folder} cannot be loaded ({reason}); {advice}") from error
    wrong = {name: info[name] for name in ("missing_keys", "unexpected_keys") if info[name]}
    if wrong:
        found = ", ".join(f"{len(names)} {kind}" for kind, names in wrong.items())
        raise ClspError(f"The weights in {folder} are not those of its config.json ({found}).")
    check_weights(folder)
    return network.eval()
