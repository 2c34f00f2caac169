"""How time grows with size: one table each for the batch, the prompt's length, the vocabulary, the pool and processes.

    python benchmarks/growth.py                  # all, minutes
    python benchmarks/growth.py --only pool      # the tables whose title has the word in it

Few repeats, so read the exponents and not the digits: where a size doubles and the exponent is 1, the time doubles. The
seconds are the median of `--repeats` runs after a warm-up, of our side alone, by the functions of the other benchmarks.
Random weights, 4 layers of 256; every completion has 20 tokens, so that all runs of a table do work of the same kind.
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

from nlf.training.batches import Example

Run = Callable[[int], float]  # number → how much was done


def sampler(**changed) -> Run:
    """Sampling 64 completions of prompts of 16 tokens, but for what is changed."""
    args = sampling.options(["--ends", "0", "--prompts", "64", "--generations", "1", "--length", "16"])
    args = argparse.Namespace(**vars(args) | changed)
    return sampling.ours(sampling.build(args), sampling.prompts_of(args), args)


def trainer(longer: int = 0, **changed) -> Run:
    """A contrastive step of 32 completions of prompts of 3 to 25 tokens and so many more, but for what is changed."""
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
    """Seconds of the processor to add, cut and draw from a pool, once warm."""
    clock = pool.Clock()
    pool.ours(pool.tables(1_000, 2), pool.Clock())
    pool.ours(pool.tables(size, 16), clock)
    results.put(clock.cpu)


def shard(rank: int, world: int, repeats: int, results) -> None:
    """Seconds of one of several processes that sample a share of 128 prompts each, and wait for each other by gloo."""
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
    """One table: the seconds of each size, how much (`sizes`' values) that is in a second, and how the time grew."""
    print(f"\n### {title}\n\n| {title.split(', ')[1]} | seconds | {unit}/s | exponent |\n| --- | --- | --- | --- |")
    last = None
    for size, amount in sizes.items():
        took = seconds(size)
        exponent = "" if last is None else f"{math.log(took / last[1]) / math.log(size / last[0]):.2f}"
        print(f"| {size:,} | {took:.3f} | {amount / took:,.1f} | {exponent} |", flush=True)
        last = size, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word of the titles of the tables to make")
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
            print(f"\n### {title}\n\nnot measured: this process may use one core only")
        else:
            table(title, unit, sizes, seconds)


if __name__ == "__main__":
    main()
