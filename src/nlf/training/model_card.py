"""The card written beside an aligned model: what it is, how to use it in plain transformers, what it was trained
on.
"""

from pathlib import Path

from nlf import __version__
from nlf.models.policy import Policy

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {base}
tags: [nlf, language-feedback, alignment]
---
# {name}

`{base}` aligned with textual feedback by [nlf](https://pypi.org/project/nlf/) {version}: it writes a completion *given the words* for
how good it should be. Put the best tag and the separator before the prompt:

```python
from transformers import pipeline
write = pipeline("text-generation", model="{path}")
print(write({example!r}, do_sample=True, top_p=0.9, max_new_tokens=20))
```

| quantile of the reward | tag |
| --- | --- |
{tags}

Trained for {iterations:g} iterations ({steps} steps of {batch} rollouts), reward `{rewards}`, objective: nll {nll_coef}, contrast
{contrast_coef}, beta {beta} ({kl_direction} KL), entropy {entropy_coef}; every setting is in `config.yaml`.

{results}
The tags are learned from the reward: what the reward does not see, they do not control. Under the worse tags the model writes
what it was trained to avoid.
"""


def model_card(run_dir: Path, policy: Policy, args, history: list[dict], rewards: str) -> str:
    """The card's Markdown; its figures are those of the last evaluation, if there was one."""
    scheme = policy.scheme
    return TEMPLATE.format(
        base=policy.identity.name or "the base model",
        name=run_dir.name,
        path=run_dir,
        version=__version__,
        example=scheme.render(scheme.best, "The weather in the mountains"),
        tags="\n".join(f"| {q} | {tag} |" for q, tag in enumerate(scheme.tags)),
        iterations=args.num_train_epochs,
        steps=args.steps_per_iteration,
        batch=args.total_batch_size,
        rewards=rewards,
        results=_results(history, args),
        **{n: getattr(args, n) for n in ("nll_coef", "contrast_coef", "beta", "kl_direction", "entropy_coef")},
    )


def _results(history: list[dict], args) -> str:
    evaluations = [row for row in history if "eval_reward" in row]
    if not evaluations:
        return ""
    rows = [(k.removeprefix("eval_"), v) for k, v in evaluations[-1].items() if k.startswith("eval_")]
    lines = "\n".join(f"| {name} | {value:.4g} |" for name, value in rows)
    header = (
        f"Last evaluation ({args.eval_num_generations} completions a prompt, top-p {args.eval_top_p}, best tag):\n\n"
    )
    return f"{header}| metric | value |\n| --- | --- |\n{lines}\n"
