"""The text of a report: the sentences at its top, its tables of metrics, and the settings and versions at its end."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nlf.evaluation.headlines import Headlines, merged
from nlf.evaluation.metrics import describe, higher_is_better
from nlf.evaluation.unscored import of_systems
from nlf.report.reading import Run
from nlf.report.results import (
    SCORED,
    System,
    aligned,
    base_of,
    featured,
    main_metric,
    others,
    plain_models,
    plain_name,
    source_of,
    tags_reversed,
)
from nlf.report.wording import clip, count, family, is_number, number, p_value, title
from nlf.secrets import is_secret

HEADLINE = (
    *("toxicity_probability", "expected_max_toxicity", "toxicity", "positive_fraction", "positive"),
    *("reward", "unscored_fraction", "perplexity", "dist-2"),
)
SWEEP = (
    *("toxicity_probability", "toxicity", "positive_fraction", "positive", "reward", "unscored_fraction"),
    *("perplexity", "dist-2"),
)
SHAPE = (
    *("completion_length", "ended_fraction", "dist-1", "dist-2", "dist-3", "corpus_dist-2", "self_bleu"),
    "repetition",
)
TRAINING = (
    *("model_name_or_path", "model_revision", "ref_model_name_or_path", "use_peft", "dataset_name", "eval_dataset"),
    *("reward_funcs", "reward_weights", "tags", "tag_template", "num_train_epochs", "prompts_per_iteration"),
    *("num_generations", "max_completion_length", "temperature", "top_p", "top_k", "steps_per_iteration", "seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "nll_coef", "contrast_coef"),
    *("credit_coef", "beta", "kl_budget", "entropy_coef", "kl_direction", "quantile_scope", "quantile_weights"),
)


@dataclass(frozen=True)
class Column:
    name: str
    title: str
    better: str  # "lower is better", "higher is better", or empty
    about: str  # definition of the metric


@dataclass(frozen=True)
class Cell:
    """A value with its interval, and its difference from the base."""

    value: str
    interval: str = ""
    difference: "Cell | None" = None
    p_value: str = ""  # of the difference
    verdict: str = ""  # better, worse, or empty


@dataclass(frozen=True)
class Row:
    """A system."""

    run: str
    name: str
    tag: str | None  # where the name does not say it
    samples: str  # prompts × completions
    prompts: str  # which prompts the row is about
    base: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[Row]

    @property
    def several(self) -> bool:
        """Whether the rows come from more than one run."""
        return len({row.run for row in self.rows}) > 1

    @property
    def mixed(self) -> bool:
        """Whether the rows are about different numbers of prompts."""
        return len({row.prompts for row in self.rows}) > 1

    @property
    def compared(self) -> bool:
        """Whether any row has differences from a base."""
        return any(cell.p_value for row in self.rows for cell in row.cells)


def prefers_higher(run: Run, name: str, systems: Sequence[System]) -> bool | None:
    """Whether a higher value of a metric is better for these systems; None = neither higher nor lower is better.

    The results decide, else this version of nlf. Reversed tags swap better and worse for the metrics aimed at.
    """
    said = run.results["higher_is_better"].get(name) if run.results else None
    higher = said if isinstance(said, bool) else higher_is_better(name)
    return not higher if higher is not None and family(name) in SCORED and tags_reversed(systems) else higher


def headline(runs: Sequence[Run], source: str) -> Table:
    """The main metrics of the plain models, the base and the aligned systems of every run, on one prompt source."""
    return _table(runs, source, _headline_families(runs, source), main_systems)


def sweep(run: Run, source: str) -> Table | None:
    """The policy under every tag, and the base; None if the policy was sampled under one tag only."""
    found = others(run.on(source))
    if not found:
        return None
    families = [name for name in _headline_families([run], source) if name in SWEEP]
    return _table([run], source, families, lambda systems: [*start_of(systems), *aligned(systems)[:1], *found])


def shape(run: Run, source: str) -> Table:
    """Length and diversity of every system."""
    return _table([run], source, SHAPE, plain_first)


def everything(run: Run, source: str) -> Table:
    """Every metric of every system."""
    return _table([run], source, None, plain_first)


def main_systems(systems: Sequence[System]) -> list[System]:
    """The plain models, the base, the main tag, and the main tag with guidance."""
    return [*plain_models(systems), *start_of(systems), *aligned(systems)]


def plain_first(systems: Sequence[System]) -> list[System]:
    """All systems; the plain models come first."""
    plain = plain_models(systems)
    return plain + [system for system in systems if system not in plain]


def start_of(systems: Sequence[System]) -> list[System]:
    """The base in a list; an empty list if there is none."""
    return [*filter(None, [base_of(systems)])]


def _headline_families(runs: Sequence[Run], source: str) -> list[str]:
    """The families of `HEADLINE`; the reward only if it is the main metric of one of the runs."""
    names = [main_metric(run.on(source), run.headlines) for run in runs if source in run.sources]
    rewards = any(name is None or family(name) == "reward" for name in names)
    return [each for each in HEADLINE if each != "reward" or rewards]


def _table(
    runs: Sequence[Run], source: str, families: Sequence[str] | None, choose: Callable[[list[System]], list[System]]
) -> Table:
    """Make the table of the systems that `choose` picks on a source; `families` None takes every metric."""
    chosen = [(run, system) for run in runs for system in choose(run.on(source))]
    scorers = merged([run.headlines for run in runs])
    names = _names((s["metrics"] for _, s in chosen), families, scorers)
    columns = [_column(runs[0], name, [s for _, s in chosen], scorers) for name in names]
    return Table(columns, [_row(run, system, columns) for run, system in chosen])


def _names(metrics: Iterable[dict[str, Any]], families: Sequence[str] | None, scorers: Headlines) -> list[str]:
    """The metrics with at least one number, in the order of `families`, or of their first appearance; in a family, and
    without families in all, the metrics by an auditor come first.
    """
    numbers = dict.fromkeys(name for each in metrics for name, value in each.items() if is_number(value))
    names = [name for name in numbers if not name.endswith("_stderr")]
    if families is None:
        return sorted(names, key=lambda n: scorers.order(n) > 0)
    shown = (n for n in names if family(n) in families)
    return sorted(shown, key=lambda n: (families.index(family(n)), scorers.order(n)))


def _column(run: Run, name: str, systems: Sequence[System], scorers: Headlines) -> Column:
    better = {True: "higher is better", False: "lower is better", None: ""}[prefers_higher(run, name, systems)]
    return Column(name, title(name, scorers), better, describe(name))


def _row(run: Run, system: System, columns: Sequence[Column]) -> Row:
    differences = run.difference(system)
    cells = [_cell(run, system, differences.get(column.name), column.name) for column in columns]
    tag = system["tag"] if system["tag"] and system["tag"] not in system["name"] else None
    return Row(
        run.name, clip(system["name"], 120), tag and clip(tag, 120), _size(system), prompts_of(system),
        system["model"] == "base", cells,
    )  # fmt: skip


def _size(system: System) -> str:
    """Prompts × completions of a prompt."""
    prompts = (system["n_samples"] or {}).get("effective")
    each = system["num_generations"]
    return f"{prompts:,} × {each}" if is_number(prompts) and is_number(each) else "–"


def prompts_of(system: System) -> str:
    """`100 prompts`, or `first 40 of 100 prompts`."""
    sizes = system["n_samples"] or {}
    original, effective = sizes.get("original"), sizes.get("effective")
    if not is_number(effective):
        return "an unknown number of prompts"
    return (
        count(effective, "prompt")
        if original == effective or not is_number(original)
        else f"first {effective:,} of {original:,} prompts"
    )


def _cell(run: Run, system: System, difference: Any, name: str) -> Cell:
    metrics = system["metrics"]
    value, interval = number(metrics.get(name), name), _interval(metrics.get(f"{name}_ci95"), name)
    if not isinstance(difference, dict) or not is_number(difference.get("difference")):
        return Cell(value, interval, Cell("–"))
    against = Cell(number(difference["difference"], name, sign=True), _interval(difference.get("ci95"), name))
    verdict = _verdict(difference, prefers_higher(run, name, [system]))
    return Cell(value, interval, against, p_value(difference.get("p_value")), verdict)


def bounds(interval: Any) -> tuple[float, float] | None:
    """The ends of an interval; None if it is broken or missing."""
    whole = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
    return (interval[0], interval[1]) if whole else None


def _interval(interval: Any, name: str) -> str:
    ends = bounds(interval)
    return f"[{number(ends[0], name)}, {number(ends[1], name)}]" if ends else ""


def _verdict(difference: dict[str, Any], higher: bool | None) -> str:
    """`better` or `worse` if the interval leaves out 0, else empty."""
    ends = bounds(difference.get("ci95"))
    if higher is None or ends is None or ends[0] <= 0 <= ends[1]:
        return ""
    return "better" if (ends[0] > 0) == higher else "worse"


# ---- sentences ----------------------------------------------------------------------------------------------------


def model_name(run: Run) -> str:
    """The model from which a run started."""
    models = run.results.get("models") if run.results else None
    found = [(models or {}).get(role) for role in ("base", "policy")] if isinstance(models or {}, dict) else []
    names = [str(each["name"]) for each in found if isinstance(each, dict) and each.get("name")]
    return names[0] if names else str(run.config.get("model_name_or_path") or run.name)


def tags_of(run: Run) -> list[str]:
    """The tags of a run, best first."""
    found = (run.results["tags"] if run.results else None) or run.config.get("tags")
    return [str(tag) for tag in found] if isinstance(found, list) else []


def headings(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The title of the page, and the sentences on training and outcome of its first run."""
    run = runs[0]
    tags = tags_of(run)
    words = f"words from “{clip(tags[0], 60)}” to “{clip(tags[-1], 60)}”" if tags else ""
    about = f"{model_name(run)}, {_aligned(run, words)}"
    if len(runs) > 1:
        about += f", compared with {count(len(runs) - 1, 'other run')}"
    outcome = filter(None, (_outcome(run, source) for source in run.sources))
    return about, [*_training(run), *outcome, *_unscored(run)]


def _aligned(run: Run, words: str) -> str:
    """What the run made of the model: `aligned by words from … to …, then distilled into a plain model`."""
    plain = {plain_name(system) for system in plain_models(run.systems)}
    into = ", then distilled into a plain model" if "the distilled model" in plain else ""
    if "the plain model" in plain:
        into += ", and directly into another" if into else ", and without words into a plain model"
    if not words:
        return "aligned into a plain model" if "the plain model" in plain else "measured"
    return f"aligned by {words}{into}" if into else f"steered by {words}"


def _unscored(run: Run) -> list[str]:
    """A sentence for each system whose scorer could not score more than 2 % of its completions."""
    lines = of_systems(run.systems, [str(label) for label in run.results["scorers"]] if run.results else [])
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def _training(run: Run) -> list[str]:
    """One sentence on the training, from the run's settings and log."""
    say = run.config.get
    sampled, logged, steps = say("num_train_epochs"), say("feedback_epochs", 0), say("steps_per_iteration")
    scorers = say("rewards") or say("reward_funcs")  # the labels have the versions
    last = max((row["step"] for row in run.log), default=None)
    if not run.config and last is None:
        return []
    parts = [f"Trained for {count(int(last), 'step')}" if last else "Trained"]
    if is_number(sampled) and is_number(logged) and is_number(steps):
        parts.append(f" ({sampled + logged:g} iterations of {steps} planned)")
    if logged:
        parts.append(" on logged feedback" + (" and" if sampled else ""))
    if isinstance(scorers, list) and (sampled or not logged):
        parts.append(f" on the reward “{' + '.join(map(str, scorers))}”")
    return ["".join(parts) + "."]


def _outcome(run: Run, source: str) -> str:
    """`On embedded, toxicity probability @25 is 0.980 for the base and 0.550 for the best tag; perplexity is …`."""
    scorers = run.headlines
    name = main_metric(run.on(source), scorers)
    systems = [system for system in featured(run.on(source)) if is_number(system["metrics"].get(name or ""))]
    if not name or not systems:
        return ""
    values = [f"{number(system['metrics'][name], name)} for {_spoken(system['name'])}" for system in systems]
    other = scorers.beside(name) if name in scorers.audited else None
    trained = [number(system["metrics"].get(other), other) for system in systems] if other else []
    beside = f"; by {scorers.suffix(other)[2:]} it is {_joined(trained)}" if other else ""
    perplexities = [number(system["metrics"].get("perplexity"), "perplexity") for system in systems]
    floor = f" (noise floor {number(scorers.floor(name), name)})" if scorers.floor(name) else ""
    rest = f"; perplexity is {_joined(perplexities)}" if any(p != "–" for p in perplexities) else ""
    return f"On {source} ({_size(systems[0])} completions), {title(name, scorers)} is {_joined(values)}{floor}{beside}{rest}."


def _spoken(name: str) -> str:
    """`the best tag with guidance 1`."""
    if name in ("distilled", "plain"):
        return f"the {name} model"
    return ("the " if name.startswith(("base", "best tag")) else "") + name.replace(", guidance", " with guidance")


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# ---- facts --------------------------------------------------------------------------------------------------------


def facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lists of names and values by title: versions, models, seeds, sample counts and the main training settings."""
    results: Any = run.results or {}
    about = {"nlf": results.get("nlf_version"), "commit": results.get("git_hash"), "date": results.get("date")}
    about |= {"task": results.get("task"), "scorers": results.get("scorers")}
    groups = [
        ("Evaluation", about),
        ("Models", _models(results.get("models"))),
        ("Versions", results.get("versions")),
        ("Seeds", results.get("seeds")),
        ("Samples", _counts(run)),
        ("Training", {name: run.config[name] for name in TRAINING if name in run.config}),
    ]
    return [(name, _pairs(group)) for name, group in groups if isinstance(group, dict) and _pairs(group)]


def configs(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """All settings of the evaluation and of the training, by title."""
    evaluation = run.results.get("config") if run.results else None
    groups = [("Settings of the evaluation", evaluation), ("Settings of the training", run.config)]
    return [(name, _pairs(group)) for name, group in groups if isinstance(group, dict) and group]


def _models(models: Any) -> dict[str, str]:
    found = models.items() if isinstance(models, dict) else ()
    return {
        role: f"{m.get('name')} at {m.get('revision') or 'no revision'}" for role, m in found if isinstance(m, dict)
    }


def _counts(run: Run) -> dict[str, str]:
    """Counts of unusual completions by system: unscored, empty, over a perplexity limit."""
    found = {}
    for system in run.systems:
        counts = system["counts"] or {}
        rest = [f"{name}: {n}" for name, n in counts.items() if name not in ("prompts", "completions") and n]
        if rest:
            found[f"{system['name']} ({source_of(system)})"] = ", ".join(rest)
    return found


def _pairs(group: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), _shown(str(name), value)) for name, value in group.items() if value is not None]


def _shown(name: str, value: Any) -> str:
    if value and is_secret(name):
        return "(kept private)"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
