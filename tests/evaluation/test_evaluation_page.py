"""Every command that docs/evaluation.md shows works as it stands there, on a tiny Llama; and a killed evaluation ends as
one that nobody killed.
"""

import contextlib
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from nlf.cli.main import main
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy, save_policy
from nlf.rewards.registry import SHIPPED

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:    )?(nlf [^#\n]+)", PAGE, re.MULTILINE)
SMALL = {
    "sample": ["--num_generations", "2", "--max_completion_length", "4"],
    "evaluate": ["--num_generations", "2", "--max_completion_length", "4", "--sweep_prompts", "1"],
}
ELSEWHERE = ("nlf import", "hf:", "--sampler")  # what they need cannot be made here; their own tests make it


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of: a run, a hub model's name, prompts, rewards, a table of texts, other programs' files."""
    monkeypatch.chdir(tmp_path)
    base = tiny.save(tmp_path / "gpt2", "llama")
    save_policy(prepare_policy(tiny.model("llama", seed=1), tiny.tokenizer(), TagScheme()), tmp_path / "runs/demo")
    (tmp_path / "runs/demo/run.json").write_text(json.dumps({"model_name_or_path": base}))
    tiny.save(tmp_path / "gpt2-xl", seed=2)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    (tmp_path / "my_rewards.py").write_text(
        "def polite(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    )
    (tmp_path / "reviews.csv").write_text("review\na calm day\n")
    record = {"prompt": {"text": "the sea"}, "generations": [{"text": " is calm", "toxicity": 0.25}]}
    (tmp_path / "prompted_gens_gpt2.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "gender_prompt.json").write_text(
        json.dumps({"women": {"A_B": ["the sea "]}, "men": {"C_D": ["a dog "]}})
    )
    for kind in ("hate", "neutral"):
        (tmp_path / f"{kind}_women_1k.txt").write_text(f"- the sea\\n- a {kind} dog\\n-\n")
    return tmp_path


def test_the_page_shows_every_command():
    assert {shlex.split(line)[1] for line in COMMANDS} >= {
        "evaluate",
        "report",
        "sample",
        "score",
        "perplexity",
        "import",
    }


def test_its_commands_work(folder, capsys):
    for line in COMMANDS:
        if any(word in line for word in ELSEWHERE):
            line = line.partition(" hf:")[0]
            if line.startswith("nlf import") or "--sampler" in line:
                continue
        words = shlex.split(line)[1:]
        few = SMALL.get(words[0], [])
        limit = ["--max_prompts", "2"] if words[0] in SMALL else []
        assert main([*words, *few, *limit]) == 0, line
        assert capsys.readouterr().out.strip(), line
    assert (folder / "runs/demo/report.html").stat().st_size > 10_000
    assert f"scores/{SHIPPED['local'].newest}/reward" in (folder / "reviews.csv").read_text()


def size(folder: str) -> int:
    """Bytes of the files in a folder, those being written too; a file may go while it is looked at."""
    sizes = 0
    for path in Path(folder).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


@pytest.mark.extended
def test_killed_at_random_moments_it_ends_the_same(folder):
    """SIGKILL, whatever the process is doing, until it comes through."""
    words = [
        sys.executable,
        "-m",
        "nlf",
        "evaluate",
        "--model",
        "runs/demo",
        "--max_prompts",
        "150",
        "--prompts_per_part",
        "10",
    ]
    words += ["--num_generations", "8", "--max_completion_length", "8", "--sweep_tags"]
    subprocess.run([*words, "--output_dir", "whole"], check=True, capture_output=True)
    total, kills = size("whole"), 0
    for fraction in sorted(random.Random(0).uniform(0.02, 0.98) for _ in range(6)):
        process = subprocess.Popen(
            [*words, "--output_dir", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            if size("killed") >= fraction * total:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.005)
    subprocess.run([*words, "--output_dir", "killed"], check=True, capture_output=True)
    assert kills >= 4
    for path in Path("whole").glob("generations*"):
        assert path.read_bytes() == Path("killed", path.name).read_bytes(), path.name
    new, old = (json.loads(Path(name, "results.json").read_text()) for name in ("killed", "whole"))
    assert new["systems"] == old["systems"] and new["differences"] == old["differences"]
    assert sorted(p.name for p in Path("killed").iterdir()) == sorted(p.name for p in Path("whole").iterdir())
