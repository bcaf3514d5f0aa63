"""Measure what two 224-pixel views of a photograph cost the host, beside solo-learn's loader.

The contestants take turns for a number of rounds in one process, on the same photographs; what is
counted is processor time, of all threads, so that other load on the machine matters little. Ratios
are computed within one round only. The photographs of a folder are packed first, and that is
measured too. solo-learn's loader is its own code, of a clone.

    python benchmarks/photographs.py PHOTOGRAPHS --solo-learn CLONE --out record.json

``--many N`` measures instead how long N packed images take to open and how much memory (without the
page cache) views of N and of N/10 images take; the files are links to small copies.

``--squares N`` measures the memory of ``clsp denoiser`` and ``clsp generate`` on N/10 and N squares
of 64 pixels, on the disk and in memory, until 20 batches are trained on and 20 shards drawn.

``--reads N`` measures reading N packed images at random, without decoding them: from the pack, from
an Arrow file that ``datasets`` wrote of the same bytes, and from files; all in the page cache.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from omegaconf import OmegaConf
from PIL import Image

from clsp_plugin.config.compose import compose
from clsp_plugin.data.datasets import MEAN_STD
from clsp_plugin.data.folders import image_files
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.data.loader import IndexBatches, PretrainData
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.pack import Packing, open_pack
from clsp_plugin.diffusion.denoiser import build_unet, save_denoiser

VIEWS = OmegaConf.to_container(compose("pretrain", "imagenet-100/simclr").augmentations)
MEAN, STD = MEAN_STD["imagenet100"]


def packed(root: Path, cache: Path, name: str = "photographs") -> PackedImages:
    files = image_files(root)
    pack = open_pack(root, files, Packing(), cache, "to be measured")
    return PackedImages.of(pack, files, torch.zeros(len(files), dtype=torch.int64), ("a",), name)


class Ours:
    """The data path of ``clsp pretrain`` on packed images, whose colours a device makes."""

    def __init__(
        self, images: PackedImages, batch: int, device: str = "cpu", compile: bool = False
    ):
        self.images, self.batch, self.device = images, batch, device
        self.data = PretrainData(images, None, VIEWS, batch, 0, MEAN, STD, compile=compile)
        self.epoch = -1

    def batches(self) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield places and crops, uint8 (B, 224, 224, 3) for each view, as they go to a device."""
        self.epoch += 1
        order = IndexBatches(len(self.images), self.batch, 0)
        order.set_epoch(self.epoch)
        cut = self.data._cut(order, torch.device(self.device))
        yield from zip(list(order), cut(iter(order)), strict=True)

    def host(self) -> int:
        return sum(len(places) for places, _ in self.batches())

    def whole(self) -> int:
        """Colour the crops as well; on the CPU, what a machine without another device does."""
        count = 0
        for places, crops in self.batches():
            for view, (pipeline, made) in enumerate(zip(self.data.pipelines, crops, strict=True)):
                base = derive_key(0, Purpose.AUGMENTATION, self.epoch, view)
                keys = keys_for(base, places)
                pipeline(*(t.to(self.device, non_blocking=True) for t in (made, keys)))
            count += len(places)
        return count


def solo_learns(folder: Path, clone: Path, batch: int) -> Callable[[], int]:
    """Return a function that goes once through solo-learn's loader, without workers."""
    sys.path.insert(0, str(clone))
    from solo.data.pretrain_dataloader import (
        build_transform_pipeline,
        prepare_dataloader,
        prepare_datasets,
        prepare_n_crop_transform,
    )

    (block,) = OmegaConf.create(VIEWS)
    pipeline = build_transform_pipeline("imagenet100", block)
    transform = prepare_n_crop_transform([pipeline], [block.num_crops])
    dataset = prepare_datasets("custom", transform, str(folder), no_labels=True)
    loader = prepare_dataloader(dataset, batch, num_workers=0)
    return lambda: sum(len(indexes) for indexes, *_ in loader)


def linked(root: Path, folder: Path) -> Path:
    """Make a folder with the photographs of another and nothing else."""
    folder.mkdir()
    for number, file in enumerate(image_files(root)):
        (folder / f"{number:06d}{Path(file).suffix}").symlink_to(Path(file).resolve())
    return folder


def copies(images: PackedImages, folder: Path) -> Path:
    """Write the packed images as files, to separate the packing from the rest."""
    folder.mkdir()
    for index in range(len(images)):
        (folder / f"{index:06d}.jpg").write_bytes(images.pack[int(images.rows[index])].tobytes())
    return folder


def measured(run: Callable[[], int]) -> dict[str, float]:
    """Return milliseconds of processor and of wall time for an image."""
    cpu, wall = time.process_time(), time.perf_counter()
    count = run()
    return {
        "processor_ms": (time.process_time() - cpu) / count * 1e3,
        "wall_ms": (time.perf_counter() - wall) / count * 1e3,
    }


def compare(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        links = linked(args.photographs, place / "links")
        made: list[PackedImages] = []
        packing = measured(lambda: made.append(packed(links, place)) or len(made[0]))
        (images,) = made
        ours = Ours(images, args.batch)
        runs = {
            "solo-learn": solo_learns(links, args.solo_learn, args.batch),
            "solo-learn, on the packed copies as files": solo_learns(
                copies(images, place / "copies"), args.solo_learn, args.batch
            ),
            "ours, the host with a device for the colours": ours.host,
            "ours, all on the CPU": ours.whole,
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                rounds[name].append(measured(run))
        sizes = [Path(file).stat().st_size for file in images.files]
        about = {"images": len(images), "packing": packing, "bytes_an_image": np.mean(sizes),
                 "packed_bytes_an_image": images.pack.index[:, 0].mean()}  # fmt: skip
    return {**about, "batch": args.batch, "rounds": rounds}


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    base = [one["processor_ms"] for one in next(iter(rounds.values()))]
    lines = ["| two views of a photograph | processor time, ms | solo-learn's / this |"]
    lines.append("|---|---:|---:|")
    for name, found in rounds.items():
        values = [one["processor_ms"] for one in found]
        ratios = [other / value for other, value in zip(base, values, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |"
        )
    return "\n".join(lines)


MANY = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from photographs import Ours, packed
began, cpu = time.perf_counter(), time.process_time()
images = packed(Path(sys.argv[2]), Path(sys.argv[3]))
opened = {"wall_s": time.perf_counter() - began, "processor_s": time.process_time() - cpu}
for number, _ in enumerate(Ours(images, 64).batches()):
    if number == 30:
        break
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
own = {key: int(status[key].split()[0]) / 1024 for key in ("RssAnon", "VmHWM")}
print(json.dumps({"images": len(images), "opening": opened, **own}))
"""


def many_links(photographs: Path, place: Path, total: int) -> Iterator[Path]:
    """Yield folders of a tenth of many images and of all, which are links to small copies."""
    small = []
    for number, file in enumerate(image_files(photographs)[:100]):
        out = io.BytesIO()
        Image.open(file).convert("RGB").resize((96, 80)).save(out, "JPEG")
        small.append(place / f"{number}.jpg")
        small[-1].write_bytes(out.getvalue())
    for count in (total // 10, total):
        root = place / f"of-{count}"
        for number in range(count):
            folder = root / f"{number // 1000:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(small[number % len(small)], folder / f"a-photograph-{number:08d}.jpg")
        yield root


def many(args: argparse.Namespace) -> dict:
    """Measure opening and memory of many images, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        for root in many_links(args.photographs, Path(temporary), args.many):
            packed(root, cache)
            where = map(str, (Path(__file__).parent, root, cache))
            command = [sys.executable, "-c", MANY, *where]
            for _ in range(args.rounds):
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(found[-1], flush=True)
    return {"many": found}


def anonymous_mib(command: list[str]) -> float:
    """Run a command, and return the largest memory that it had, without mapped files."""
    process, most = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        own = [int(line.split()[1]) for line in status if line.startswith("RssAnon")]
        most = max([most, *own])
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return most / 1024


BEGUN = """
import sys
from lightning.pytorch.callbacks import Callback
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.config.compose import compose
from clsp_plugin.diffusion import verbs
class Stop(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        if number == 20:
            sys.exit()
verb, plain = sys.argv[1], StoreWriter.write
def write(self, shard, candidates):
    if shard == 20:
        sys.exit()
    plain(self, shard, candidates)
StoreWriter.write = write
cfg = compose(verb, f"digits/{verb}", sys.argv[2:])
if verb == "denoiser":
    verbs.denoiser(cfg, callbacks=[Stop()])
else:
    verbs.generate(cfg)
"""


def squares(args: argparse.Namespace) -> dict:
    """Measure the memory of commands on squares up to a point, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        denoiser = Path(temporary) / "denoiser"
        net = build_unet(64, {"block_out_channels": [8, 8, 8, 8], "attention_resolutions": []})
        save_denoiser(net, denoiser)
        for root in many_links(args.photographs, Path(temporary), args.squares):
            for packs in (True, False):
                place = Path(temporary) / f"{root.name}-{packs}"
                data = [
                    "data.dataset=custom", "data.no_labels=True", f"data.train_path={root}",
                    "data.image_size=64", f"data.packed={packs}", f"data.cache={temporary}/cache",
                ]  # fmt: skip
                training = ["block_out_channels=[8,8,8,8]", "batch_size=16", f"out={place}-net"]
                drawing = [
                    "num_candidates=1", "steps=1", "batch_size=16", "shard_size=16", "clip=False",
                    f"denoiser={denoiser}", f"out={place}-candidates",
                ]  # fmt: skip
                for verb, own in (("denoiser", training), ("generate", drawing)):
                    memory = anonymous_mib([sys.executable, "-c", BEGUN, verb, *data, *own])
                    found.append({"verb": verb, "images": len(image_files(root)), "packed": packs,
                                  "anonymous_mib": memory})  # fmt: skip
                    print(found[-1], flush=True)
    return {"squares": found}


def reads(args: argparse.Namespace) -> dict:
    """Measure random reads of the same bytes from several forms, in turns."""
    from datasets import Dataset, Features, Value, load_from_disk

    rng = np.random.default_rng(0)
    rounds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        images = packed(linked(args.photographs, place / "links"), place)
        pack, files = images.pack, sorted(copies(images, place / "copies").iterdir())
        content = {"image": [pack[row].tobytes() for row in images.rows.tolist()]}
        Dataset.from_dict(content, Features({"image": Value("large_binary")})).save_to_disk(
            place / "saved"
        )
        saved = load_from_disk(place / "saved")
        column = saved.data.column("image")
        forms: dict[str, Callable[[int], bytes]] = {
            "pack": lambda index: pack[int(images.rows[index])].tobytes(),
            "Arrow, by datasets": lambda index: saved[index]["image"],
            "Arrow, by pyarrow": lambda index: column[index].as_py(),
            "files": lambda index: files[index].read_bytes(),
        }
        for name, read in forms.items():
            assert all(read(index) == content["image"][index] for index in range(len(images)))
            rounds[name] = []
        for _ in range(args.rounds):
            order = rng.integers(0, len(images), args.reads).tolist()
            for name, read in forms.items():
                found = measured(lambda read=read, order=order: len([*map(len, map(read, order))]))
                rounds[name].append(1000 * found["processor_ms"])
    for name, us in rounds.items():
        print(f"{name}: {statistics.median(us):.1f} ({min(us):.1f}..{max(us):.1f}) microseconds")
    return {"reads_us": rounds}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, help="a folder of photographs")
    parser.add_argument("--solo-learn", type=Path, help="a clone of solo-learn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=0, help="images to open; see above")
    parser.add_argument("--squares", type=int, default=0, help="squares for memory; see above")
    parser.add_argument("--reads", type=int, default=0, help="random reads; see above")
    parser.add_argument("--out", type=Path, help="file for the record")
    args = parser.parse_args()

    run = many if args.many else squares if args.squares else reads if args.reads else compare
    result = run(args)
    result |= {
        "processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(),
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }  # fmt: skip
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if run is compare:
        print(table(result["rounds"]))
        print(f"packing: {result['packing']['processor_ms']:.2f} ms of the processor an image")


if __name__ == "__main__":
    main()
