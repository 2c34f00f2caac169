"""Credit with LoRA: an adapter with tags, then one of the plain model, from the same weights; kills and resume in both."""

import pytest
from peft import LoraConfig
from runs import fork, lines, make, on_call, same, weights
from test_credit_of import counted

from nlf.training.trainer import ALTTrainer


def start(folder) -> ALTTrainer:
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return make(
        folder, reward=counted, peft_config=adapter, plain="true", credit_coef=1.0, contrast_coef=0.0,
        eval_strategy="no", save_strategy="steps", save_steps=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    start(folder).train()
    return folder


def test_both_stages_train_an_adapter_of_their_own(whole):
    for folder in (whole, whole / "plain"):
        assert (folder / "adapter/adapter_model.safetensors").is_file() and (folder / "model.safetensors").is_file()
        assert (folder / "checkpoint-6/adapter_model.safetensors").is_file()
        assert {"credit", "credit/size", "kl"} <= {name for line in lines(folder) for name in line}
        assert [line["kl"] for line in lines(folder) if "kl" in line][-1] > 0
    assert (whole / "tags.json").is_file() and not (whole / "plain/tags.json").exists()
    tagged, plain = weights(whole), weights(whole / "plain")
    assert len(tagged["transformer.wte.weight"]) == len(plain["transformer.wte.weight"]) + 1  # the separator


@pytest.mark.parametrize("step", [5, 11])
def test_a_killed_run_goes_on_in_its_stage_and_ends_with_the_same_bits(whole, tmp_path, step):
    def run():
        on_call(ALTTrainer, "compute_loss", step)
        start(tmp_path).train()

    process = fork.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -9 and (tmp_path / "plain/rollouts").exists() == (step > 6)
    start(tmp_path).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(whole)) and same(weights(tmp_path / "plain"), weights(whole / "plain"))
