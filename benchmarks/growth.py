"""Report how time grows with size: tables for the batch, prompt length, vocabulary, pool and number of processes.

    python benchmarks/growth.py                  # all tables: minutes
    python benchmarks/growth.py --only pool      # the tables with this word in their title

The seconds are medians of `--repeats` runs after a warm-up. These are few, so read the exponents rather than the digits:
with an exponent of 1, the time doubles where the size doubles. The tables time nlf alone, by the functions of the other
benchmarks, on random weights of 4 layers of 256. Every completion has 20 tokens, so that the work is comparable.
"""

import argparse
import dataclasses
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

import pool
import sampling
import torch
import training
from paired import timed
from processes import in_fresh_process

from nlf.data.markdown import markdown_table
from nlf.training.batches import Example

Run = Callable[[int], float]  # number of the run → amount of work


def sampler(**changed) -> Run:
    """Sample 64 completions of prompts of 16 tokens; `changed` replaces options of benchmarks/sampling.py."""
    args = sampling.options(["--ends", "0", "--prompts", "64", "--generations", "1", "--length", "16"])
    args = argparse.Namespace(**vars(args) | changed)
    return sampling.ours(sampling.build(args), sampling.prompts_of(args), args)


def trainer(longer: int = 0, **changed) -> Run:
    """Train a contrastive step of 32 completions whose prompts have 3 to 25 tokens plus `longer`.

    `changed` replaces options of benchmarks/training.py.
    """
    defaults = {"width": 256, "layers": 4, "vocabulary": 5120, "batch": 32, "device": "cpu", "most_logits": None}
    args = argparse.Namespace(**defaults | {"objective": "contrastive"} | changed)
    policy, reference, optimizer = training.build(args, "nlf")

    def lengthened(e: Example) -> Example:
        more = [1] * longer
        return dataclasses.replace(e, right=more + e.right, wrong=more + e.wrong, prompt=more + e.prompt)

    def run(number: int) -> int:
        training.ours(policy, reference, [lengthened(e) for e in training.examples(args, number)], args)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return args.batch

    return run


def pool_seconds(size: int, results) -> None:
    """CPU seconds to add rollouts to a pool, cut quantiles and draw steps, after a warm-up."""
    clock = pool.Clock()
    pool.ours(pool.tables(1_000, 2), pool.Clock())
    pool.ours(pool.tables(size, 16), clock)
    results.put(clock.cpu)


def shard(rank: int, world: int, repeats: int, results) -> None:
    """Sample this process's share of 128 prompts; processes wait for each other through gloo. Rank 0 reports seconds."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    run, found = sampler(prompts=128 // world), []
    for number in range(repeats + 1):
        torch.distributed.barrier()
        start = time.perf_counter()
        run(number)
        torch.distributed.barrier()
        found.append(time.perf_counter() - start)
    if rank == 0:
        results.put(statistics.median(found[1:]))


def seconds_of_processes(world: int, repeats: int) -> float:
    """Median seconds in which `world` processes together sample 128 prompts."""
    context = multiprocessing.get_context("spawn")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    results = context.SimpleQueue()
    started = [context.Process(target=shard, args=(rank, world, repeats, results)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            raise SystemExit(f"sampling in {world} processes: one stopped with {process.exitcode}")
    return results.get()


def table(title: str, unit: str, sizes: dict[int, int], seconds: Callable[[int], float]) -> None:
    """Print one table: for each size its seconds, its speed (`sizes` maps it to an amount of work) and the exponent."""
    rows, last = [], None
    for size, amount in sizes.items():
        took = seconds(size)
        exponent = "" if last is None else f"{math.log(took / last[1]) / math.log(size / last[0]):.2f}"
        rows.append([f"{size:,}", f"{took:.3f}", f"{amount / took:,.1f}", exponent])
        last = size, took
    headings = [title.split(", ")[1], "seconds", f"{unit}/s", "exponent"]
    print(f"\n### {title}\n\n{markdown_table(headings, rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="make only the tables with this word in their title")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def of(make: Callable[..., Run], name: str, offset: int = 0) -> Callable[[int], float]:
        def seconds(size: int) -> float:
            run = make(**{name: size - offset})
            return statistics.median([timed(run, number).seconds for number in range(args.repeats + 1)][1:])

        return seconds

    batches, lengths, vocabularies = (16, 64, 256), (16, 64, 192), (2_048, 8_192, 32_768)
    tables = [
        ("sampling, completions at a time", "tokens", {n: 20 * n for n in batches}, of(sampler, "prompts")),
        ("sampling, tokens of a prompt", "completions", dict.fromkeys(lengths, 64), of(sampler, "length")),
        ("sampling, vocabulary", "tokens", dict.fromkeys(vocabularies, 64 * 20), of(sampler, "vocabulary")),
        ("training, completions in a step", "completions", {n: n for n in (8, 32, 128)}, of(trainer, "batch")),
        ("training, tokens of a prompt (mean)", "completions", dict.fromkeys((14, 62, 158), 32), of(trainer, "longer", 14)),
        ("training, vocabulary", "completions", dict.fromkeys(vocabularies, 32), of(trainer, "vocabulary")),
        ("pool, rollouts in 16 iterations (CPU seconds)", "rollouts", {n: n for n in (62_500, 250_000, 1_000_000)},
         lambda size: in_fresh_process(pool_seconds, size)),
        ("sampling by shards, processes", "tokens", {1: 128 * 20, 2: 128 * 20},
         lambda world: seconds_of_processes(world, args.repeats)),
    ]  # fmt: skip
    for title, unit, sizes, seconds in tables:
        if args.only not in title:
            continue
        if "processes" in title and len(os.sched_getaffinity(0)) < 2:
            print(f"\n### {title}\n\nnot measured: this process may use only one core")
        else:
            table(title, unit, sizes, seconds)


if __name__ == "__main__":
    main()
