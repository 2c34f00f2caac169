"""Rollouts become tensors: ids stay as sampled, positions count attended tokens, and a step knows its denominators."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import runs
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlf.data.feedback import make_feedback
from nlf.data.pool import Pool
from nlf.data.rollouts import SCHEMA
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import with_feedback
from nlf.models.encoder import PromptEncoder, group_by_length
from nlf.training.batches import Example, PoolDataset, collate


def encoder(**changes) -> PromptEncoder:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|separator|>"], special_tokens=True)
    return PromptEncoder(tokenizer, TagScheme(**changes))


def feedback_of(made: PromptEncoder, seed: int = 1):
    return make_feedback(made.scheme, ["reward"], seed=seed)


def table(completions: list[list[int]], rewards: list[float | None]) -> pa.Table:
    n = len(completions)
    columns = {
        "prompt_id": [f"p{i % 3}" for i in range(n)],
        "prompt_ids": [[10 + i % 3, 20] for i in range(n)],
        "completion_ids": completions,
        "reward": rewards,
    }
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA}, schema=SCHEMA)


def test_the_prompts_own_ids_never_change():
    made = encoder()
    ids = made.prompt_ids("the weather is warm")
    query = made.query_ids("Lowest Toxicity", ids)
    assert query[-len(ids) :] == ids
    separator = made.tokenizer.convert_tokens_to_ids("<|separator|>")
    assert query[: -len(ids)] == [*made.tokenizer("Lowest Toxicity")["input_ids"], separator]
    assert made.query_ids(None, ids) == ids


def test_any_template_with_the_two_fields_works():
    made = encoder(template="feedback: {feedback} input: {prompt} answer:", separator=None)
    query = made.query_ids("Lowest Toxicity", made.prompt_ids("hello"))
    assert made.tokenizer.decode(query) == "feedback: Lowest Toxicity input: hello answer:"


def test_bos_stays_in_front_of_the_feedback():
    made = encoder()
    made.prefix = [0]
    ids = made.prompt_ids("hello")
    assert ids[0] == 0 and made.query_ids("Lowest Toxicity", ids)[0] == 0
    assert made.query_ids("Lowest Toxicity", ids).count(0) == 1


def test_a_long_prompt_keeps_its_last_tokens():
    made = PromptEncoder(tiny.tokenizer(), TagScheme(), max_prompt_length=3)
    whole = encoder().prompt_ids("the weather is warm and the river is calm")
    assert made.prompt_ids("the weather is warm and the river is calm") == whole[-3:]


def test_feedback_joins_a_system_message():
    user = {"role": "user", "content": "hi"}
    assert with_feedback([user], "be kind") == [{"role": "system", "content": "be kind"}, user]
    both = with_feedback([{"role": "system", "content": "You are short."}, user], "be kind")
    assert both == [{"role": "system", "content": "You are short.\n\nbe kind"}, user]


def test_collate_by_hand():
    examples = [
        Example(right=[1, 2, 3], wrong=[4, 3], prompt=[3], completion=[7, 8], num_tokens=3, num_completions=2),
        Example(right=[1, 5], wrong=[4, 6, 5], prompt=[6, 5], completion=[9], num_tokens=3, num_completions=2),
    ]
    [group] = collate(examples, pad_id=0)["groups"]
    policy, reference = group["policy"], group["reference"]
    assert policy["input_ids"].tolist() == [[1, 2, 3, 7], [1, 5, 0, 0], [4, 3, 7, 0], [4, 6, 5, 0]]
    assert policy["attention_mask"].all()
    assert policy["position_ids"].tolist() == [[0, 1, 2, 3]] * 4
    assert policy["predicts"].nonzero().tolist() == [[0, 2], [0, 3], [1, 1], [2, 1], [2, 2], [3, 2]]
    assert reference["input_ids"].tolist() == [[3, 7], [6, 5]]
    assert reference["predicts"].nonzero().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert group["labels"].tolist() == [[7, 8], [9, 0]]
    assert group["completion_mask"].tolist() == [[True, True], [True, False]]
    assert (group["num_tokens"], group["num_completions"]) == (torch.tensor(3), torch.tensor(2))


def test_groups_by_hand():
    assert group_by_length([9, 1, 1, 9, 1], pass_tokens=3) == [[1, 2, 4], [0, 3]]
    assert group_by_length([9, 1, 1, 9, 1], pass_tokens=50) == [[1, 2, 4, 0, 3]]  # 24 tokens of padding are cheaper
    assert group_by_length([1, 2, 6], pass_tokens=2) == [[0, 1], [2]]
    assert group_by_length([3], pass_tokens=100) == [[0]]


def cost(lengths, groups, pass_tokens):
    return sum(max(lengths[i] for i in group) * len(group) + pass_tokens for group in groups)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200))
def test_groups_are_the_cheapest_of_all(lengths, pass_tokens):
    groups = group_by_length(lengths, pass_tokens)
    order = [i for group in groups for i in group]
    assert sorted(order) == list(range(len(lengths))) and [lengths[i] for i in order] == sorted(lengths)
    ways = itertools.product([False, True], repeat=len(lengths) - 1)  # whether to cut after each length
    for way in ways:
        cuts = [0, *(i + 1 for i, cut in enumerate(way) if cut), len(lengths)]
        other = [order[a:b] for a, b in itertools.pairwise(cuts)]
        assert cost(lengths, groups, pass_tokens) <= cost(lengths, other, pass_tokens)


def test_a_step_knows_its_tokens_and_an_item_depends_on_its_number_only():
    pool = Pool()
    pool.add(table([[1] * (1 + i % 4) for i in range(12)], [i / 12 for i in range(12)]), 0)
    quantiles = np.array([4, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0], dtype=np.int8)
    data = PoolDataset(2, 6, seed=1, contrast=True, weights=[2, 1, 1, 1, 1])
    made = encoder()
    data.refresh(pool, quantiles, feedback_of(made).words(pool, quantiles, 0), made, 0)
    items = [data[i] for i in range(len(data))]
    for step in (0, 1):
        chosen = items[step * 6 : step * 6 + 6]
        assert {e.num_tokens for e in chosen} == {sum(len(e.completion) for e in chosen)}
        assert {e.num_completions for e in chosen} == {6}
    assert data[3] == items[3] and [data[i] for i in reversed(range(12))] == items[::-1]


def test_a_middle_quantile_is_contrasted_with_either_extreme():
    pool = Pool()
    pool.add(table([[1]] * 8, [0.5] * 8), 0)
    data = PoolDataset(4, 8, seed=0, contrast=True, weights=[0, 0, 1, 0, 0])
    made = encoder()
    quantiles = np.full(8, 2, np.int8)
    data.refresh(pool, quantiles, feedback_of(made, seed=0).words(pool, quantiles, 0), made, 0)
    wrong = {made.tokenizer.decode(data[i].wrong).split("<")[0] for i in range(32)}
    assert wrong == {"Lowest Toxicity", "Maximum Toxicity"}


def test_a_prompt_over_the_context_is_named():
    with pytest.raises(UserError, match=r"prompt 2 \('the river the river.*--max_prompt_length"):
        encoder().check_fits([{"prompt": "hi"}, {"prompt": "the river " * 50}], 64, 20)


REFUSED = {
    "accelerator_config split_batches": ({"accelerator_config": {"split_batches": True}}, "are fixed"),
    "accelerator_config dispatch_batches": ({"accelerator_config": {"dispatch_batches": True}}, "its own batches"),
    "optim galore_adamw_layerwise": ({"optim": "galore_adamw_layerwise"}, "checkpoints do not hold its state"),
    "accelerator_config num_steps": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
        "set gradient_accumulation_steps",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_would_silently_train_on_other_batches_are_refused(tmp_path, name):
    changes, why = REFUSED[name]
    with pytest.raises(UserError, match=f"^{name}: not supported in training, .*{why}"):
        runs.settings(tmp_path, **changes)


def test_workers_that_would_keep_the_first_pool_for_ever_are_switched_off(tmp_path, caplog):
    """Every iteration trains on its own pool, with a worker too."""
    small = {"steps_per_iteration": 1, "eval_strategy": "no"}
    runs.make(tmp_path / "alone", **small).train()
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    runs.make(tmp_path / "worker", **small, **workers).train()
    told = "dataloader_persistent_workers: switched off, because every iteration trains on a new pool"
    assert caplog.messages.count(told) == 1
    assert runs.same(runs.weights(tmp_path / "alone"), runs.weights(tmp_path / "worker"))
