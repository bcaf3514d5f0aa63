"""``clsp export`` and ``clsp import-candidates``."""

import argparse
import tempfile
from pathlib import Path

from clsp_plugin.cli.arguments import add_images, data_of
from clsp_plugin.errors import ClspError

__all__ = ["export", "import_candidates"]


def export(args: list[str]) -> None:
    """Run ``clsp export`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp export",
        description="Write the backbone of a checkpoint for another library, or a candidate store "
        "as a data set, with a card; and upload it to the Hugging Face hub where that is asked "
        "for.",
    )
    parser.add_argument("what", help="a checkpoint, the directory of a run, or a candidate store")
    parser.add_argument(
        "--format",
        help="of a backbone: timm (the default; transformers reads it too), hf (the same), "
        "torchvision or onnx",
    )
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="upload the folder to this repository"
    )
    parser.add_argument("--private", action="store_true", help="where the repository is made")
    options = parser.parse_args(args)
    if options.out is None and options.push_to_hub is None:
        raise ClspError("Nothing says where to: give --out DIR, --push-to-hub USER/NAME, or both.")

    from clsp_plugin.candidates.manifest import MANIFEST

    is_store = (Path(options.what) / MANIFEST).is_file()
    if is_store and options.format is not None:
        raise ClspError(f"--format {options.format} is for backbones; leave it out for a store.")

    from clsp_plugin.export.backbone import export_backbone
    from clsp_plugin.export.hub import push_to_hub
    from clsp_plugin.export.store import export_store

    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "exported"
        if is_store:
            made = export_store(options.what, out)
        else:
            made = export_backbone(options.what, out, options.format or "timm")
        if options.out is not None:
            print(f"Exported: {made} ({made / 'README.md'} says how to load it)")
        if options.push_to_hub is not None:
            kind = "dataset" if is_store else "model"
            print(f"On the hub: {push_to_hub(made, options.push_to_hub, kind, options.private)}")


def import_candidates(args: list[str]) -> None:
    """Run ``clsp import-candidates`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp import-candidates",
        description="Make a candidate store of what `clsp export STORE` wrote, or of the images "
        "that another generator drew for the training images.",
    )
    parser.add_argument(
        "source",
        help="a folder that was exported, or hf:USER/NAME of the Hugging Face hub; a folder of "
        "images that are named like those they belong to (cat/7_0.png), or a .npy or .npz of uint8 "
        "(N, K, H, W, 3), for the images that data.key=value say",
    )
    add_images(parser, "generate")
    parser.add_argument("--out", type=Path, required=True, help="directory of the store")
    parser.add_argument("--num-candidates", type=int, help="only the first of each image")
    parser.add_argument("--name", help="of the generator (default: the source's)")
    parser.add_argument(
        "--encoding",
        choices=("raw", "jpeg", "webp"),
        default="raw",
        help="how they are stored: as pixels, or encoded in a fraction of the room",
    )
    parser.add_argument("--quality", type=int, default=90, help="of the encoding, 1 to 100")
    options = parser.parse_intermixed_args(args)
    if not 1 <= options.quality <= 100:
        raise ClspError(f"--quality {options.quality} is not between 1 and 100.")

    from clsp_plugin.candidates.imported import check_source, import_drawn
    from clsp_plugin.data.images import load_images
    from clsp_plugin.export.hub import from_hub
    from clsp_plugin.export.store import import_store, is_exported_store

    source = options.source
    if source.startswith("hf:"):
        source = from_hub(source.removeprefix("hf:"), "dataset")
    if is_exported_store(source):
        print(import_store(source, options.out))
        return
    check_source(source)  # before images are read, or fetched
    data = data_of("generate", options.config_name or "cifar/generate", options.data)
    array = load_images(data, "train")
    print(
        import_drawn(
            source,
            array,
            data,
            options.out,
            options.num_candidates,
            options.name,
            encoding=options.encoding,
            quality=options.quality,
        )
    )
