"""Where models lie that settings name: in the program's own folder, or wherever a path leads."""

from __future__ import annotations

from pathlib import Path


def models_folder() -> Path:
    """Return where shipped models lie: in the installed package, else in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def place_of(path: str) -> Path:
    """Return what `model.path` means: a shipped model's folder, else the path itself."""
    shipped = models_folder() / path
    return shipped if path and "/" not in path and shipped.is_dir() else Path(path)
