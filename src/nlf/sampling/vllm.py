"""Sampling by offline vLLM, over a model's folder and in processes of its own, so that a GPU's memory is given back after.

Prompts and completions travel as token ids. The first call starts `python -m nlf.sampling.vllm FOLDER`, which loads the
model and then carries out one job after another until `close`: their names come on its input, so that it also ends where
this process is killed. With `data_parallel_size` D there are D of them, each with a D-th of the prompts on GPUs of its
own, since `LLM` refuses `data_parallel_size` in one process.

Completion j of a request is seeded with (seed, iteration, request key) + j: vLLM itself adds j. The same job on the same
machine and version repeats as far as vLLM does (its float rounding depends on the batch). Guidance needs logits and is
refused.

Written against vLLM's `LLM`, `SamplingParams` and `TokensPrompt`, tested with a stand-in of their signatures, and run by
hand with vLLM 0.32 on a CPU; on GPUs it has not been run.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlf.config import refuse_guidance
from nlf.errors import UserError
from nlf.sampling import Request, check_lengths, seed_of

if TYPE_CHECKING:
    from nlf.config import SamplingOptions

GRACE = 30  # seconds that a process has to end by itself
ROOM = 2048  # tokens that it reads at least
POLL = 0.02  # seconds between two looks for what a process has found
# Variables of torchrun, by their beginning and by name: with them vLLM would join the ranks' rendezvous.
LAUNCHERS = ("TORCHELASTIC_", "ROLE_", "GROUP_")
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class VLLMSampler:
    """Samples from a model on disk. Call `close` to end its processes; the next call starts others.

    Args:
        model: A folder, or a hub id.
        revision: Hub revision of it; None for a folder.
        dtype: Type of the weights and activations, as vLLM spells it: float32, bfloat16, float16 or auto.
        eos_token_ids: Ids that end a completion (and are kept in it).
        banned_token_ids: Ids that are never sampled.
        context: Tokens that the model reads at most.
        tensor_parallel_size: GPUs that share one copy of the model.
        data_parallel_size: Copies of the model, each on GPUs of its own.
        gpu_memory_utilization: Share of each GPU's memory that vLLM may take.
        device: The first of its GPUs, counted among those that this process sees; None = leave it to vLLM.

    Raises:
        UserError: vLLM is not installed, or there are fewer GPUs than the copies need.
    """

    label = "vllm"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        context: float = float("inf"),
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        device: int | None = None,
    ):
        require_vllm()
        self.engine = {
            "model": model,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        self.devices = _devices(tensor_parallel_size, data_parallel_size, device)
        self.eos, self.banned, self.context = list(eos_token_ids), list(banned_token_ids), context
        self.processes: list[_Process] = []
        self.room = 0  # tokens that they read at most

    def sample(
        self,
        requests: Sequence[Request],
        options: "SamplingOptions",
        *,
        seed: int,
        iteration: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """See `nlf.sampling.Sampler`.

        Raises:
            UserError: a prompt that is empty or does not fit the context; guidance; a process that failed.
        """
        refuse_guidance("vllm", options.guidance_scale)
        check_lengths([(r.input_ids,) for r in requests], options.max_completion_length, self.context)
        params, copies = self._params(options), len(self.devices)
        jobs = [
            {
                "params": params,
                "repeat": options.num_generations // params["n"],
                "prompts": [list(r.input_ids) for r in part],
                "seeds": [seed_of(seed, iteration, r.key, 0) for r in part],
            }
            for part in (requests[i::copies] for i in range(copies))
            if part
        ]
        self._make_room(max((len(r.input_ids) for r in requests), default=0) + options.max_completion_length)
        for process, job in zip(self.processes, jobs, strict=False):  # one without prompts is not started
            process.ask(job)
        results: list[list[list[int]]] = [[] for _ in requests]
        for i in range(len(jobs)):
            results[i::copies] = self.processes[i].answer()
            if progress:
                progress(len(jobs[i]["prompts"]) * options.num_generations)
        return results

    def _make_room(self, tokens: int) -> None:
        """Processes that read so many tokens. vLLM needs memory for one row of the longest that it is told of, and a
        model's whole context may be too much for what is left of a GPU. Others are started for longer ones: seldom.
        """
        if tokens > self.room:
            self.close()
            self.room = min(max(ROOM, 1 << (tokens - 1).bit_length()), self.context)
            engine = self.engine | {"max_model_len": self.room if self.context < float("inf") else None}
            self.processes = [_Process(engine, visible) for visible in self.devices]

    def close(self) -> None:
        """End the processes, so that the memory of their GPUs is free."""
        for process in self.processes:
            process.close()
        self.processes, self.room = [], 0

    def _params(self, options: "SamplingOptions") -> dict:
        """The arguments of `SamplingParams`, but for the seed. vLLM refuses n > 1 where the likeliest token is taken."""
        return {
            "n": options.num_generations if options.temperature else 1,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or -1,  # off for all versions; 0 for newer ones only
            "max_tokens": options.max_completion_length,
            "min_tokens": options.min_completion_length,
            "stop_token_ids": self.eos,
            "logit_bias": {str(i): -100.0 for i in self.banned} or None,
            "detokenize": False,
        }


def require_vllm() -> None:
    """Raise UserError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("sampler vllm needs vLLM: pip install vllm (docs/scaling.md), or choose sampler hf")


def _devices(tensor: int, copies: int, first: int | None = None) -> list[str | None]:
    """$CUDA_VISIBLE_DEVICES of each copy of the model; [None] leaves it as it is.

    Raises:
        UserError: there are fewer GPUs than the copies need.
    """
    if copies == 1 and first is None:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [gpu for gpu in visible.split(",") if gpu][first or 0 :]
    if len(gpus) < tensor * copies:
        after = f" from GPU {first} on" if first else ""
        raise UserError(
            f"data_parallel_size {copies} x tensor_parallel_size {tensor}: {tensor * copies} GPUs are needed, "
            f"{len(gpus)} are visible{after}"
        )
    return [",".join(gpus[i * tensor : (i + 1) * tensor]) for i in range(copies)]


class _Process:
    """A process with vLLM in it, for one job after another; the first starts it.

    Args:
        engine: The arguments of `LLM`.
        visible: Its $CUDA_VISIBLE_DEVICES; None = this process's.
    """

    def __init__(self, engine: dict, visible: str | None):
        self.engine, self.visible = engine, visible
        self.asked, self.busy = 0, False  # jobs so far; whether the last one is not answered yet
        self.process: subprocess.Popen | None = None

    def ask(self, job: dict) -> None:
        """Raises UserError where the process has ended."""
        if self.process is None:
            self._start()
        self.asked, self.busy = self.asked + 1, True
        (self.folder / f"job-{self.asked}.json").write_text(json.dumps(job), encoding="utf-8")
        try:
            self.process.stdin.write(f"{self.asked}\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed(self.process.wait()) from error

    def answer(self) -> list[list[list[int]]]:
        """What the last job found.

        Raises:
            UserError: the process has ended; what it said is on stderr.
        """
        found = self.folder / f"found-{self.asked}.jsonl"
        while not found.is_file():
            status = self.process.poll()
            if status is not None and not found.is_file():
                raise self._failed(status)
            time.sleep(POLL)
        self.busy = False
        lines = found.read_text(encoding="utf-8").splitlines()
        for done in (found, self.folder / f"job-{self.asked}.json"):
            done.unlink()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let it end, then kill what is left of it and of what it started."""
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if self.busy else GRACE)  # nobody waits for what it is at
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.temporary.cleanup()
        self.process = None

    def _start(self) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="nlf-vllm-")
        self.folder = Path(self.temporary.name)
        (self.folder / ENGINE).write_text(json.dumps(self.engine), encoding="utf-8")
        env = {n: v for n, v in os.environ.items() if n not in RANKS and not n.startswith(LAUNCHERS)}
        env = {"VLLM_LOGGING_LEVEL": "WARNING", **env}
        if self.visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.visible
        words = [sys.executable, "-m", "nlf.sampling.vllm", str(self.folder)]
        self.process = subprocess.Popen(
            words, env=env, stdin=subprocess.PIPE, text=True,
            stdout=2,  # stderr: it is not our output
            start_new_session=True,  # a group of processes to kill as one; ^C is ours to answer
        )  # fmt: skip

    def _failed(self, status: int) -> UserError:
        return UserError(
            f"vLLM failed (exit status {status}) on {self.engine['model']}: its own words are above; out of memory: lower "
            "gpu_memory_utilization, or raise tensor_parallel_size. What is done is kept: run again to go on"
        )


# ---- in the other process -----------------------------------------------------------------------------------------

ENGINE = "engine.json"


def carry_out(engine, job: dict) -> list[list[list[int]]]:
    """Per prompt the token ids of its completions, with the EOS that ended them."""
    from vllm import SamplingParams

    bias = job["params"]["logit_bias"]
    params = {**job["params"], "logit_bias": {int(i): value for i, value in bias.items()} if bias else None}
    outputs = engine.generate(
        [{"prompt_token_ids": ids} for ids in job["prompts"]],
        [SamplingParams(**params, seed=seed) for seed in job["seeds"]],
        use_tqdm=False,
    )
    completions = ([list(each.token_ids) for each in sorted(o.outputs, key=lambda c: c.index)] for o in outputs)
    return [found * job["repeat"] for found in completions]


def main(folder: Path) -> None:
    """Carry out the jobs that are named on the input, each from its file into another, a line a prompt."""
    from vllm import LLM

    engine = LLM(**json.loads((folder / ENGINE).read_text(encoding="utf-8")))
    for name in map(str.strip, sys.stdin):
        results = carry_out(engine, json.loads((folder / f"job-{name}.json").read_text(encoding="utf-8")))
        written = folder / "writing"
        written.write_text("".join(json.dumps(each) + "\n" for each in results), encoding="utf-8")
        written.replace(folder / f"found-{name}.jsonl")  # whole, or not there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
