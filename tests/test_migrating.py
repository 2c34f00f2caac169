"""docs/migrating.md names every published flag and every field of TRL's GRPO, and only options that we have."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from nlf import config

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text(encoding="utf-8")
PUBLISHED = """--output-dir --dataset-train --dataset-val --perspective-rate-limit --num_quantiles --n_extra_tokens
--sample-interval --kl_coef --adaptive_kl --target_kl --horizon --entropy_coef --adaptive_entropy --target_entropy
--init-model --ref-model --response-length --temperature --total-episodes --batch_size --lr --num_warmup_steps
--clip_grad --max-grad-norm --num-samples --top-p --seed --log-interval --save-interval --eval-interval
--cuda-deterministic --save_path --checkpoint_path --top_p --num_samples --test_set_path --rate_limit --no_reward_cond
--response_length --positive_experiment --test_set_path_negative --test_set_path_neutral
--test_set_path_positive""".split()


def class_fields(module: str, name: str) -> set[str]:
    """Fields that a class of an installed module declares itself, read without importing it."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign)}


def first_columns() -> str:
    return "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))


def named_options() -> set[str]:
    """Code spans of the middle columns that are an option, perhaps with a value."""
    cells = [line.split(" | ")[1] for line in PAGE.splitlines() if line.startswith("| ") and line.count(" | ") == 2]
    spans = re.findall(r"`([^`]+)`", " ".join(cells))
    return {span.split(":")[0] for span in spans} - {"nlf evaluate"}


@pytest.mark.parametrize("flag", PUBLISHED)
def test_every_published_flag_is_there(flag):
    assert re.search(rf"`[^`]*{flag}(?![\w-])", PAGE)


def test_every_field_of_grpo_is_there():
    pytest.importorskip("trl")
    # deprecated aliases of fields that are there
    aliases = {"use_transformers_paged", "vllm_importance_sampling_cap"}
    spans = re.findall(r"`([\w*]+)`", first_columns())
    known = re.compile("|".join(span.replace("*", r"\w+") for span in spans))
    missing = {f for f in class_fields("trl.trainer.grpo_config", "GRPOConfig") if not known.fullmatch(f)}
    assert missing - aliases == set()


def test_only_options_that_exist_are_named():
    classes = [*config.OPTION_GROUPS.values(), *config.COMMAND_GROUPS["evaluate"].values()]
    ours = {field.name for options in classes for field in dataclasses.fields(options)}
    theirs = class_fields("transformers.training_args", "TrainingArguments")
    assert named_options() - ours - theirs == set()
