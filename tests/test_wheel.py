"""The wheel holds everything that a run needs: it is built, unpacked outside the checkout, and used from there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def output(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with nothing in it but the installed wheel."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    shutil.copytree(REPO / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    output(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source), str(source), cwd=source)
    (wheel,) = source.glob("nlf-*.whl")
    output(*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=source)
    return site


def test_the_wheel_evaluates_the_embedded_model(site, tmp_path):
    env = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    where = output(sys.executable, "-c", "import nlf; print(nlf.__file__)", cwd=tmp_path, **env)
    assert Path(where.strip()).is_relative_to(site)
    command = [sys.executable, "-m", "nlf", "evaluate", "--model", "embedded", "--max_prompts", "4"]
    table = output(*command, "--num_generations", "2", "--output_dir", "out", cwd=tmp_path, **env)
    assert "| 4 × 2 |" in table
    assert (tmp_path / "out" / "results.json").is_file()


def test_the_wheel_knows_its_recipes_in_a_fresh_folder(site, tmp_path):
    env = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "nlf", "train", "--config", "sentiment-embedded", "--dry_run"]
    assert "3,840" in output(*command, cwd=tmp_path, **env)
    assert not list(tmp_path.iterdir())


def test_every_file_of_the_package_is_in_the_wheel(site):
    source = REPO / "src" / "nlf"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    wanted = {path for path in files if "__pycache__" not in path.parts}
    assert wanted == {
        path.relative_to(site / "nlf")
        for path in (site / "nlf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
