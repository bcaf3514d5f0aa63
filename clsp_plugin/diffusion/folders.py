"""Folders of networks in diffusers' format: their configuration, weights and digests."""

import contextlib
import logging
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from clsp_plugin.diffusion.schedulers import is_number
from clsp_plugin.errors import ClspError
from clsp_plugin.system.digests import changed_files, write_digests
from clsp_plugin.system.files import whole_folder
from clsp_plugin.system.json_files import read_json

__all__ = [
    "INDEX",
    "check_absent",
    "check_weights",
    "fetched",
    "invalid_setting",
    "load_network",
    "made_whole",
    "read_config",
]

INDEX = "model_index.json"  # file of a pipeline's folder that names its parts
_LARGEST_LIST = 16  # values of a setting
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


def invalid_setting(
    config: Mapping[str, Any], largest: Mapping[str, int], lists: Container[str]
) -> str | None:
    """Say which setting of a network is beyond its limit or no number; None if all are valid.

    Args:
        config: content of its configuration file.
        largest: a setting to its largest accepted number.
        lists: settings that may be a list of numbers.
    """
    for key, most in largest.items():
        given = config.get(key)
        values = given if isinstance(given, list) and key in lists else [given]
        if len(values) > _LARGEST_LIST or not all(is_number(v, most) for v in values):
            return f"has {key}={str(given)[:60]}, which is not valid"
    return None


def fetched(source: str, download: Callable[[str], object], what: str, example: str) -> Path:
    """Download a network from the Hugging Face hub and return its local folder.

    Args:
        source: its id there.
        download: takes the id and returns the folder.
        what: what it is, which is also the verb of ``clsp`` that trains one.
        example: id of one on the hub.

    Raises:
        ClspError: it is no id, or cannot be fetched.
    """
    article = "an" if what[0] in "aeiou" else "a"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ClspError(
            f"There is no {what} directory at {source}; `clsp {what}` trains one, or name one on "
            f"the hub such as {example}."
        )
    try:
        return Path(str(download(source)))
    except Exception as error:  # the hub's client, its cache and the network may raise anything
        raise ClspError(
            f"{source} is neither a directory here nor could it be fetched from the hub "
            f"({type(error).__name__}); `clsp {what}` trains {article} {what}."
        ) from error


def check_absent(path: Path) -> None:
    """Refuse to write over anything: raises ClspError unless path is absent or an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise ClspError(f"{path} already exists; choose another out= or delete it.")


def made_whole(
    path: Path, save: Callable[[Path], object], parts: Iterable[str], files: Mapping[str, str]
) -> None:
    """Write a directory so that it appears whole or not at all.

    Args:
        path: the directory; it must not exist yet.
        save: writes networks into the folder that it is given.
        parts: folders in it that may hold a network; digests are written beside their weights.
        files: further text files, name to content.

    Raises:
        ClspError: the path exists, or there is no room for it.
    """
    check_absent(path)
    try:
        with whole_folder(path) as temporary:
            save(temporary)
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
            for folder in (temporary / part for part in parts):
                if folder.is_dir():
                    write_digests(folder / _DIGESTS, sorted(folder.glob("*.safetensors")))
    except SafetensorError as error:
        raise ClspError(
            f"{path} could not be written ({error}); make room, or choose another place."
        ) from error
    except OSError:
        check_absent(path)  # another process was faster
        raise


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers from warning of a setting that it writes for AutoencoderTiny itself."""
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
        with _quiet():
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
