"""Where the configurations are that ship with the package."""

from pathlib import Path

__all__ = ["shipped"]


def shipped() -> Path:
    """The folder of configurations: ``scripts/`` of a checkout, or inside the package."""
    inside = Path(__file__).parent / "scripts"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "scripts"
