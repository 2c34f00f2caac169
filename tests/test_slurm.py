"""examples/slurm.sbatch with stand-ins for SLURM's commands: a job that is stopped and requeued gives the same model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "examples" / "slurm.sbatch"
COMMANDS = {
    "srun": """#!/bin/bash
shift  # --kill-on-bad-exit
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & echo $! >> "$FAKE/tasks"; pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit ${code:-0}""",
    "scancel": """#!/bin/bash
[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat "$FAKE/tasks")""",
    "scontrol": """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >> "$FAKE/requeued"; else echo 127.0.0.1; fi""",
    "python": f'#!/bin/bash\nexec {sys.executable} "$@"',
}


def start(fake: Path, port: int, *flags: str) -> subprocess.Popen:
    """Start the script as SLURM does, with two tasks on one node."""
    for name, text in COMMANDS.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    (fake / "tasks").unlink(missing_ok=True)
    job = {"SLURM_JOB_ID": str(port), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here", "SLURM_CPUS_PER_TASK": "1"}
    paths = {"PATH": f"{fake}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.Popen(["bash", SCRIPT, *flags], env=os.environ | job | paths | {"FAKE": str(fake)})


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.extended
def test_a_job_at_its_time_limit_is_queued_again_and_gives_the_same_model(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    flags = [
        "--use_cpu", "true", "--model_name_or_path", tiny.save(tmp_path / "model"), "--dataset", str(prompts),
        "--reward_funcs", "tiny:vowels", "--num_train_epochs", "4", "--steps_per_iteration", "50",
        "--per_device_train_batch_size", "4", "--prompts_per_iteration", "10", "--num_generations", "2",
        "--max_completion_length", "5", "--eval_dataset", str(prompts),
        "--max_eval_prompts", "2", "--eval_num_generations", "2", "--logging_steps", "1", "--disable_tqdm", "true",
    ]  # fmt: skip
    assert start(tmp_path, 7001, *flags, "--output_dir", str(tmp_path / "unbroken")).wait(280) == 0
    assert not (tmp_path / "requeued").exists()

    flags += ["--output_dir", str(tmp_path / "stopped")]
    job, log = start(tmp_path, 7002, *flags), tmp_path / "stopped" / "metrics.jsonl"
    while not (log.is_file() and '"loss"' in log.read_text()):
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(280) == 0
    assert (tmp_path / "requeued").read_text() == "7002\n"
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert list((tmp_path / "stopped").glob("checkpoint-*/nlf.json"))

    assert start(tmp_path, 7003, *flags).wait(280) == 0
    left, right = (load_file(tmp_path / run / "model.safetensors") for run in ("unbroken", "stopped"))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
