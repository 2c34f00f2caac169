"""Kill runs with SIGKILL at random moments and resume them; their final weights must equal those of an undisturbed run.

    python tools/soak.py --kills 20 --seed 0

Each run is `nlf train` on a small random model in its own process, resumed with `--resume_from_checkpoint true`. The output
names each kill with the state of the run, and at the end whether the weights are bit-identical. The exit code is 1 if not.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import tiny  # noqa: E402


def write_prompts(path: Path) -> None:
    """Write 200 short prompts from the tests' sentences."""
    words = [word for sentence in tiny.SENTENCES for word in sentence.split()]
    prompts = [{"prompt": " ".join(words[i % 40 : i % 40 + 2 + i // 40])} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts))


def command(folder: Path, model: str, seed: int, resume: bool) -> list[str]:
    """The command line of a run."""
    flags = {
        **{"model_name_or_path": model, "output_dir": folder, "reward_funcs": "tiny:vowels", "seed": seed},
        **{"dataset": f"{model}/prompts.jsonl", "eval_dataset": f"{model}/prompts.jsonl"},
        **{"num_train_epochs": 8, "steps_per_iteration": 25, "prompts_per_iteration": 200, "prompts_per_part": 20},
        **{"num_generations": 4, "max_eval_prompts": 10, "eval_num_generations": 4},
        **{"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 25},
        **{"logging_steps": 5, "use_cpu": "true", "disable_tqdm": "true"},
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "nlf", "train", *words, *(["--resume_from_checkpoint", "true"] if resume else [])]


def doing(folder: Path) -> str:
    """The state of a run, from its files."""
    parts = len(list(folder.glob("rollouts/*/part-*")))
    half = len(list(folder.glob("rollouts/*/samples-*")))
    checkpoints = sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))
    whole = sorted(int(p.parent.name.split("-")[1]) for p in folder.glob("checkpoint-*/nlf.json"))
    torn = sorted(set(checkpoints) - set(whole))
    return f"{parts} parts, {half} unscored, last checkpoint {whole[-1] if whole else None}, torn {torn}"


def run(folder: Path, model: str, seed: int, kills: int, chance: random.Random, span: float) -> int:
    """Run to the end and send up to `kills` SIGKILLs; return how many hit."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
    }
    hits, started = 0, False
    while True:
        process = subprocess.Popen(
            command(folder, model, seed, started), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        started = True
        try:
            wait = chance.uniform(0.15, 0.8) * span if hits < kills else None
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            started = (folder / "config.yaml").exists()
            hits += 1
            print(f"  kill {hits} after {wait:.1f} s: {doing(folder)}", flush=True)
            continue
        if process.returncode:
            sys.exit(f"the run failed: {errors.decode()[-2000:]}")
        return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in total, over several runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, hits, number, wrong = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        model = tiny.save(place / "model")
        write_prompts(place / "model" / "prompts.jsonl")
        start = time.perf_counter()
        run(place / "whole", model, options.seed, 0, chance, 0)
        span = time.perf_counter() - start
        expected = digest(place / "whole")
        while hits < options.kills:
            number += 1
            hits += run(place / f"killed-{number}", model, options.seed, options.kills - hits, chance, span)
            same = digest(place / f"killed-{number}") == expected
            wrong += not same
            print(f"run {number}: {'bit-identical' if same else 'DIFFERENT'} after {hits} kills in total", flush=True)
    print(f"{hits} kills over {number} runs, {wrong} runs with other weights than the undisturbed run")
    sys.exit(1 if wrong else 0)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
