"""Measure `nlf serve`: throughput and time to first token under many clients, and what hostile requests do to it.

    python benchmarks/serving.py                                  # the embedded model, 32 clients, then 10,000 requests
    python benchmarks/serving.py --model runs/demo --name tagged --generations 4
    python benchmarks/serving.py --only hostile --hostile 1000

Three sides complete the same prompts with the same rule: `nlf sample`'s sampler, which gets all prompts at once; `nlf serve`;
and `transformers serve` with continuous batching and without it, where it is installed with its extra. Servers run in
processes of their own; the clients are threads of this one, on the same cores, each with one request at a time. A first
round of requests warms each server up. Tokens are those that the servers report. The time to the first token is that of a
stream's first piece of text, in a second round.

The hostile part sends good requests among broken ones (a fifth: wrong JSON, an unknown tag, a connection that is cut before
and after the request, a body that is too large). Each good one must be answered; the server's memory is read on the way.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from processes import in_fresh_process

from nlf.data.prompts import load_prompts
from nlf.models.sources import model_path

COMPLETIONS = "/v1/completions"
BROKEN = 0.2  # share of broken requests
TRANSFORMERS = "import sys; sys.modules['nlf'] = None\nfrom transformers.cli.transformers import main; main()"
TOO_LARGE = b"x" * (2**20 + 1)


@dataclass
class Side:
    """What one side did.

    Attributes:
        cpu: Seconds of all cores that the side's own process took for the tokens, without its clients.
        first: Seconds to the first token of each request, in the streamed round.
        whole: Seconds of each request of the other round.
    """

    name: str
    seconds: float = 0.0
    tokens: int = 0
    cpu: float = 0.0
    texts: list[list[str]] = field(default_factory=list)  # the completions of each prompt
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def row(self) -> str:
        cells = [*map(milliseconds, quantiles(self.first)), *map(milliseconds, quantiles(self.whole))]
        return f"| {self.name} | {self.rate:,.0f} | {self.tokens / self.cpu:,.0f} | {' | '.join(cells)} |"


HEADINGS = """| side | tokens a second | tokens a CPU second | first token, median | 95 % | request, median | 95 % |
| --- | --- | --- | --- | --- | --- | --- |"""


def quantiles(seconds: Sequence[float]) -> list[float]:
    """The median and the 95th percentile; NaN of nothing."""
    return np.percentile(seconds, [50, 95]).tolist() if len(seconds) else [float("nan")] * 2


def milliseconds(seconds: float) -> str:
    return "" if seconds != seconds else f"{1000 * seconds:,.0f} ms"


# ---- sides --------------------------------------------------------------------------------------------------------


def sample(_: str, args: argparse.Namespace, prompts: list[str], results) -> None:
    """`nlf sample`'s sampler: what it did is put into the queue."""
    import nlf
    from nlf.evaluation.writer import PromptSampler, SamplingOptions

    writer = nlf.load(args.model, device="cpu")
    options = SamplingOptions(num_generations=args.generations, max_completion_length=args.new, top_p=0.9)
    sampler = PromptSampler(writer.policy, writer.policy.encoder(), writer._sampler, options, 0)
    words = writer.words()

    def run(texts: list[str]):
        return sampler.table(writer.prompts(texts), [words] * len(texts), iteration=-1)

    run(prompts[: args.clients])
    start, cpu = time.perf_counter(), time.process_time()
    table = run(prompts)
    side = Side("nlf sample", time.perf_counter() - start, cpu=time.process_time() - cpu)
    side.tokens = sum(map(len, table["completion_ids"].to_pylist()))
    texts = iter(table["completion"].to_pylist())
    side.texts = [list(itertools.islice(texts, args.generations)) for _ in prompts]
    results.put(side)


@contextlib.contextmanager
def server(command: Sequence[str], ready: str) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """A server at a free port: its process, its address, and the file with what it writes to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "stderr")
        with log.open("w") as errors:
            process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not answers(port, ready):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command[:4])}: has ended\n{log.read_text()[-2000:]}")
                time.sleep(0.25)
            yield process, f"127.0.0.1:{port}", log
        finally:
            process.terminate()
            process.wait()


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def nlf_serve(args: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "nlf", "serve", "--model", args.model, "--max_waiting", "4096", "--quiet"]


def transformers_serve(continuous: bool) -> list[str]:
    flag = ["--continuous-batching"] if continuous else []
    return [sys.executable, "-c", TRANSFORMERS, "serve", "--device", "cpu", *flag]


# ---- clients ------------------------------------------------------------------------------------------------------


class Clients:
    """Threads that send requests, each one at a time over a connection of its own."""

    def __init__(self, count: int, address: str):
        self.count, self.address, self.local = count, address, threading.local()

    def map(self, does: Callable, items: Sequence) -> list:
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(does, items))

    def post(self, body: bytes) -> http.client.HTTPResponse:
        """The answer to a request, unread. A connection that the server has closed is opened again."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.address, timeout=600)
        self.local.connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        return self.local.connection.getresponse()

    def drop(self) -> None:
        self.local.connection.close()
        del self.local.connection


def cpu_seconds(process: subprocess.Popen) -> float:
    """Seconds of all cores that a process has taken."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def measured(
    name: str, process: subprocess.Popen, address: str, args: argparse.Namespace, prompts: list[str], fields: dict
) -> Side:
    """Both rounds of a server."""
    side, clients = Side(name), Clients(args.clients, address)

    def whole(prompt: str) -> tuple[int, list[str]]:
        start = time.perf_counter()
        with clients.post(json.dumps({**fields, "prompt": prompt}).encode()) as answer:
            found = json.load(answer)
        if answer.status != 200:
            raise SystemExit(f"{name}: {answer.status} {found}")
        side.whole.append(time.perf_counter() - start)
        return found["usage"]["completion_tokens"], [choice["text"] for choice in found["choices"]]

    def first(prompt: str) -> None:
        start, seen = time.perf_counter(), False
        with clients.post(json.dumps({**fields, "prompt": prompt, "stream": True}).encode()) as answer:
            for line in answer:
                if not seen and line.startswith(b"data: {") and has_text(json.loads(line[6:])):
                    side.first.append(time.perf_counter() - start)
                    seen = True

    clients.map(whole, prompts[: args.clients])
    side.whole.clear()
    start, cpu = time.perf_counter(), cpu_seconds(process)
    tokens, side.texts = zip(*clients.map(whole, prompts), strict=True)
    side.seconds, side.cpu, side.tokens = time.perf_counter() - start, cpu_seconds(process) - cpu, sum(tokens)
    clients.map(first, prompts)
    return side


def has_text(event: dict) -> bool:
    return any(choice.get("text") for choice in event.get("choices", []))


def throughput(args: argparse.Namespace) -> None:
    """Print the table of all sides."""
    prompts = [row["prompt"] for row in load_prompts("embedded", split="train", limit=args.requests)]
    common = {"max_tokens": args.new, "top_p": 0.9}
    ours = {**common, "n": args.generations, "seed": 0, **({"model": args.name} if args.name else {})}
    sides = [in_fresh_process(sample, "nlf sample", args, prompts)]
    with server(nlf_serve(args), "/health") as (process, address, _):
        sides.append(measured("nlf serve", process, address, args, prompts, ours))
    for continuous in (True, False) if args.generations == 1 and not args.no_transformers else ():
        name = "transformers serve" + (", continuous batching" if continuous else "")
        plain = {**common, "model": os.path.abspath(model_path(args.plain or args.model)), "temperature": 1.0}
        with server(transformers_serve(continuous), "/health") as (process, address, _):
            sides.append(measured(name, process, address, args, prompts, plain))
    print(f"{len(prompts)} requests of {args.generations} x {args.new} tokens, {args.clients} clients\n\n{HEADINGS}")
    print("\n".join(side.row() for side in sides))
    pairs = [
        (a, b)
        for one, other in zip(sides[0].texts, sides[1].texts, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    print(f"\n{sum(a == b for a, b in pairs):,} of {len(pairs):,} completions of nlf serve are those of nlf sample")
    for other in (sides[0], *sides[2:]):
        wall, cpu = sides[1].rate / other.rate, sides[1].tokens / sides[1].cpu / (other.tokens / other.cpu)
        print(f"\nnlf serve / {other.name}: {wall:.2f} x the tokens per second, {cpu:.2f} x by CPU seconds")


# ---- hostile requests ---------------------------------------------------------------------------------------------


def kinds(count: int) -> list[str]:
    """The kind of each request, in an order that repeats: a fifth is broken."""
    broken = ["json", "tag", "cut before", "cut after", "large"]
    each = round(1 / BROKEN)
    return [broken[i // each % len(broken)] if i % each == 0 else "good" for i in range(count)]


def sent(kind: str, clients: Clients, fields: dict) -> str:
    """Send a request of a kind; how it was answered."""
    good = json.dumps(fields).encode()
    if kind.startswith("cut"):
        host, _, port = clients.address.partition(":")
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {clients.address}\r\nContent-Length: {len(good)}\r\n\r\n".encode()
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + (good if kind == "cut after" else good[:9]))
        return "cut"
    bodies = {
        "good": good,
        "json": b"{",
        "tag": json.dumps({**fields, "tag": "no such tag"}).encode(),
        "large": TOO_LARGE,
    }
    try:
        with clients.post(bodies[kind]) as answer:
            found = answer.read()
    except OSError:  # the server may close the connection before it has read a large body
        clients.drop()
        return "closed"
    if kind == "large":
        clients.drop()
    return str(answer.status) if kind != "good" or b'"choices"' in found else "lost"


def resident(process: subprocess.Popen) -> float:
    """Megabytes of memory that a process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def hostile(args: argparse.Namespace) -> None:
    """Send the requests in tenths, and print how each kind was answered, and the memory after each tenth."""
    fields = {"prompt": "The weather today", "max_tokens": 8, **({"model": args.name} if args.name else {})}
    with server(nlf_serve(args), "/health") as (process, address, log):
        clients, memory, found = Clients(args.clients, address), [], Counter()
        for part in np.array_split(kinds(args.hostile), 10):
            outcomes = clients.map(lambda kind: (kind, sent(str(kind), clients, fields)), part)
            found += Counter(outcomes)
            memory.append(resident(process))
        tracebacks = log.read_text().count("Traceback")
    print(f"{args.hostile:,} requests, {args.clients} clients\n\n| request | answer | count |\n| --- | --- | --- |")
    print("\n".join(f"| {kind} | {outcome} | {count:,} |" for (kind, outcome), count in sorted(found.items())))
    lost = sum(count for (kind, outcome), count in found.items() if kind == "good" and outcome != "200")
    print(f"\n{lost} good requests lost, {tracebacks} tracebacks")
    print("memory after each tenth: " + ", ".join(f"{each:,.0f}" for each in memory) + " MB")
    print(f"growth from the second tenth to the last: {100 * (memory[-1] / memory[1] - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="a run, a model's folder or 'embedded'")
    parser.add_argument("--name", help="the model's name on our server, such as 'tagged'; its first by default")
    parser.add_argument("--plain", help="the model that transformers serve gets; --model by default")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument(
        "--generations", type=int, default=1, help="completions of a request; above 1 without transformers serve"
    )
    parser.add_argument("--new", type=int, default=20, help="most new tokens of a completion")
    parser.add_argument("--hostile", type=int, default=10_000, help="requests of the hostile part")
    parser.add_argument("--only", choices=["throughput", "hostile"])
    parser.add_argument("--no_transformers", action="store_true", help="leave transformers serve out")
    args = parser.parse_args()
    if args.only != "hostile":
        throughput(args)
    if args.only != "throughput":
        hostile(args)


if __name__ == "__main__":
    main()
