"""Find solo-learn's training images by the index that its batches carry, for all its loaders."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from clsp_plugin.errors import ClspError

__all__ = ["DaliFiles", "host_images"]


def host_images(loader: Any, cfg: DictConfig) -> Any:
    """Return the data set that the indexes in a loader's batches refer to.

    Args:
        loader: solo-learn's training loader.
        cfg: solo-learn's configuration.

    Returns:
        A data set with a ``transform`` that yields ``(index, image, ..)``.

    Raises:
        ClspError: the loader has no data set to read, or its batches carry no indexes of images.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is not None:
        return dataset
    if cfg.data.format != "dali":
        raise ClspError(
            f"A {type(loader).__name__} has no dataset whose images could be matched with the "
            f"candidates; use data.format=image_folder."
        )
    if not cfg.dali.encode_indexes_into_labels:
        raise ClspError(
            "DALI's batches do not say which images they are of; set "
            "dali.encode_indexes_into_labels=True, or data.format=image_folder."
        )
    return DaliFiles(Path(cfg.data.train_path), cfg.data.no_labels, cfg.data.fraction)


class DaliFiles:
    """The files of solo-learn's DALI pipeline, in the order of its indexes.

    Args:
        root: a folder of class folders, or of images if ``no_labels``.
        no_labels: whether ``root`` holds the images themselves.
        fraction: share of the images that is used, stratified; -1 for all.
    """

    transform = None

    def __init__(self, root: Path, no_labels: bool, fraction: float):
        if no_labels:
            files = [root / name for name in sorted(path.name for path in root.iterdir())]
            labels = [-1] * len(files)
        else:
            folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
            found = [
                (folder / name, number)
                for number, folder in enumerate(folders)
                for name in sorted(path.name for path in folder.iterdir())
            ]
            files, labels = [file for file, _ in found], [number for _, number in found]
        if fraction > 0:
            from sklearn.model_selection import train_test_split

            files, _, labels, _ = train_test_split(
                files, labels, train_size=fraction, stratify=labels, random_state=42
            )
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Image.Image, int]:
        with Image.open(self.files[index]) as image:
            return index, image.convert("RGB"), self.labels[index]
