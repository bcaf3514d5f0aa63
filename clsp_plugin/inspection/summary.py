"""Format a report of ``clsp inspect`` as text."""

from collections.abc import Mapping
from typing import Any

__all__ = ["summary"]


def _hard(found: Mapping[str, float]) -> str:
    text = f"{found['share']:.2f} +- {found['error']:.2f}"
    if "variety" in found:
        among = f"{found['variety']:.2f} +- {found['variety_error']:.2f}"
        text += f", among the candidates of an anchor {among}"
    return text


def summary(report: Mapping[str, Any]) -> str:
    """Format a report of ``inspect_store`` as lines of text."""
    lines = [f"{name:<15} {value}" for name, value in report["manifest"].items()]
    lines.append("")
    if report["drawn"] < report["manifest"]["num_images"]:
        lines.append(f"In the making: {report['drawn']} images have their candidates.")
    lines.append(f"{report['anchors']} anchors with their candidates:")
    for name, found in report["closeness"].items():
        lines.append(
            f"  {name}: differs by {found['own']:.1f} levels from its own anchor and by "
            f"{found['other']:.1f} from another; nearer to its own in "
            f"{100 * found['closer']:.1f} +- {100 * found['error']:.1f} % (chance: 50)"
        )
    lines.append("  hardness (0 a copy of the anchor, 1 an unrelated image):")
    lines += [f"    {name}: {_hard(found)}" for name, found in report["hardness"].items()]
    if "similarity" in report:
        lines.append(f"  in the features of {report['encoder']}:")
        for name, found in report["similarity"].items():
            lines.append(f"    {name}: similarity {found['mean']:.3f} +- {found['std']:.3f} (std)")
        lines.append(f"    hardness {_hard(report['features'])}")
    if "frechet" in report:
        frechet = report["frechet"]
        lines.append(
            f"    Frechet distance (no FID) {frechet['candidates']:.2f}; of as many real images "
            f"{frechet['anchors']:.2f}"
        )
    if "agreement" in report:
        agreement = report["agreement"]
        lines.append(
            f"    label by {agreement['neighbours']} nearest neighbours agrees with the anchor's "
            f"in {agreement['candidates']:.1f} +- {agreement['error']:.1f} % (real images: "
            f"{agreement['anchors']:.1f}, chance: {agreement['chance']:.1f})"
        )
    if "fid" in report:
        lines.append(f"  FID {report['fid']:.2f}")
    for row in report.get("weights", ()):
        lines.append("  " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if "masked" in report:
        near = [f"{name} {100 * one['closer']:.1f} %" for name, one in report["masked"].items()]
        lines.append(f"  samples with the middle feature masked: nearer in {', '.join(near)}")
    if report.get("middle"):
        middle = report["middle"]
        lines.append(
            f"  middle features at step {middle['step']}: {middle['neighbours']} nearest "
            f"neighbours agree on the label in {middle['agreement']:.1f} % (the largest class has "
            f"{middle['largest_class']:.1f})"
        )
    return "\n".join(lines)
