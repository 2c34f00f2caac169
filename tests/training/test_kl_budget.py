"""A run with a budget of KL: its beta moves, and a resumed run goes on with the same controller."""

from runs import lines, make, same, weights

from nlf.data.checkpoints import clear_checkpoint

CHANGES = {"kl_budget": 0.05, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}


def test_a_resumed_run_goes_on_with_the_same_controller(tmp_path):
    make(tmp_path, **CHANGES).train()
    whole, logged = weights(tmp_path), lines(tmp_path)
    betas = [row["beta"] for row in logged if "loss" in row]
    assert len(set(betas)) > 1
    assert not any(name.startswith("budget/") for row in logged for name in row)  # only beta is logged
    for name in ("checkpoint-5", "checkpoint-6"):
        clear_checkpoint(tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    make(tmp_path, **CHANGES).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), whole)
    assert [row["beta"] for row in lines(tmp_path) if "loss" in row] == betas
