"""Every code block of README.md works: Python runs as printed, shell lines run on a tiny model, make targets exist."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
import tiny

import nlf
from nlf.cli.main import main
from nlf.training.config import ALTConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall(README)  # (language, text), in their order
RUN = "runs/polite"
SIZES = {  # in place of the defaults; the words of the blocks stay
    **{"prompts_per_iteration": 4, "num_generations": 2, "max_completion_length": 4, "num_train_epochs": 1},
    **{"steps_per_iteration": 1, "per_device_train_batch_size": 4, "warmup_steps": 0, "logging_steps": 1},
}
FLAGS = {
    "train": [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    + ["--eval_strategy", "no", "--use_cpu", "true"],
    "evaluate": "--num_generations 2 --max_completion_length 4".split(),
    "distill": "--num_prompts 2 --num_generations 2 --max_completion_length 4 --max_steps 1".split()
    + "--per_device_train_batch_size 2 --max_eval_prompts 1".split(),
}


def lines_of(block: str) -> list[str]:
    """The commands of a shell block, without comments."""
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def shell_lines() -> list[str]:
    return [line for language, text in BLOCKS if language == "sh" for line in lines_of(text)]


def run_nlf(words: list[str]) -> None:
    """Run one line of a shell block with small sizes; `--help` and `--dry_run` get no other flags."""
    command, shown = words[0], {"--help", "--dry_run"} & set(words)
    if command == "train" and RUN in words:
        shutil.rmtree(RUN, ignore_errors=True)  # the Python block has trained into this folder
    try:
        status = main([*words, *([] if shown else FLAGS.get(command, []))])
    except SystemExit as leaving:  # --help
        status = leaving.code
    assert status == 0, f"nlf {' '.join(words)}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the README names: a tiny model called gpt2, prompts, and the reward in a file."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "gpt2")
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    labelled = [{**row, "completion": "b", "label": i % 2 == 0} for i, row in enumerate(tiny.PROMPTS)]
    Path("logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    reward = re.search(r"^def politeness.*?\n\n", README, re.MULTILINE | re.DOTALL)
    Path("my_rewards.py").write_text(reward.group())
    monkeypatch.setattr(nlf, "ALTConfig", partial(ALTConfig, **SIZES, eval_strategy="no", use_cpu=True), raising=False)
    return tmp_path


def test_blocks_are_python_or_shell():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_shell_lines_start_with_a_known_program():
    programs = [shlex.split(line)[0] for line in shell_lines()]
    assert set(programs) == {"make", "nlf", "pip"} and programs.count("nlf") >= 6


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    inline = re.findall(r"`(make [^`]+)`", FENCED.sub("", README))
    named = [words.split()[1] for words in [*shell_lines(), *inline] if words.startswith("make ")]
    assert {"demo", "test"} <= set(named) <= set(targets)


def test_pip_installs_the_checkout():
    assert [line for line in shell_lines() if line.startswith("pip ")] == ["pip install ."]
    assert (ROOT / "pyproject.toml").is_file() and "pypi.org" not in README


def test_no_page_installs_a_package_of_this_name_from_an_index():
    """Anyone can take a free name on a package index."""
    pages = [
        *ROOT.glob("*.*"),
        *(path for folder in ("docs", "src", "examples", "tools") for path in (ROOT / folder).rglob("*")),
    ]
    for path in pages:
        if path.suffix in (".md", ".py", ".toml", ".cff", ".yaml", ".txt", ".j2"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"install (-\S+ )*[\"']?nlf\b|pypi\.org/project|reinstall nlf", text), path


def test_the_blocks_work_one_after_another(folder, capsys):
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
            continue
        for words in map(shlex.split, lines_of(text)):
            if words[0] == "nlf":
                run_nlf(words[1:])
                assert capsys.readouterr().out.strip(), words
    run = folder / RUN
    assert json.loads((run / "tags.json").read_text())["tags"][0] == "Very polite"
    assert (folder / ALTConfig().output_dir / "plain/config.json").is_file()
    assert (run / "report.html").stat().st_size > 10_000
    names = {system["name"] for system in json.loads((run / "evaluation/results.json").read_text())["systems"]}
    assert {"base", "best tag", "best tag, guidance 0.5", "best tag, guidance 1"} <= names


def test_links_lead_to_files_and_headings():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        name, _, heading = target.partition("#")
        text = (ROOT / name).read_text(encoding="utf-8") if name.endswith(".md") else ""
        headings = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines()]
        assert (ROOT / name).is_file() and (not heading or heading in headings), target


def test_it_is_short():
    assert len(README.splitlines()) <= 110
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert tables and all(len(table.splitlines()) - 2 <= 5 for table in tables)
