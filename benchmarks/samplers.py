"""Measure the time and quality of fewer sampling steps, half precision and shared anchors.

Every row draws candidates of the same anchors from the same noise, with the same denoiser and
batch. The time per candidate is that of the whole row; without a GPU it is CPU time of all
threads, which other load on the machine affects little. Colour and layout, labels, similarity and
the Frechet distance are those of ``clsp inspect``; the distance is that of the first candidates.

    python benchmarks/samplers.py DENOISER --encoder CHECKPOINT data.dataset=cifar10 \\
        data.train_path=./datasets data.fraction=0.04 --anchors 500 --clip \\
        --rows ddim:100 dpmpp:12 dpmpp:12:bf16-mixed:shared
"""

import argparse
import platform
import time

import numpy as np
import torch

from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.images import load_images
from clsp_plugin.diffusion.denoiser import load_denoiser
from clsp_plugin.diffusion.drawer import Drawer, GenerationSettings
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.evaluation.similarity import label_agreement, pair_similarities
from clsp_plugin.inspection.frechet import frechet_distance
from clsp_plugin.inspection.hardness import closeness

ROWS = tuple(f"{sampler}:{steps}" for sampler in ("ddim", "dpmpp") for steps in (100, 50, 25, 12))
COLUMNS = (
    "sampler", "steps", "precision", "anchors", "s a candidate", "Frechet", "label agrees (%)",
    "similarity", "colour (%)", "layout (%)",
)  # fmt: skip


def row_settings(row: str) -> dict:
    """Convert SAMPLER:STEPS[:PRECISION][:shared] to settings of the generation."""
    sampler, steps, *more = row.split(":")
    shared = more[-1:] == ["shared"]
    precision = more[0] if len(more) > shared else "32-true"
    cfg = {"sampler": sampler, "steps": int(steps), "precision": precision}
    return {**cfg, "share_anchor": shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("denoiser")
    parser.add_argument("data", nargs="*", metavar="data.key=value")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--anchors", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=1, help="an anchor")
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, metavar="SAMPLER:STEPS[:PRECISION][:shared]"
    )
    parser.add_argument("--w", type=float, default=0.1)
    parser.add_argument("--clip", action="store_true")
    args = parser.parse_intermixed_args()

    data = typed(compose("generate", "cifar/generate", args.data).data, Data)
    array = load_images(data, "train")
    rows = [int(row) for row in np.linspace(0, len(array) - 1, args.anchors).round()]
    anchors = array.images[rows]
    rest = array.images[np.setdiff1d(np.arange(len(array)), rows)]
    encoder = Encoder(args.encoder, data=data)
    print(
        f"{args.candidates} candidates of each of {args.anchors} anchors of {array.name}, "
        f"w = {args.w:g}; {platform.machine()}, {torch.get_num_threads()} threads; torch "
        f"{torch.__version__}. Frechet distance of as many real images: "
        f"{frechet_distance(encoder, rest, anchors):.2f}, in the features of {encoder.name}.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
    for cfg in map(row_settings, args.rows):
        keys = {"num_candidates": args.candidates, "w": args.w, "clip": args.clip}
        unet, config = load_denoiser(args.denoiser)
        # noise is keyed by the image's index, which is here its position among the anchors
        settings = GenerationSettings(**keys, **cfg)
        drawer = Drawer(anchors, unet, config, settings, array.targets[rows])
        clock = time.process_time if drawer.device.type == "cpu" else time.perf_counter
        began = clock()
        numbers = range(args.candidates)
        drawn = torch.from_numpy(drawer.draw(0, len(anchors), numbers))
        seconds = (clock() - began) / (len(anchors) * len(numbers))
        near = closeness(anchors, drawn)
        label = label_agreement(encoder, array, drawn, rows)
        similar = pair_similarities(encoder, anchors, drawn)["a view and a candidate"]
        parts = [cfg["sampler"], cfg["steps"], cfg["precision"]]
        parts += ["shared" if cfg["share_anchor"] else "own", f"{seconds:.3f}"]
        parts += [f"{frechet_distance(encoder, rest, drawn[:, 0]):.2f}"]
        parts += [f"{label['candidates']:.1f}", f"{similar.mean():.3f}"]
        parts += [f"{100 * n['closer']:.1f} ± {100 * n['error']:.1f}" for n in near.values()]
        print(f"| {' | '.join(map(str, parts))} |", flush=True)
    print(
        f"\nLabels agree for the anchors themselves in {label['anchors']:.1f} %, with another "
        f"anchor's in {label['chance']:.1f} %."
    )


if __name__ == "__main__":
    main()
