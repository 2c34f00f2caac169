"""Uploads to the Hugging Face hub: the model and nothing else, early checks, and failures that lose nothing."""

import json

import pytest
import runs
import tiny
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig

from nlf.errors import UserError
from nlf.secrets import VARIABLES

MODEL = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "tags.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}
PUSH = {"push_to_hub": True, "hub_model_id": "me/x", "hub_token": TOKEN}


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    """No token of the person's own, and uploads in one commit."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: HfApi(endpoint=server.url))
        yield server


def train(folder, resume=None, **changes):
    trainer = runs.make(folder, **{"steps_per_iteration": 1, "eval_strategy": "no"} | PUSH | changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def no_secret_in(folder):
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_the_model_is_uploaded_at_each_checkpoint_and_at_the_end_and_nothing_else(hub, tmp_path):
    train(tmp_path / "run")
    assert [(revision, message) for revision, message, _ in hub.commits] == [
        ("main", "Training in progress, step 1"), ("main", "End of training"),
    ]  # fmt: skip
    for _, _, content in hub.commits:
        assert content.keys() == MODEL
        assert not any(TOKEN.encode() in each or str(tmp_path).encode() in each for each in content.values())
        assert not any(row["prompt"].encode() in content["README.md"] for row in tiny.PROMPTS)
    final = hub.commits[-1][2]
    assert all(final[name] == (tmp_path / "run" / name).read_bytes() for name in MODEL)
    assert b'pipeline("text-generation", model="me/x")' in final["README.md"]
    assert hub.created == [{"name": "x", "organization": "me"}] and not hub.branches
    no_secret_in(tmp_path)
    assert not list((tmp_path / "run").glob(".push*"))


def test_hub_strategy_end_uploads_once_with_the_asked_names(hub, tmp_path):
    train(tmp_path / "run", hub_strategy="end", hub_private_repo=True, hub_revision="v1", hub_model_id=None)
    assert [(revision, message) for revision, message, _ in hub.commits] == [("v1", "End of training")]
    assert hub.created == [{"name": "run", "organization": None, "visibility": "private"}] and hub.branches == ["v1"]


def test_a_merged_adapter_is_uploaded_as_a_plain_model(hub, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    trainer = runs.make(tmp_path / "run", peft_config=lora, **PUSH, hub_strategy="end", num_train_epochs=1)
    trainer.train()
    assert hub.commits[-1][2].keys() == MODEL and (tmp_path / "run" / "adapter").is_dir()


def test_a_run_and_its_plain_model_go_to_a_repository_each_with_a_card_that_the_hub_reads(hub, tmp_path):
    """The start is a model of the hub, whose licence the hub's own card of it says."""
    trainer = runs.make(
        tmp_path / "run", **PUSH, hub_strategy="end", plain="true", credit_coef=1.0, contrast_coef=None,
        num_train_epochs=1, steps_per_iteration=1, eval_strategy="epoch", name_or_path="someone/start",
    )  # fmt: skip
    trainer.train()
    assert [each["name"] for each in hub.created] == ["x", "x-plain"]
    (_, _, tagged), (_, _, plain) = hub.commits
    assert tagged.keys() == MODEL and plain.keys() == MODEL - {"tags.json"}
    for name, content in (("run", tagged), ("run/plain", plain)):
        card = ModelCard(content["README.md"].decode()).data
        assert (card.base_model, card.license, card.model_name) == ("someone/start", "mit", name)
        assert any(result.metric_type == "reward" for result in card.eval_results)
    assert b'model="me/x-plain"' in plain["README.md"]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_uploaded(tmp_path, strategy):
    with pytest.raises(UserError, match=f"hub_strategy {strategy}: .*hold your prompts; expected end, or every_save"):
        runs.settings(tmp_path, **PUSH, hub_strategy=strategy)


def test_no_token_or_a_malformed_name_is_said_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match="push_to_hub needs a token that may write"):
        runs.settings(tmp_path, **PUSH | {"hub_token": None})
    with pytest.raises(UserError, match="hub_model_id 'a/b/c': expected NAME or OWNER/NAME") as caught:
        runs.settings(tmp_path, **PUSH | {"hub_model_id": "a/b/c"})
    assert "\n" not in str(caught.value)


def unsampled(folder, **changes):
    """The error of a run that stops before it samples."""
    with pytest.raises(UserError, match="push_to_hub: cannot write to me/x on the hub: ") as caught:
        train(folder, **changes)
    assert not (folder / "rollouts").exists()
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_hub_that_cannot_be_written_is_said_before_sampling(hub, tmp_path, monkeypatch):
    assert "Invalid token Bearer [key]" in unsampled(tmp_path / "a", hub_token="hf_wrong")
    hub.writable = False
    assert "403" in unsampled(tmp_path / "b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline" in unsampled(tmp_path / "c").lower()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    assert "refused" in unsampled(tmp_path / "d")
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: HfApi(endpoint="http://127.0.0.1:99999"))
    unsampled(tmp_path / "e")


def test_a_failed_upload_loses_nothing_and_is_made_by_a_resume(hub, tmp_path, caplog):
    run = tmp_path / "run"
    hub.faults["commit"] = 403
    with pytest.raises(
        UserError, match=rf"upload to me/x on the hub failed: .*the model is safe in {run}: .*resume"
    ) as e:
        train(run)
    assert TOKEN[-4:] not in str(e.value) + caplog.text and "\n" not in str(e.value)
    warned = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(warned) == 1 and (run / "model.safetensors").is_file() and not list(run.glob(".push*"))
    hub.faults.clear()
    train(run, resume=True)
    assert [message for _, message, _ in hub.commits] == ["End of training"]
    assert hub.commits[0][2]["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_a_run_that_is_refused_creates_no_repository(hub, tmp_path):
    train(tmp_path / "run", push_to_hub=False)
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "run")
    assert not hub.created


def test_push_to_hub_of_a_run_that_did_not_ask_for_it(hub, tmp_path):
    trainer = train(tmp_path / "run", push_to_hub=False, num_train_epochs=1)
    trainer.push_to_hub("by hand", token=TOKEN)
    assert [message for _, message, _ in hub.commits] == ["by hand"] and hub.commits[0][2].keys() == MODEL


def test_only_the_first_process_uploads(hub, tmp_path, monkeypatch):
    trainer = runs.make(tmp_path / "run", **PUSH)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.push_to_hub()
    trainer.push_checkpoint()
    assert not hub.created and not hub.commits


def test_the_token_is_in_no_text_of_the_settings(tmp_path):
    args = runs.settings(tmp_path, **PUSH)
    assert TOKEN not in repr(args) + str(args) + json.dumps(args.to_dict(), default=str)
