"""Sample by offline vLLM in separate processes, so that a GPU's memory is free again afterwards.

Prompts and completions travel as token ids. The first call starts `python -m nlf.sampling.vllm FOLDER`, which loads
the model and then carries out one job after another until `close`. The names of jobs come on its standard input, so
that process ends when this one is killed. With D copies of the model there are D processes, on different GPUs; each
samples a D-th of the prompts. (`LLM` refuses `data_parallel_size` in one process.)

Completion j of a request has the seed of (seed, iteration, request key) plus j: vLLM itself adds j. A repeated job on the
same machine and version repeats as far as vLLM does; its rounding depends on the batch. Guidance needs logits and is
refused.

The code is written against vLLM's `LLM`, `SamplingParams` and `TokensPrompt`, is tested with a stand-in of their
signatures, and ran by hand with vLLM 0.32 on a CPU. It has not run on GPUs.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

from nlf.config import SamplingOptions, refuse_guidance
from nlf.errors import UserError
from nlf.sampling import Completions, Progress, Requests, Vocabulary, check_lengths, seed_of

GRACE = 30  # seconds that a process has to end by itself
ROOM = 2048  # least tokens that a process reads
POLL = 0.02  # seconds between two looks for results
# Variables of torchrun: prefixes, and whole names. With them vLLM would join the ranks' rendezvous.
LAUNCHERS = ("TORCHELASTIC_", "ROLE_", "GROUP_")
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Engine:
    """The model that vLLM loads, and its share of the GPUs: arguments of `LLM`.

    Attributes:
        model: A folder, or a hub id.
        revision: Hub revision of the model; None for a folder.
        dtype: Type of the weights and activations, as vLLM spells it: float32, bfloat16, float16 or auto.
        tensor_parallel_size: GPUs that share one copy of the model.
        gpu_memory_utilization: Share of each GPU's memory that vLLM may take.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9

    def arguments(self, room: int | None) -> dict[str, Any]:
        """Keyword arguments of `LLM`.

        Args:
            room: Most tokens of a prompt with its completion; None = the model's context.
        """
        return {**asdict(self), "tokenizer_revision": self.revision, "max_model_len": room}


class Job(TypedDict):
    """The prompts that one process samples, as the JSON in the job's file."""

    params: dict[str, Any]  # arguments of `SamplingParams` without the seed
    repeat: int  # times that each completion counts
    prompts: list[list[int]]
    seeds: list[int]  # one for each prompt


class VLLMSampler:
    """Samples from a model on disk. `close` ends its processes; the next call starts new ones.

    Args:
        vocabulary: The model's EOS ids, banned ids and context.
        copies: Copies of the model, on different GPUs.
        device: Index of the first GPU among the visible ones; None leaves the choice to vLLM.

    Raises:
        UserError: vLLM is not installed, or there are fewer GPUs than the copies need.
    """

    label = "vllm"

    def __init__(self, engine: Engine, vocabulary: Vocabulary, *, copies: int = 1, device: int | None = None):
        require_vllm()
        self.engine, self.context = engine, vocabulary.context
        self.eos, self.banned = list(vocabulary.eos), list(vocabulary.banned)
        self.devices = _devices(engine.tensor_parallel_size, copies, device)
        self.processes: list[_Process] = []
        self.room = 0.0  # most tokens that the processes read; infinite = the model's context

    def sample(
        self, requests: Requests, options: SamplingOptions, *, seed: int, iteration: int, progress: Progress = None
    ) -> Completions:
        """See `nlf.sampling.Sampler`.

        Raises:
            UserError: a prompt is empty or does not fit the context, the options ask for guidance, or a process failed.
        """
        refuse_guidance("vllm", options.guidance_scale)
        check_lengths([(r.input_ids,) for r in requests], options.max_completion_length, self.context)
        params, copies = self._params(options), len(self.devices)
        jobs: list[Job] = [
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
        for process, job in zip(self.processes, jobs, strict=False):  # a process without prompts is not started
            process.ask(job)
        results: Completions = [[] for _ in requests]
        for i in range(len(jobs)):
            results[i::copies] = self.processes[i].answer()
            if progress:
                progress(len(jobs[i]["prompts"]) * options.num_generations)
        return results

    def _make_room(self, tokens: int) -> None:
        """Start processes with room for this many tokens.

        vLLM reserves memory for one row of `max_model_len` tokens, and a model's whole context may be too much for the
        rest of a GPU. So longer prompts start new processes, which is rare.
        """
        if tokens > self.room:
            self.close()
            self.room = min(max(ROOM, 1 << (tokens - 1).bit_length()), self.context)
            arguments = self.engine.arguments(int(self.room) if self.context < float("inf") else None)
            self.processes = [_Process(arguments, visible) for visible in self.devices]

    def close(self) -> None:
        """End the processes, which frees the memory of their GPUs."""
        for process in self.processes:
            process.close()
        self.processes, self.room = [], 0.0

    def _params(self, options: SamplingOptions) -> dict[str, Any]:
        """The arguments of `SamplingParams` without the seed. vLLM refuses n > 1 at temperature 0."""
        return {
            "n": options.num_generations if options.temperature else 1,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or -1,  # -1 is off in every version, 0 only in newer versions
            "max_tokens": options.max_completion_length,
            "min_tokens": options.min_completion_length,
            "stop_token_ids": self.eos,
            "logit_bias": {str(i): -100.0 for i in self.banned} or None,
            "detokenize": False,
        }


def require_vllm() -> None:
    """Raise UserError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("sampler vllm needs vLLM: pip install vllm (docs/scaling.md), or choose sampler hf")


def _devices(tensor: int, copies: int, first: int | None = None) -> list[str | None]:
    """$CUDA_VISIBLE_DEVICES of each copy of the model; [None] keeps the current value.

    Args:
        tensor: GPUs of a copy.
        first: Index of the first GPU among the visible ones; None leaves the choice of one copy to vLLM.

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


@dataclass(frozen=True)
class _Started:
    """A running process.

    Attributes:
        words: Its standard input, which takes the names of jobs.
        folder: Holds the files of jobs and results.
    """

    process: subprocess.Popen
    words: IO[str]
    folder: tempfile.TemporaryDirectory

    def file(self, name: str) -> Path:
        return Path(self.folder.name, name)


class _Process:
    """A process that runs vLLM for one job after another; the first job starts it.

    Args:
        engine: The arguments of `LLM`.
        visible: $CUDA_VISIBLE_DEVICES of the new process; None = the value of this process.
    """

    def __init__(self, engine: dict[str, Any], visible: str | None):
        self.engine, self.visible = engine, visible
        self.asked, self.busy = 0, False  # jobs so far; whether the last job has no answer yet
        self.started: _Started | None = None

    def ask(self, job: Job) -> None:
        """Hand over a job.

        Raises:
            UserError: the process has ended.
        """
        started = self.started = self.started or self._start()
        self.asked, self.busy = self.asked + 1, True
        started.file(f"job-{self.asked}.json").write_text(json.dumps(job), encoding="utf-8")
        try:
            started.words.write(f"{self.asked}\n")
            started.words.flush()
        except BrokenPipeError as error:
            raise self._failed(started.process.wait()) from error

    def answer(self) -> list[list[list[int]]]:
        """The completions of the last job, for each prompt.

        Raises:
            UserError: the process has ended; its messages are on stderr.
        """
        assert self.started  # a job was handed over
        found = self.started.file(f"found-{self.asked}.jsonl")
        while not found.is_file():
            status = self.started.process.poll()
            if status is not None and not found.is_file():
                raise self._failed(status)
            time.sleep(POLL)
        self.busy = False
        lines = found.read_text(encoding="utf-8").splitlines()
        for done in (found, self.started.file(f"job-{self.asked}.json")):
            done.unlink()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let the process end, then kill the rest of it and of the processes that it started."""
        if self.started is None:
            return
        process = self.started.process
        with contextlib.suppress(BrokenPipeError):
            self.started.words.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if self.busy else GRACE)  # nobody waits for an unfinished job
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.started.folder.cleanup()
        self.started = None

    def _start(self) -> _Started:
        folder = tempfile.TemporaryDirectory(prefix="nlf-vllm-")
        Path(folder.name, ENGINE).write_text(json.dumps(self.engine), encoding="utf-8")
        env = {n: v for n, v in os.environ.items() if n not in RANKS and not n.startswith(LAUNCHERS)}
        env = {"VLLM_LOGGING_LEVEL": "WARNING", **env}
        if self.visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.visible
        process = subprocess.Popen(
            [sys.executable, "-m", "nlf.sampling.vllm", folder.name], env=env, stdin=subprocess.PIPE, text=True,
            stdout=2,  # vLLM's output goes to stderr, since stdout is the command's output
            start_new_session=True,  # a group of processes to kill as one, which ^C does not reach
        )  # fmt: skip
        assert process.stdin  # a pipe was asked for
        return _Started(process, process.stdin, folder)

    def _failed(self, status: int) -> UserError:
        return UserError(
            f"vLLM failed (exit status {status}) on {self.engine['model']}: its messages are above; out of memory: lower "
            "gpu_memory_utilization, or raise tensor_parallel_size. Finished work is kept; run again to continue"
        )


# ---- in the other process -----------------------------------------------------------------------------------------

ENGINE = "engine.json"


def carry_out(engine: Any, job: Job) -> list[list[list[int]]]:
    """For each prompt the token ids of its completions, with the EOS that ended them.

    Args:
        engine: vLLM's `LLM`.
    """
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
    """Carry out the jobs named on standard input: read each from its file, and write a line of results a prompt."""
    from vllm import LLM

    engine = LLM(**json.loads((folder / ENGINE).read_text(encoding="utf-8")))
    for name in map(str.strip, sys.stdin):
        results = carry_out(engine, json.loads((folder / f"job-{name}.json").read_text(encoding="utf-8")))
        written = folder / "writing"
        written.write_text("".join(json.dumps(each) + "\n" for each in results), encoding="utf-8")
        written.replace(folder / f"found-{name}.jsonl")  # so that nobody reads half a file


if __name__ == "__main__":
    main(Path(sys.argv[1]))
