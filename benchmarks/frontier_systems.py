"""The methods that the frontier compares: the settings of each training, and the points that it gives."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

from frontier_measuring import CURVE, FILTERED, FREE
from frontier_points import (
    BASE,
    CONTRASTIVE,
    DIAL,
    DISTILLED,
    DPO,
    GRPO,
    PLAIN,
    PROMPTING,
    PUBLISHED,
    SFT,
    STEERING,
    TAGS,
    Setting,
)  # fmt: skip
from frontier_training import (
    DPO_BETA,
    GENERATIONS,
    LENGTH,
    Run,
    Shared,
    draw_samples,
    make_vector,
    train_dpo,
    train_grpo,
    train_nlf,
    train_plain,
    train_sft,
    train_student,
)  # fmt: skip

from nlf.cli.arguments import read_recipe, train_knobs
from nlf.config import StudentOptions
from nlf.config.objective import DEFAULTS
from nlf.data.files import digest

# ---- our trainings by credit: edit their settings here ---------------------------------------------------------------
CREDIT = {"credit_coef": 1.0, "contrast_coef": 0.0, "pool_keep": 1, "steps_per_iteration": 4}
PLAINS = {  # name: settings of a plain model, trained directly
    "plain": {"kl_budget": 0.1},
    "plain-far": {"kl_budget": 0.3},
}
DIALS = {  # name: settings of a model with five tags
    "dial": {"kl_budget": 0.1},
}

# ---- the texts of prompting: edit them here for another reward -------------------------------------------------------
PREFIXES = (
    "The following text is polite, friendly and respectful.",
    "An editor has removed every insult, every threat and every swear word from the text below.",
    "Thank you for your kind words. I am glad that we could talk about it so calmly. We wish you a peaceful day.",
)

# ---- the earlier recipes ----------------------------------------------------------------------------------------------
GUIDANCE = (0.0, 0.5, 1.0, 2.0)  # from the best tag
MIDDLE, MIDDLE_GUIDANCE = 2, (2.0, 4.0, 8.0, 12.0, 14.0, 16.0)  # quantile of the middle tag, guidance from it
SHORT = {  # the contrastive recipe cut to one small iteration with a high learning rate
    **{"num_train_epochs": 1, "prompts_per_iteration": 256, "steps_per_iteration": 25},
    **{"learning_rate": 1e-3, "beta": 1.0},
}
SHORT_GUIDANCE = (4.0, 8.0, 12.0, 18.0)  # from the middle tag
STUDENTS = {  # knobs of `nlf distill`
    "distilled": {},
    "distilled-best-1.5": {"tag": "best", "guidance_scale": 1.5},
    "distilled-best-2": {"tag": "best", "guidance_scale": 2.0},
    "distilled-g12": {"guidance_scale": 12.0},
    "distilled-g16": {"guidance_scale": 16.0},
    "five-tags": {"keep_tags": True},
}

# ---- what all systems share -------------------------------------------------------------------------------------------
SYSTEMS = (  # what --systems chooses among
    *("plain", "dial", "prompting", "steering", "contrastive", "short", "published", "grpo", "sft", "dpo"),
)
SAMPLES = f"samples-{GENERATIONS}"  # the training whose samples SFT, DPO and the steering vector choose from
COST_PARAMETERS = 3.2e6  # of the embedded model
COST = {  # estimated seconds of the embedded model on 2 slow cores
    **{"contrastive iteration": 35, "published iteration": 26, "distilled": 30, "five tags": 34, "short": 22},
    **{"plain iteration": 4.7, "dial iteration": 9.2},
    **{"grpo step of 64": 0.9, "sft step": 0.4, "samples": 15, "dpo step": 1.0, "completion": 1 / 250, "point": 5},
}


# ---- the trainings -------------------------------------------------------------------------------------------------


def start_settings(options: Namespace) -> list[Setting]:
    """What no training changes: the start, its best of n, and the start after a text before each prompt."""
    found = [Setting("base", BASE, BASE, "base", best_of=1)]
    found += [Setting(f"best-of-{n}", BASE, BASE, f"best of {n}", best_of=n) for n in options.best_of]
    if "prompting" in options.systems:
        found += [
            Setting(f"prefix-{digest(text)[:6]}", PROMPTING, f"prompting {i}", f"prefix {i}", quantile=0, prefix=text)
            for i, text in enumerate(PREFIXES, 1)
        ]
    return found


def runs(options: Namespace, bf16: bool = False) -> list[Run]:
    """All trainings of a seed; teachers come before their students."""
    shared = Shared(options.model, options.reward, options.dataset, options.per_device_train_batch_size, bf16)
    makers = {
        "plain": plain_runs, "dial": dial_runs, "steering": steering_runs, "contrastive": contrastive_runs,
        "short": short_runs, "published": published_runs, "grpo": grpo_runs, "sft": sft_runs, "dpo": dpo_runs,
    }  # fmt: skip
    return [run for name in SYSTEMS if name in {*options.systems} & {*makers} for run in makers[name](options, shared)]


def credit_values(knobs: dict, options: Namespace, **more) -> dict:
    """The settings of a training by credit."""
    changed = {"learning_rate": options.learning_rate} if options.learning_rate else {}
    changed |= {"num_train_epochs": options.num_train_epochs}
    return {**CREDIT, "max_completion_length": LENGTH, **knobs, **changed, **more}


def plain_runs(options: Namespace, shared: Shared) -> list[Run]:
    """Plain models, trained directly by credit, each with its stops."""
    found = []
    for name in options.plains:
        values = credit_values(PLAINS[name], options, plain="only")
        count, steps = values["num_train_epochs"], values["steps_per_iteration"]
        stops = sorted({max(1, round(share * count)) * steps for share in options.plain_stops})
        own = {"stops": stops, "values": values}
        words = f"plain, KL budget {values['kl_budget']:g}"
        settings = [
            Setting(f"{name}-step{stop}", PLAIN, words, f"{words}, step {stop}", model=f"step-{stop}")
            for stop in stops
        ]
        make, stamp = partial(train_plain, **own, shared=shared), {**own, **shared.stamp()}
        found.append(Run(name, make, settings, stamp, COST["plain iteration"] * count))
    return found


def dial_runs(options: Namespace, shared: Shared) -> list[Run]:
    """Models with tags, trained by credit: the best tag with guidance, and the other tags without."""
    found = []
    for name in options.dials:
        values = credit_values(DIALS[name], options)
        words = f"dial, KL budget {values['kl_budget']:g}"
        settings = guided(name, DIAL, options.dial_guidance, f"{words}, best tag")
        settings += [
            Setting(f"{name}-tag{tag}", DIAL, f"{words}, tags", f"{words}, tag {tag}", quantile=tag - 1)
            for tag in options.dial_tags
        ]
        seconds = COST["dial iteration"] * values["num_train_epochs"]
        make, stamp = partial(train_nlf, values=values, shared=shared), {**shared.stamp(), "values": values}
        found.append(Run(name, make, settings, stamp, seconds))
    return found


def contrastive_runs(options: Namespace, shared: Shared) -> list[Run]:
    """The contrastive recipe, its students, and the same over other numbers of iterations."""
    settings = guided("contrastive", CONTRASTIVE, GUIDANCE, "contrastive")
    settings += guided("contrastive-middle", CONTRASTIVE, MIDDLE_GUIDANCE, "contrastive, middle tag", MIDDLE)
    contrastive = recipe_run("contrastive", options.recipe, shared, {}, settings, COST["contrastive iteration"])
    students = [student_run(name, STUDENTS[name], contrastive) for name in options.students]
    return [contrastive, *students, *(run for n in options.iterations for run in of_length(n, options.recipe, shared))]


def short_runs(options: Namespace, shared: Shared) -> list[Run]:
    """The contrastive recipe cut short, and its plain student."""
    settings = guided("short-middle", CONTRASTIVE, SHORT_GUIDANCE, "contrastive, short, middle tag", MIDDLE)
    short = recipe_run("short", options.recipe, shared, SHORT, settings, COST["short"])
    return [short, student_run("distilled-short", {"guidance_scale": 12.0}, short, "distilled, short, guidance 12")]


def published_runs(options: Namespace, shared: Shared) -> list[Run]:
    """The published recipe with guidance; none where it has 0 iterations."""
    if not options.published_iterations:
        return []
    few = {"num_train_epochs": options.published_iterations}
    settings = guided("published", PUBLISHED, GUIDANCE, f"published, {iterations(options.published_iterations)}")
    return [
        recipe_run("published", options.published_recipe, shared, few, settings, COST["published iteration"]),
    ]


def of_length(n: int, recipe: str, shared: Shared) -> list[Run]:
    """The contrastive recipe over n iterations, and its plain student."""
    name, words = f"contrastive-{n}", f"contrastive, {iterations(n)}, middle tag"
    settings = guided(f"{name}-middle", CONTRASTIVE, MIDDLE_GUIDANCE, words, MIDDLE)
    teacher = recipe_run(name, recipe, shared, {"num_train_epochs": n}, settings, COST["contrastive iteration"])
    return [teacher, student_run(f"distilled-{n}", {}, teacher, f"distilled, {iterations(n)}")]


def iterations(n: int) -> str:
    return f"{n} iteration{'s' * (n != 1)}"


def student_run(name: str, knobs: dict, teacher: Run, words: str | None = None) -> Run:
    """A student of a tagged model: a plain model, or one that keeps the five tags."""
    kept = knobs.get("keep_tags", False)
    words = words or "distilled, " + (", ".join(f"{key} {value}" for key, value in knobs.items()) or "defaults")
    plain = [Setting(name, DISTILLED, DISTILLED, words.replace("_scale", ""))]
    tags = [Setting(f"tag-{i + 1}", TAGS, TAGS, f"five tags distilled, tag {i + 1}", quantile=i) for i in range(5)]
    stamp = {**teacher.stamp, "distill": asdict(StudentOptions(**knobs))}
    make = partial(train_student, teacher=teacher.name, knobs=knobs)
    return Run(name, make, tags if kept else plain, stamp, COST["five tags" if kept else "distilled"])


def guided(name: str, group: str, scales: Sequence[float], words: str, quantile: int = 0) -> list[Setting]:
    """A tagged model under one tag, guided away from its worst tag by each of these scales."""
    about = {"group": group, "series": words, "quantile": quantile}
    return [
        Setting(f"{name}-g{scale:g}", label=f"{words}, guidance {scale:g}", guidance=scale, **about)
        for scale in scales
    ]


def recipe_run(name: str, recipe: str, shared: Shared, flags: dict, settings: list[Setting], cost: float) -> Run:
    """A recipe with changed flags; `cost` is the estimated seconds of one iteration."""
    values = read_recipe(recipe, train_knobs()) | flags
    seconds = cost * (values.get("num_train_epochs") or DEFAULTS["num_train_epochs"].other)
    make = partial(train_nlf, values=values, shared=shared)
    return Run(name, make, settings, {**shared.stamp(), "recipe": values}, seconds)


def grpo_runs(options: Namespace, shared: Shared) -> list[Run]:
    """GRPO over its grid."""
    found = []
    for rate, beta, batch in product(options.grpo_learning_rates, options.grpo_betas, options.grpo_batches):
        own = {"learning_rate": rate, "beta": beta, "batch": batch, "stops": options.grpo_stops}
        seconds = COST["grpo step of 64"] * batch / 64 * max(options.grpo_stops)
        words = f"lr {rate:g}, beta {beta:g}, {batch}"
        found.append(run_with_stops("grpo", GRPO, words, train_grpo, own, seconds, shared))
    return found


def samples_run(shared: Shared) -> Run:
    """Completions of the training prompts, for the systems that choose among them."""
    make, stamp = partial(draw_samples, shared=shared), {"generations": GENERATIONS, **shared.stamp()}
    return Run(SAMPLES, make, [], stamp, COST["samples"])


def sft_runs(options: Namespace, shared: Shared) -> list[Run]:
    """Supervised training on the best of n."""
    found = []
    for rate in options.sft_learning_rates:
        own = {"learning_rate": rate, "stops": options.sft_stops}
        seconds = COST["samples"] + COST["sft step"] * max(options.sft_stops)
        train = partial(train_sft, samples=SAMPLES)
        found.append(run_with_stops("sft", SFT, f"lr {rate:g}", train, own, seconds, shared, samples_run(shared)))
    return found


def dpo_runs(options: Namespace, shared: Shared) -> list[Run]:
    """DPO on the best and the worst of n."""
    found = []
    for rate in options.dpo_learning_rates:
        own = {"learning_rate": rate, "beta": DPO_BETA, "stops": options.dpo_stops}
        seconds = COST["samples"] + COST["dpo step"] * max(options.dpo_stops)
        train, words = partial(train_dpo, samples=SAMPLES), f"lr {rate:g}, beta {DPO_BETA:g}"
        found.append(run_with_stops("dpo", DPO, words, train, own, seconds, shared, samples_run(shared)))
    return found


def run_with_stops(
    kind: str, group: str, words: str, train: Callable, own: dict, seconds: float, shared: Shared,
    before: Run | None = None,
) -> Run:  # fmt: skip
    name = f"{kind}-{words}".replace(", ", "-").replace(" ", "")
    series = f"{group}, {words}"
    settings = [
        Setting(f"{name}-step{stop}", group, series, f"{words}, step {stop}", model=f"step-{stop}")
        for stop in own["stops"]
    ]
    make = partial(train, **own, shared=shared)
    return Run(name, make, settings, {**own, **shared.stamp()}, seconds, before)


def steering_runs(options: Namespace, shared: Shared) -> list[Run]:
    """A steering vector at several strengths."""
    settings = [
        Setting(f"steering-{strength:g}", STEERING, STEERING, f"strength {strength:g}", strength=strength)
        for strength in options.steering_strengths
    ]
    make = partial(make_vector, samples=SAMPLES, shared=shared)
    return [Run("steering", make, settings, shared.stamp(), COST["samples"], samples_run(shared))]


def measuring_seconds(setting: Setting, options: Namespace) -> float:
    """Estimate the seconds of measuring a point; the samples of best of n and of its curve are drawn once."""
    drawn = setting.cost * (FILTERED.num_generations + FREE.num_generations)
    if setting.best_of:
        pool = max([1, *options.best_of]) * FILTERED.num_generations + CURVE.num_generations
        drawn = pool if setting.id == "base" else 0
    return COST["point"] + options.num_prompts * drawn * COST["completion"]
