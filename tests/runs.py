"""Runs of a tiny model: make a trainer, read its folder, and kill a run at a given call."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file

from nlf.data import run_folder as rundir
from nlf.data.locks import locked_files, locked_folder
from nlf.training.config import ALTConfig
from nlf.training.trainer import ALTTrainer

fork = multiprocessing.get_context("fork")


def settings(folder, **changes) -> ALTConfig:
    """The settings of a short run with the contrast: two iterations of three steps."""
    values = {
        "output_dir": str(folder),
        "contrast_coef": 1.0,
        "num_train_epochs": 2,
        "steps_per_iteration": 3,
        "per_device_train_batch_size": 8,
        "prompts_per_iteration": 10,
        "prompts_per_part": 4,
        "num_generations": 2,
        "max_completion_length": 5,
        "lr_scheduler_type": "constant_with_warmup",
        "eval_num_generations": 2,
        "logging_steps": 1,
        "warmup_steps": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return ALTConfig(**values | changes)


def make(
    folder,
    architecture="gpt2",
    reward=tiny.vowels,
    prompts=tiny.PROMPTS,
    peft_config=None,
    disable_dropout=True,
    name_or_path="",
    **changes,
):
    """A trainer of a tiny model, as if loaded from `name_or_path`; `changes` are settings."""
    model = tiny.model(architecture)
    model.config.name_or_path = name_or_path or model.config.name_or_path
    return ALTTrainer(
        model,
        reward_funcs=reward,
        args=settings(folder, **changes),
        train_dataset=prompts,
        eval_dataset=prompts[:3],
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
        disable_dropout=disable_dropout,
    )


def lines(folder) -> list[dict]:
    """The logged lines of a run."""
    return [json.loads(line) for line in (Path(folder) / rundir.METRICS).read_text().splitlines()]


def weights(folder) -> dict:
    """The weights of a saved model, by name."""
    return load_file(Path(folder) / "model.safetensors")


def same(left: dict, right: dict) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def die() -> None:
    """Kill this process; no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def sample_words(folder: Path, out: Path) -> list[str]:
    """The first words of `nlf sample` of the run in a folder that also holds its prompts."""
    return [
        *map(str, ["sample", "--model", folder / "run", "--prompts", folder / "prompts.jsonl", "--output_dir", out])
    ]


def killed(work, seconds: float = 300) -> None:
    """Do `work` in a child process, and check that SIGKILL ends it within so many seconds; no handler runs."""
    process = fork.Process(target=work)
    process.start()
    process.join(seconds)
    assert process.exitcode == -signal.SIGKILL


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> None:
    """Wait for a process that was told to end; the system ends it in its own time. A test that never passes here has failed."""
    for _ in range(6000):
        if not alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


@contextlib.contextmanager
def locked_by_another(*paths):
    """Hold the locks of folders, or of files, in another process inside the `with` block."""
    ready = fork.Event()

    def hold():
        with contextlib.ExitStack() as held:
            for path in map(Path, paths):
                held.enter_context(locked_files(path) if path.is_file() else locked_folder(path))
            ready.set()
            time.sleep(60)

    process = fork.Process(target=hold)
    process.start()
    try:
        assert ready.wait(30)
        yield process.pid
    finally:
        process.kill()
        process.join()


def on_call(target, name: str, number: int) -> None:
    """Make call `number` of `target.name` kill the process."""
    original, calls = getattr(target, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        return die() if len(calls) == number else original(*args, **kwargs)

    setattr(target, name, counted)
