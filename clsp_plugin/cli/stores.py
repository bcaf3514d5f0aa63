"""``clsp import-denoiser``, ``embed`` and ``inspect``, for denoisers, conditions and stores."""

import argparse
from pathlib import Path

from clsp_plugin.cli.arguments import add_images, data_of, is_data
from clsp_plugin.config.compose import DEFAULT_DATASET
from clsp_plugin.config.rules import SEED, Rule, check_value
from clsp_plugin.errors import ClspError

__all__ = ["embed", "import_denoiser", "inspect"]

_ENCODER = (
    "the directory of a run, timm:NAME, hf:NAME, the name of a network of torchvision, or a folder "
    "of timm or transformers"
)


def import_denoiser(args: list[str]) -> None:
    """Run ``clsp import-denoiser`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp import-denoiser",
        description="Convert a checkpoint of the authors' train_diffusion.py or "
        "train_conditional_diffusion.py (ckpt_ema_*.pt) to a denoiser in diffusers' format, which "
        "`clsp generate denoiser=DIR` takes.",
    )
    parser.add_argument("file", type=Path, help="the .pt file")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--image-size", type=int, default=32, help="in pixels (default 32)")
    parser.add_argument("--beta-start", type=float, default=1e-4, help="default 1e-4")
    parser.add_argument(
        "--beta-end",
        type=float,
        default=0.02,
        help="default 0.02; the class-conditional recipe has 0.028",
    )
    options = parser.parse_args(args)

    from clsp_plugin.diffusion.convert import import_denoiser as convert

    name = convert(**vars(options))
    print(f"Denoiser: {options.out} ({name}, from {options.file})")


def embed(args: list[str]) -> None:
    """Run ``clsp embed`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp embed",
        description="Write the features of the training images in a pre-trained encoder, or their "
        "clusters, to a file that `clsp denoiser` and `clsp generate` take as condition=FILE; or, "
        "with --table, features and labels to a file for scikit-learn and pandas.",
    )
    parser.add_argument("encoder", help=f"a checkpoint, {_ENCODER}")
    add_images(parser, "denoiser")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.npz, or .parquet)")
    parser.add_argument("--clusters", type=int, help="write k-means clusters, so many of them")
    parser.add_argument("--seed", type=int, default=0, help="of k-means (default 0)")
    parser.add_argument(
        "--table", action="store_true", help="write the features as they are, with the labels"
    )
    parser.add_argument(
        "--split", choices=("train", "val"), default="train", help="with --table (default train)"
    )
    options = parser.parse_intermixed_args(args)

    check_value("--seed", options.seed, SEED)
    check_value("--clusters", options.clusters, Rule(low=1))
    if options.table and options.clusters is not None:
        raise ClspError("--clusters makes a condition for a denoiser; leave it or --table out.")
    if not options.table and (options.split != "train" or options.out.suffix == ".parquet"):
        raise ClspError(
            f"A condition of a denoiser is an .npz of the training images, which --split "
            f"{options.split} --out {options.out} does not say; give --table for a table."
        )
    from clsp_plugin.data.images import load_images
    from clsp_plugin.evaluation.embed import embed as write_condition
    from clsp_plugin.evaluation.embed import embed_table

    name = options.config_name or f"{DEFAULT_DATASET}/denoiser"
    data = data_of("denoiser", name, options.data)
    array = load_images(data, options.split)
    if array is None:
        raise ClspError("There are no images to test on; set data.val_path to their folder.")
    if options.table:
        print(embed_table(options.encoder, array, options.out, data))
        return
    print(
        write_condition(options.encoder, array, options.out, options.clusters, options.seed, data)
    )


def inspect(args: list[str]) -> None:
    """Run ``clsp inspect`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp inspect",
        description="Print a store's manifest, and write a report and pictures of its candidates: "
        "a sheet, and how near they are to their anchors.",
    )
    parser.add_argument(
        "store",
        nargs="+",
        help="a store that `clsp generate` wrote; several of the same images are compared, in "
        "numbers and a picture, which takes --encoder and --out",
    )
    add_images(parser, "generate")
    parser.add_argument("--out", type=Path, help="folder to write to (default STORE/report)")
    parser.add_argument(
        "--encoder",
        help="adds the similarity of positive pairs, the agreement of labels and a Frechet "
        f"distance in its features: a checkpoint, {_ENCODER}",
    )
    parser.add_argument(
        "--denoiser",
        help="the store's: adds a sheet of several weights w, samples with the middle feature "
        "masked, and a t-SNE of middle features",
    )
    parser.add_argument(
        "--condition", help="with --denoiser, as it was given to `clsp generate`, if it was"
    )
    parser.add_argument("--fid", action="store_true", help="adds the FID (needs torch-fidelity)")
    parser.add_argument("--limit", type=int, default=1000, help="anchors looked at (default 1000)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only read all of it and hold it against the digests of its shards",
    )
    options = parser.parse_intermixed_args(args)

    from clsp_plugin.candidates.manifest import generate_config
    from clsp_plugin.data.images import load_images
    from clsp_plugin.inspection.report import inspect_store, open_store, verify_store
    from clsp_plugin.inspection.summary import summary

    # argparse puts every positional argument in the list of stores, data.key=value included
    options.data += [arg for arg in options.store if is_data(arg)]
    options.store = [Path(arg) for arg in options.store if not is_data(arg)]
    if not options.store:
        raise ClspError("clsp inspect needs a store; name one that `clsp generate` wrote.")
    if options.verify:
        for each in options.store:
            print(verify_store(each))
        return
    store, *more = options.store
    manifest = open_store(store).need_manifest()
    name = options.config_name or generate_config(manifest.dataset)
    if options.config_name is None and manifest.dataset.startswith("custom/"):
        options.data.insert(0, f"data.image_size={manifest.height}")
    data = data_of("generate", name, options.data)
    if more:
        _compare(options, data)
        return
    report = inspect_store(
        store,
        load_images(data, "train"),
        options.out or store / "report",
        encoder=options.encoder,
        denoiser=options.denoiser,
        condition=options.condition,
        fid=options.fid,
        limit=options.limit,
        data=data,
    )
    print(summary(report))
    print(f"Written to {options.out or store / 'report'}")


def _compare(options: argparse.Namespace, data) -> None:
    """Run ``clsp inspect`` on several stores."""
    if options.encoder is None or options.out is None:
        raise ClspError("Several stores are compared by an encoder: give --encoder and --out.")
    if options.denoiser or options.condition or options.fid:
        raise ClspError(
            "--denoiser, --condition and --fid are about one store; name one, or leave them out."
        )

    from clsp_plugin.data.images import load_images
    from clsp_plugin.inspection.plane import compare_stores, side_by_side

    keys = {"encoder": options.encoder, "limit": options.limit, "data": data}
    print(
        side_by_side(compare_stores(options.store, load_images(data, "train"), options.out, **keys))
    )
    print(f"Written to {options.out}")
