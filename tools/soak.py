"""Kill a run with SIGKILL at random moments until it is done; its final weights must be those of a run nobody stopped.

    python tools/soak.py --kills 20 --runs 2 --seed 0

Each run is `nlf train` on a small random model in its own process, restarted with `--resume_from_checkpoint true`. Prints every kill,
what was being done, and at the end whether the weights are bit-identical. Exit code 1 if any differ.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def command(folder: Path, model: str, seed: int, resume: bool) -> list[str]:
    flags = {
        **{"model_name_or_path": model, "output_dir": folder, "reward_funcs": "tiny:vowels", "seed": seed},
        **{"num_train_epochs": 4, "steps_per_iteration": 25, "prompts_per_iteration": 200, "prompts_per_part": 20},
        **{"num_generations": 4, "max_prompts": 200, "max_eval_prompts": 10, "eval_num_generations": 4},
        **{"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 25},
        **{"logging_steps": 5, "use_cpu": "true", "disable_tqdm": "true"},
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "nlf", "train", *words, *(["--resume_from_checkpoint", "true"] if resume else [])]


def doing(folder: Path) -> str:
    """What the run was at, from its files."""
    parts = len(list(folder.glob("rollouts/*/part-*")))
    half = len(list(folder.glob("rollouts/*/samples-*")))
    checkpoints = sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))
    whole = sorted(int(p.parent.name.split("-")[1]) for p in folder.glob("checkpoint-*/nlf.json"))
    torn = sorted(set(checkpoints) - set(whole))
    return f"{parts} parts, {half} unscored, last checkpoint {whole[-1] if whole else None}, torn {torn}"


def run(folder: Path, model: str, seed: int, kills: int, chance: random.Random, span: float) -> int:
    """Run to the end through `kills` SIGKILLs; returns how many hit."""
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
            wait = chance.uniform(0.3, 1.0) * span if hits < kills else None
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
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in all")
    parser.add_argument("--runs", type=int, default=2, help="runs to spread them over")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import tiny

    chance, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        model = tiny.save(place / "model")
        for number in range(options.runs):
            start = time.perf_counter()
            run(place / f"whole-{number}", model, number, 0, chance, 0)
            span = time.perf_counter() - start
            hits = run(place / f"killed-{number}", model, number, options.kills // options.runs, chance, span)
            digests = [
                hashlib.sha256((place / f"{kind}-{number}" / "model.safetensors").read_bytes()).hexdigest()[:16]
                for kind in ("whole", "killed")
            ]
            wrong += digests[0] != digests[1]
            verdict = "bit-identical" if digests[0] == digests[1] else "DIFFERENT"
            print(f"run {number}: {hits} kills, weights {digests[0]} and {digests[1]}: {verdict}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
