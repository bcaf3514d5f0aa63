"""What fewer sampling steps cost: time, and how good one candidate an image is.

Every row draws one candidate of the same anchors from the same noise, with the same denoiser and
batch. The time is that of the whole row; without a GPU it is the processor's, of all threads, in
which whatever else the machine does counts little. Colour and layout, labels and the Frechet
distance are those of ``clsp inspect``.

    python benchmarks/samplers.py DENOISER --encoder CHECKPOINT data.dataset=cifar10 \\
        data.train_path=./datasets data.fraction=0.04 --anchors 500 --clip
"""

import argparse
import itertools
import platform
import time

import numpy as np
import torch

from clsp_plugin.benchmark.inspection import (
    Encoder,
    closeness,
    frechet_distance,
    label_agreement,
)
from clsp_plugin.cli import compose
from clsp_plugin.data.images import load_images
from clsp_plugin.diffusion.denoiser import load_denoiser
from clsp_plugin.diffusion.generation import Drawer, GenerationSettings
from clsp_plugin.engine.config import Data, typed


class _Silent:
    def update(self, number: int) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("denoiser")
    parser.add_argument("data", nargs="*", metavar="data.key=value")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--anchors", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 50, 25, 10])
    parser.add_argument("--samplers", nargs="+", default=["ddim", "dpmpp"])
    parser.add_argument("--w", type=float, default=0.1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--clip", action="store_true")
    args = parser.parse_intermixed_args()

    array = load_images(typed(compose("generate", "cifar/generate", args.data).data, Data), "train")
    rows = [int(row) for row in np.linspace(0, len(array) - 1, args.anchors).round()]
    anchors = array.images[rows]
    rest = array.images[np.setdiff1d(np.arange(len(array)), rows)]
    encoder = Encoder(args.encoder)
    print(
        f"{args.anchors} anchors of {array.name}, w = {args.w:g}, {args.precision}; "
        f"{platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}. "
        f"Frechet distance of as many real images: {frechet_distance(encoder, rest, anchors):.2f}, "
        f"in the features of {encoder.name}.\n"
    )
    print(
        "| sampler | steps | s a candidate | Frechet | label agrees (%) | colour (%) | layout (%) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for sampler, steps in itertools.product(args.samplers, args.steps):
        cfg = {"num_candidates": 1, "sampler": sampler, "steps": steps, "w": args.w}
        cfg |= {"clip": args.clip, "precision": args.precision}
        unet, config = load_denoiser(args.denoiser)
        # noise is named by the image's index, here its place among the anchors
        drawer = Drawer(anchors, unet, config, GenerationSettings(**cfg), array.targets[rows])
        clock = time.process_time if drawer.device.type == "cpu" else time.perf_counter
        began = clock()
        drawn = torch.from_numpy(drawer.draw(0, len(anchors), range(1), _Silent()))
        seconds = (clock() - began) / len(anchors)
        near = closeness(anchors, drawn)
        label = label_agreement(encoder, array, drawn, rows)
        parts = [sampler, steps, f"{seconds:.3f}"]
        parts += [f"{frechet_distance(encoder, rest, drawn[:, 0]):.2f}"]
        parts += [f"{label['candidates']:.1f}"]
        parts += [f"{100 * n['closer']:.1f} ± {100 * n['error']:.1f}" for n in near.values()]
        print(f"| {' | '.join(map(str, parts))} |", flush=True)
    print(
        f"\nLabels agree for the anchors themselves in {label['anchors']:.1f} %, with another "
        f"anchor's in {label['chance']:.1f} %."
    )


if __name__ == "__main__":
    main()
