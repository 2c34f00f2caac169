"""Run all benchmarks of speed and memory in turn; write their output to a Markdown page and their tables to JSON.

    python benchmarks/run.py                       # make bench: half an hour or more on one slow core
    python benchmarks/run.py --only training       # the benchmarks with this word in their command

Each benchmark alternates nlf and its rival in one run; keep the machine free of other work. The seconds of each command
and the total are printed.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from nlf.data.environment import describe, git_revision
from nlf.data.files import write_text

HERE = Path(__file__).parent
SMALL = "--width 768 --layers 12 --vocabulary 50257 --repeats 3"  # GPT-2-small's shape
COMMANDS = [
    "sampling.py",
    f"sampling.py {SMALL}",
    "sampling.py --prompts 256 --generations 1 --repeats 5",
    "training.py",
    "training.py --objective published",
    f"training.py {SMALL} --batch 8",
    f"training.py {SMALL} --batch 8 --objective published",
    "iteration.py",
    "iteration.py --objective published",
    "iteration.py --against plain",
    "perplexity.py",
    "pool.py",
    "metrics.py",
    "growth.py",
]


def rows_of(text: str) -> list[dict]:
    """The rows of all Markdown tables in a text, as dicts with the headings of their table as keys."""
    found, headings = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            headings = None
        elif headings is None:
            headings = cells
        elif not set(line) <= set("|-: "):
            found.append(dict(zip(headings, cells, strict=False)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run only the commands with this word in them")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    page, results = [], []
    for command in (each for each in COMMANDS if args.only in each):
        print(f"python benchmarks/{command}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(HERE / command.split()[0]), *shlex.split(command)[1:]],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"benchmarks/{command}: stopped with {done.returncode}")
        seconds = time.perf_counter() - start
        print(f"{done.stdout}\n{seconds:.0f} s\n", flush=True)
        page.append(f"## `python benchmarks/{command}`\n\n{done.stdout}\n{seconds:.0f} s\n")
        rows = rows_of(done.stdout)
        results.append({"command": command, "seconds": round(seconds), "rows": rows, "output": done.stdout})
        environment = describe() | {"python": platform.python_version()}  # without its path
        found = {"git_hash": git_revision(), "environment": environment, "results": results}
        write_text(args.output_dir / "bench.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_text(args.output_dir / "bench.md", "\n".join(page))
    print(f"total: {sum(each['seconds'] for each in results) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
