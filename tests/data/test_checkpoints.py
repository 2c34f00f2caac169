"""A checkpoint is whole if its marker lists files that are all there and unchanged. No model is trained here."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nlf.data.checkpoints import (
    MARKER,
    NotWhole,
    check_files,
    clear_checkpoint,
    loop_state,
    mark_complete,
    numbered,
    remove_old,
)


def checkpoint(run_dir, step=3, *, marked=True):
    """A folder with files as Trainer writes them."""
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(5.0)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if marked:
        mark_complete(folder, {"step": step})
    return folder


def without_list(folder):
    """The marker as earlier versions wrote it."""
    (folder / MARKER).write_text(json.dumps({"step": int(folder.name.split("-")[1]), "world_size": 1}))


def check(folder) -> None:
    check_files(folder, loop_state(folder))


@pytest.mark.parametrize("listed", [True, False])
def test_a_checkpoint_is_whole_as_it_was_written(tmp_path, listed):
    folder = checkpoint(tmp_path)
    if not listed:
        without_list(folder)
    check(folder)
    (folder / "notes.txt").write_text("files that the user adds do not matter")
    check(folder)


def test_files_in_folders_and_hidden_files_are_listed(tmp_path):
    """FSDP writes the shards of all ranks into a folder, with a hidden file that describes them."""
    folder = checkpoint(tmp_path, marked=False)
    (folder / "optimizer_0").mkdir()
    (folder / "optimizer_0" / ".metadata").write_bytes(b"shards")
    mark_complete(folder, {"step": 3})
    assert "optimizer_0/.metadata" in loop_state(folder)["files"] and MARKER not in loop_state(folder)["files"]
    (folder / "optimizer_0" / ".metadata").unlink()
    with pytest.raises(NotWhole, match=r"optimizer_0/.metadata is missing"):
        check(folder)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_missing_file_is_never_replaced_by_a_new_start_of_it(tmp_path, name, listed):
    folder = checkpoint(tmp_path)
    if not listed:
        without_list(folder)
    (folder / name).unlink()
    with pytest.raises(NotWhole, match=r"it holds no (weights|optimizer|learning rate schedule|random state)"):
        check(folder)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("left", [0, -1])
def test_a_truncated_file_is_named(tmp_path, name, listed, left):
    folder = checkpoint(tmp_path)
    if not listed:
        without_list(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:left])
    with pytest.raises(NotWhole, match=rf"{name} (is torn|has [\d,]+ bytes, expected|is not that of step 3)"):
        check(folder)


def test_a_torn_page_within_a_file_is_found(tmp_path):
    """After a power failure, a file may have its size and zeros in the middle."""
    folder = checkpoint(tmp_path)
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[300:364] = bytes(64)
    (folder / "optimizer.pt").write_bytes(content)
    with pytest.raises(NotWhole, match="optimizer.pt has changed since it was written"):
        check(folder)


@pytest.mark.parametrize("content", [b"", b'{"step": 3', b"[1]", b'{"files": {}}', b"\xff\xfe", b'{"step": 4}'])
def test_a_torn_marker_is_no_traceback(tmp_path, content):
    folder = checkpoint(tmp_path)
    (folder / MARKER).write_bytes(content)
    with pytest.raises(NotWhole, match=r"its nlf.json (cannot be read|is not that of a checkpoint|is that of step 4)"):
        loop_state(folder)


def test_a_missing_shard_of_an_older_checkpoint_is_named(tmp_path):
    folder = checkpoint(tmp_path)
    without_list(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(NotWhole, match="model-00002-of-00002.safetensors is missing"):
        check(folder)


def steps(run_dir) -> list[int]:
    return [step for step, _ in numbered(run_dir)]


def test_a_torn_later_checkpoint_does_not_push_out_the_only_whole_one(tmp_path):
    for step in (1, 2, 3, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-9" / MARKER).unlink()
    remove_old(tmp_path, 3, 1, None)
    assert steps(tmp_path) == [9, 3]


def test_the_best_checkpoint_and_the_newest_ones_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    remove_old(tmp_path, 4, None, None)
    assert steps(tmp_path) == [4, 3, 2, 1]
    remove_old(tmp_path, 4, 3, tmp_path / "checkpoint-1")
    assert steps(tmp_path) == [4, 3, 1]
    remove_old(tmp_path, 4, 1, tmp_path / "checkpoint-1")
    assert steps(tmp_path) == [4, 1]


def test_files_and_other_folders_are_no_checkpoints(tmp_path):
    checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-7").write_text("a file")
    (tmp_path / "checkpoint-x").mkdir()
    assert steps(tmp_path) == [2]
    clear_checkpoint(tmp_path / "checkpoint-2")
    assert steps(tmp_path) == []


def test_a_folder_in_the_place_of_a_marker_is_cleared(tmp_path):
    folder = checkpoint(tmp_path, marked=False)
    (folder / MARKER).mkdir()
    with pytest.raises(NotWhole, match=f"its {MARKER} cannot be read"):
        check(folder)
    clear_checkpoint(folder)
    assert not folder.exists()


def test_a_linked_checkpoint_is_cleared_without_its_target(tmp_path):
    """Old files of the target would otherwise stay, and mix with new ones."""
    kept = checkpoint(tmp_path / "elsewhere")
    link = tmp_path / "checkpoint-3"
    link.symlink_to(kept)
    clear_checkpoint(link)
    assert not link.is_symlink()
    check(kept)
