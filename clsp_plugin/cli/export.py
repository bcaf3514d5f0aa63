"""``clsp export``."""

import argparse
from pathlib import Path

__all__ = ["export"]


def export(args: list[str]) -> None:
    """Run ``clsp export`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp export",
        description="Write the backbone of a checkpoint for another library, with a model card.",
    )
    parser.add_argument("checkpoint", help="a checkpoint, or the directory of a run")
    parser.add_argument(
        "--format",
        default="timm",
        help="timm (which transformers reads too), hf (the same), torchvision or onnx",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(args)

    from clsp_plugin.export.backbone import export_backbone

    made = export_backbone(options.checkpoint, options.out, options.format)
    print(f"Exported: {made} ({made / 'README.md'} says how to load it)")
