"""Sampling by offline vLLM, over a model's folder and in processes of its own, so that a GPU's memory is given back after.

Prompts and completions travel as token ids. This process writes a job (JSON), starts `python -m nlf.sampling.vllm JOB
FOUND`, and reads what that found; with `data_parallel_size` D, D of them, each with a D-th of the prompts on GPUs of its
own, since `LLM` refuses `data_parallel_size` in one process. Loading takes a while: call it with many
prompts at a time.

Completion j of a request is seeded with (seed, iteration, request key) + j: vLLM itself adds j. The same job on the same
machine and version repeats as far as vLLM does (its float rounding depends on the batch). Guidance needs logits and is
refused.

Written against vLLM's `LLM`, `SamplingParams` and `TokensPrompt` and tested with a stand-in of their signatures: it has
not been run with vLLM itself.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlf.config import refuse_guidance
from nlf.errors import UserError
from nlf.sampling import Request, check_lengths, seed_of

if TYPE_CHECKING:
    from nlf.config import SamplingOptions

GRACE = 10  # seconds that a process has to end by itself


class VLLMSampler:
    """Samples from a model on disk.

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
    ):
        if importlib.util.find_spec("vllm") is None:
            raise UserError("sampler vllm needs vLLM: pip install vllm, or choose sampler hf")
        self.engine = {
            "model": model,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        self.devices = _devices(tensor_parallel_size, data_parallel_size)
        self.eos, self.banned, self.context = list(eos_token_ids), list(banned_token_ids), context

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
                "engine": self.engine,
                "params": params,
                "repeat": options.num_generations // params["n"],
                "prompts": [list(r.input_ids) for r in part],
                "seeds": [seed_of(seed, iteration, r.key, 0) for r in part],
            }
            for part in (requests[i::copies] for i in range(copies))
        ]
        results: list[list[list[int]]] = [[] for _ in requests]
        for i, found in enumerate(_carried_out(jobs, self.devices)):
            results[i::copies] = found
            if progress:
                progress(len(found) * options.num_generations)
        return results

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


def _devices(tensor: int, copies: int) -> list[str | None]:
    """$CUDA_VISIBLE_DEVICES of each copy of the model; [None] leaves it as it is.

    Raises:
        UserError: there are fewer GPUs than the copies need.
    """
    if copies == 1:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [gpu for gpu in visible.split(",") if gpu]
    if len(gpus) < tensor * copies:
        raise UserError(
            f"data_parallel_size {copies} x tensor_parallel_size {tensor}: {tensor * copies} GPUs are needed, "
            f"{len(gpus)} are visible"
        )
    return [",".join(gpus[i * tensor : (i + 1) * tensor]) for i in range(copies)]


def _carried_out(jobs: Sequence[dict], devices: Sequence[str | None]) -> list[list[list[list[int]]]]:
    """What the jobs found, each by a process of its own, all at a time; one without prompts needs none.

    Raises:
        UserError: one failed; what it logged is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="nlf-vllm-") as folder:
        processes = {}
        try:
            for i, (job, visible) in enumerate(zip(jobs, devices, strict=True)):
                if job["prompts"]:
                    processes[i] = _start(
                        job, Path(folder, f"job-{i}.json"), Path(folder, f"found-{i}.jsonl"), visible
                    )
            for i, process in processes.items():
                if status := process.wait():
                    raise UserError(
                        f"vLLM failed (exit status {status}) on {jobs[i]['engine']['model']}: its own words are above; "
                        "out of memory: lower gpu_memory_utilization, or raise tensor_parallel_size"
                    )
        finally:
            for process in processes.values():
                _end(process)
        return [_read(Path(folder, f"found-{i}.jsonl")) if i in processes else [] for i in range(len(jobs))]


def _start(job: dict, asked: Path, found: Path, visible: str | None) -> subprocess.Popen:
    asked.write_text(json.dumps(job), encoding="utf-8")
    env = {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ}
    if visible is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible
    words = [sys.executable, "-m", "nlf.sampling.vllm", str(asked), str(found)]
    return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=2)  # stderr: it is not our output


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(found: Path) -> list[list[list[int]]]:
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]


# ---- in the other process -----------------------------------------------------------------------------------------


def carry_out(job: dict) -> list[list[list[int]]]:
    """Per prompt the token ids of its completions, with the EOS that ended them."""
    from vllm import LLM, SamplingParams

    bias = job["params"]["logit_bias"]
    params = {**job["params"], "logit_bias": {int(i): value for i, value in bias.items()} if bias else None}
    outputs = LLM(**job["engine"]).generate(
        [{"prompt_token_ids": ids} for ids in job["prompts"]],
        [SamplingParams(**params, seed=seed) for seed in job["seeds"]],
    )
    completions = ([list(each.token_ids) for each in sorted(o.outputs, key=lambda c: c.index)] for o in outputs)
    return [found * job["repeat"] for found in completions]


def main(asked: str, found: str) -> None:
    """Carry out the job of one file into another, a line a prompt."""
    results = carry_out(json.loads(Path(asked).read_text(encoding="utf-8")))
    Path(found).write_text("".join(json.dumps(each) + "\n" for each in results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
