"""The model card beside an aligned model: its training, its use in plain transformers, its last figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlf import __version__
from nlf.data.files import EMBEDDED
from nlf.data.markdown import markdown_table
from nlf.models.policy import Policy
from nlf.training.config import ALTConfig

CARD = "README.md"
TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
{base_model}tags: [nlf, language-feedback, alignment]
---
# {name}

This model is `{base}`, aligned with textual feedback by `nlf` {version}. It reads a tag before the prompt: words for the quality
that its completion should have. Put the best tag and the separator before the prompt:

```python
from transformers import pipeline
write = pipeline("text-generation", model="{path}")
print(write({example!r}, do_sample=True, top_p=0.9, max_new_tokens=20))
```

{tags}

Training took {iterations:g} iterations of {steps} steps, with {batch} rollouts a step and the reward `{rewards}`. The objective's
coefficients were nll {nll_coef}, contrast {contrast_coef}, beta {beta} ({kl_direction} KL) and entropy {entropy_coef}. `config.yaml`
holds every setting.

{results}
The model learned its tags from the reward, so a tag controls only what the reward measures. After a worse tag the model
writes the kind of text that training taught it to avoid.
"""


def model_card(
    run_dir: Path,
    policy: Policy,
    args: ALTConfig,
    history: Sequence[Mapping[str, Any]],
    rewards: str,
    model: str | None = None,
) -> str:
    """Write the card's Markdown.

    Args:
        history: The logged lines of the run; the card shows the last evaluation among them.
        rewards: The labels of the rewards, joined.
        model: Folder or hub id that the card loads the model from; None = the run's folder.
    """
    scheme = policy.scheme
    assert scheme is not None  # a trained policy has tags
    base = policy.identity.name
    local = not base or base == EMBEDDED or Path(base).exists()  # a card names no folder of the machine
    return TEMPLATE.format(
        base=(Path(base).name if local else base) or "the base model",
        base_model="" if local else f"base_model: {base}\n",
        name=run_dir.name,
        path=model or run_dir,
        version=__version__,
        example=scheme.render(scheme.best, "The weather in the mountains"),
        tags=markdown_table(["quantile of the reward", "tag"], [[str(q), tag] for q, tag in enumerate(scheme.tags)]),
        iterations=args.num_train_epochs,
        steps=args.steps_per_iteration,
        batch=args.total_batch_size,
        rewards=rewards,
        results=_results(history, args),
        **{n: getattr(args, n) for n in ("nll_coef", "contrast_coef", "beta", "kl_direction", "entropy_coef")},
    )


def _results(history: Sequence[Mapping[str, Any]], args: ALTConfig) -> str:
    """The figures of the last evaluation as a table; empty if the run had no evaluation."""
    evaluations = [row for row in history if "eval_reward" in row]
    if not evaluations:
        return ""
    figures = [
        (name.removeprefix("eval_"), value) for name, value in evaluations[-1].items() if name.startswith("eval_")
    ]
    table = markdown_table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in figures])
    sampling = f"{args.eval_num_generations} completions a prompt, top-p {args.eval_top_p}, best tag"
    return f"Last evaluation ({sampling}):\n\n{table}\n"
