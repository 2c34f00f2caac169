"""Write scored generations and results in the forms of other programs, beside our own files.

- `rtp`: `rtp-generations.jsonl`, RealToxicityPrompts' form (`nlf.data.rtp`), which this package reads again. `scorer` names
  the scorer of a generation's fields; the scores of all scorers stand in `scores`.
- `quark`: a folder `quark-generations` with Quark's `reward.json` and `eval_results.txt`, by Quark's rules
  (`nlf.method.published`): a prompt counts as toxic above .5, words are split at single spaces.
- `harness`: lm-evaluation-harness' `harness/SYSTEM/results_DATE.json`, a task for each source of prompts
  (`lm_eval/result_schema.py` names the keys).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nlf.data import rtp
from nlf.data.files import json_text, refuse_other, write_text
from nlf.data.generations import Row, read, write_lines
from nlf.errors import UserError
from nlf.evaluation import intervals, metrics
from nlf.evaluation.systems import PromptSet, slug
from nlf.method import published

TEXT_ONLY = ("rtp", "quark")  # forms whose prompts are text
REWARDS, RESULTS = "reward.json", "eval_results.txt"  # Quark's names
FILTER = "none"  # lm-evaluation-harness' name for answers that nothing has filtered


# ---- before the work ----------------------------------------------------------------------------------------------


def check_sets(form: str | None, folder: Path, sets: Sequence[PromptSet]) -> None:
    """Refuse an evaluation that cannot be written in a form.

    Raises:
        UserError: the form holds no conversations and the prompts are some, or a file of another program is in the way.
    """
    for prompts in sets:
        _check_prompts(form, prompts.source, (row["prompt"] for row in prompts.rows))
    for target in [*folder.glob("rtp-generations*.jsonl"), *folder.glob(f"quark-generations*/{REWARDS}")]:
        _refuse_others(form, target)


def check_file(form: str | None, path: Path) -> None:
    """Refuse a file of generations that cannot be written in a form.

    Raises:
        UserError: its prompts are conversations, or a file of another program is in the way.
    """
    if form:
        _check_prompts(form, str(path), (line["prompt"] for line in read(path)))
        _refuse_others(form, target_of(form, path))


def target_of(form: str, path: Path) -> Path:
    """The file of prompts and generations that is written beside a generations file."""
    return path.with_name(f"rtp-{path.stem}.jsonl" if form == "rtp" else f"quark-{path.stem}") / (
        "" if form == "rtp" else REWARDS
    )


def _check_prompts(form: str | None, source: str, prompts: Iterable[Any]) -> None:
    if form in TEXT_ONLY and not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(
            f"--format {form}: {source} holds conversations, and this form has text only; leave --format out"
        )


def _refuse_others(form: str | None, target: Path) -> None:
    if form in TEXT_ONLY:
        refuse_other(target, _is_ours)


def _is_ours(text: str) -> bool:
    """Whether a text is the content of a file that `write_generations` writes."""
    try:
        return {"generations", "scorer"} <= json.loads(text.partition("\n")[0]).keys()
    except (ValueError, AttributeError):
        return False


# ---- generations --------------------------------------------------------------------------------------------------


def write_generations(
    form: str, path: Path, scorer: str, *, count: int | None = None, likelihoods: str | None = None
) -> Path:
    """Write a scored generations file in the form `rtp` or `quark`.

    Args:
        scorer: The scorer whose scores the generations get.
        count: Number of first lines; None = all.
        likelihoods: The reader of Quark's perplexity; None leaves it out.

    Returns:
        The file of prompts and generations.

    Raises:
        UserError: the file cannot be written.
    """
    target = target_of(form, path)
    lines = islice(read(path), count)
    if form == "rtp":
        write_lines(target, (rtp_line(line, scorer) for line in lines))
    else:
        totals = QuarkResults(scorer, likelihoods)
        write_lines(target, (quark_line(line, scorer) for line in totals.counted(lines)))
        write_text(target.with_name(RESULTS), totals.text())
    return target


def rtp_line(line: Mapping[str, Any], scorer: str) -> Row:
    """A line of generations in RealToxicityPrompts' form, with the columns of the prompt beside the prompt."""
    prompt = line.get("record", {}).get("prompt")
    return {
        **(line.get("columns") or {}),
        "prompt": prompt if isinstance(prompt, dict) else {"text": line["prompt"]},
        "generations": rtp.written(line, scorer),
        "feedback": line["feedback"],
        "scorer": scorer,
        "scores": {name: found for name, found in line["scores"].items() if name != rtp.RECORDED},
    }


def quark_line(line: Mapping[str, Any], scorer: str) -> Row:
    """A line of Quark's `reward.json`, and the scorer's name."""
    return {"prompt": line["prompt"], "generations": rtp.written(line, scorer), "scorer": scorer}


class QuarkResults:
    """The numbers of Quark's `eval_results.txt`, gathered line by line.

    A scorer without toxicity gives no lines about toxicity, as in DExperts' file of this name.
    """

    def __init__(self, scorer: str, likelihoods: str | None = None):
        self._scorer, self._likelihoods = scorer, likelihoods
        self._highest: list[float] = []
        self._distinct: list[tuple[float, float, float]] = []
        self._perplexities: list[float] = []
        self._prompt_lengths: list[int] = []

    def counted(self, lines: Iterable[Any]) -> Iterator[Any]:
        """The lines, each counted as it passes."""
        for line in lines:
            toxicity = line["scores"][self._scorer]["attributes"].get("toxicity", [])
            if scored := [value for value in toxicity if value is not None]:
                self._highest.append(max(scored))
            self._distinct.append(published.distinct(line["completions"]))
            if self._likelihoods:
                found = line["likelihoods"][self._likelihoods]
                values = metrics.completion_perplexity(np.array(found["nll"]), np.array(found["tokens"]))
                self._perplexities += values.tolist()
                self._prompt_lengths += [found["prompt_tokens"]] * len(values)
            yield line

    def text(self) -> str:
        """The content of the file."""
        lines = []
        if self._highest:
            highest, probability = published.toxicity(self._highest)
            lines += [f"average maximum toxicity = {highest:.3f}", f"average toxicity probability = {probability:.3f}"]
        means = np.mean(self._distinct, axis=0)
        lines.append(", ".join(f"dist-{n}={value:.3f}" for n, value in enumerate(means, 1)))
        perplexities, lengths = np.array(self._perplexities), np.array(self._prompt_lengths)
        if ((perplexities < metrics.HIGH_PERPLEXITY) & (lengths > 1)).any():
            lines.append(f"perplexity = {published.perplexity(perplexities, lengths)}")
        return "".join(f"{line}\n" for line in lines)


# ---- results ------------------------------------------------------------------------------------------------------


def export(form: str | None, folder: Path, results: Mapping[str, Any], likelihoods: str) -> list[Path]:
    """Write the results of an evaluation, or its generations, in a form; None writes nothing.

    Args:
        folder: The folder of the evaluation.
        results: The content of its `results.json`.
        likelihoods: The key of the reader in a line.

    Returns:
        The files.

    Raises:
        UserError: a file cannot be written.
    """
    if form in TEXT_ONLY:
        scorer = results["scorers"][0]
        return [
            write_generations(
                form,
                folder / entry["generations"],
                scorer,
                count=entry["n_samples"]["effective"],
                likelihoods=likelihoods,
            )
            for entry in results["systems"]
        ]
    date = datetime.now().isoformat().replace(":", "-")
    systems = harness_results(results).items() if form else ()
    paths = [folder / "harness" / name / f"results_{date}.json" for name, _ in systems]
    for path, (_, content) in zip(paths, systems, strict=True):
        write_text(path, json_text(content, indent=2) + "\n")
    return paths


def harness_results(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of lm-evaluation-harness' results file for each system, which is a model there.

    Args:
        results: The content of `results.json`. A system's sources of prompts are its tasks.
    """
    by_system: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    several = len({(entry["prompts"], entry["reversed"]) for entry in results["systems"]}) > 1
    for entry in results["systems"]:
        source = slug(entry["prompts"])  # with several sources, an id begins with it
        by_system[entry["id"].removeprefix(f"{source}-" if several else "")][source or "prompts"] = entry
    return {name: _harness_content(results, tasks) for name, tasks in by_system.items()}


def _harness_content(results: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One system's results; keys that need what is not known here, such as the time it took, are left out."""
    model = results["models"][next(iter(tasks.values()))["model"]]
    version = results["schema_version"]
    return {
        "results": {task: _task_metrics(task, entry) for task, entry in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: _task_config(task, entry, results) for task, entry in tasks.items()},
        "versions": dict.fromkeys(tasks, version),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            task: {_harness_name(name): results["higher_is_better"][name] for name in metric_names(entry)}
            for task, entry in tasks.items()
        },
        "n-samples": {task: entry["n_samples"] for task, entry in tasks.items()},
        "config": _model_config(results, model, next(iter(tasks.values()))),
        "git_hash": results["git_hash"],
        "date": datetime.fromisoformat(results["date"]).timestamp(),
        "nlf_version": results["nlf_version"],
        "transformers_version": results["versions"].get("transformers"),
        "upper_git_hash": None,
        "task_hashes": {},
        "model_source": "nlf",
        "model_name": model["name"],
        "model_name_sanitized": slug(model["name"]),
        **dict.fromkeys(("system_instruction", "system_instruction_sha", "fewshot_as_multiturn")),
        **dict.fromkeys(("chat_template", "chat_template_sha")),
    }


def _task_config(task: str, entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What a task is: its prompts, how they were sampled and scored."""
    return {
        "task": task,
        "dataset_path": entry["prompts"],
        "output_type": "generate_until",
        "repeats": entry["num_generations"],
        "generation_kwargs": _drawing(results),
        "metadata": {"version": results["schema_version"], "scorers": results["scorers"], **_condition(entry)},
    }


def _model_config(results: Mapping[str, Any], model: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What was evaluated: the model with its tag, and the seeds."""
    options, seed = results["config"], results["seeds"]["sampling"]
    return {
        "model": "nlf",
        "model_args": {"pretrained": model["name"], **_condition(entry)},
        "model_revision": model["revision"],
        "model_dtype": options["dtype"],
        "batch_size": None,
        "batch_sizes": [],
        "device": None,
        "use_cache": None,
        "limit": options["max_prompts"],
        "bootstrap_iters": intervals.DRAWS,
        "gen_kwargs": _drawing(results),
        **dict.fromkeys(("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), seed),
    }


def _condition(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("tag", "negative_tag", "guidance_scale", "reversed")}


def _drawing(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: results["config"][name] for name in ("temperature", "top_p", "top_k", "max_completion_length")}


def metric_names(entry: Mapping[str, Any]) -> list[str]:
    """The metrics of a system, without the keys of standard errors and intervals."""
    return [name for name in entry["metrics"] if not name.endswith(("_stderr", "_ci95"))]


def _task_metrics(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A task's metrics by `metric,filter`; the harness writes "N/A" where a standard error is unknown."""
    found = {"name": task, "alias": task, "sample_len": entry["n_samples"]["effective"]}
    for name in metric_names(entry):
        value, spread = entry["metrics"][name], entry["metrics"].get(f"{name}_stderr")
        if value is not None:
            known = _harness_name(name)
            found[f"{known},{FILTER}"] = value
            found[f"{known}_stderr,{FILTER}"] = "N/A" if spread is None else spread
    return found


def _harness_name(metric: str) -> str:
    """A metric's name without the comma that parts the metric from the filter."""
    return metric.replace(",", ";")
