"""Files: what is shipped with the package, and writing whole files or nothing."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # shipped: the embedded model, scorers, prompts, tasks, judges
