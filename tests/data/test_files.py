"""Atomic writes: permissions, links, temporary files, files of other programs, and what to do about each error."""

import errno
import os
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from nlf.data.files import refuse_other, refuse_others, replacing, unwritable, write_folder, write_text, writing
from nlf.errors import UserError


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666, 0o755])
def test_a_replaced_file_keeps_its_permissions_from_the_first_byte_on(tmp_path, permissions):
    path = tmp_path / "secret.jsonl"
    path.write_text("old")
    path.chmod(permissions)
    with replacing(path) as file:
        assert mode(next(tmp_path.glob(".*.tmp"))) == permissions
        file.write(b"new")
    assert path.read_text() == "new" and mode(path) == permissions


def test_a_new_file_follows_the_umask(tmp_path):
    os.umask(0o027)
    write_text(tmp_path / "new", "text")
    assert mode(tmp_path / "new") == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there/file").read_text() == "new"


def test_a_temporary_file_that_another_file_is_written_through_stays(tmp_path):
    others = [".a.csv.b.123.tmp", ".a.csv.mine.tmp", ".b.123.tmp"]
    for name in [*others, ".a.csv.99.tmp"]:
        (tmp_path / name).touch()
    write_text(tmp_path / "a.csv", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "a.csv"])


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, wanted: False)
    with pytest.raises(UserError, match="cannot write .*mine: Permission denied; make it writable, or choose another"):
        write_text(tmp_path / "mine", "new")
    assert (tmp_path / "mine").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_weights_can_be_read_by_others_and_replaced_ones_keep_their_permissions(tmp_path):
    """safetensors writes files that only their owner can read."""

    def save(folder):
        folder.mkdir()
        for name in ("model.safetensors", "private.safetensors"):
            save_file({"a": torch.zeros(1)}, folder / name)

    (tmp_path / "private.safetensors").touch()
    (tmp_path / "private.safetensors").chmod(0o600)
    write_folder(tmp_path, save)
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
        "model.safetensors": 0o644,
        "private.safetensors": 0o600,
    }


ERRORS = {  # what was raised, what is said
    "a full disk": (OSError(errno.ENOSPC, "x"), "No space left on device; free some space and run again"),
    "a quota": (OSError(errno.EDQUOT, "x"), "Disk quota exceeded; free some space"),
    "a missing folder": (OSError(errno.ENOENT, "x"), "No such file or directory; its folder was removed meanwhile"),
    "a long name": (OSError(errno.ENAMETOOLONG, "x"), "File name too long; choose a shorter name"),
    "read-only": (OSError(errno.EROFS, "x"), "Read-only file system; make it writable, or choose another place"),
    "safetensors": (SafetensorError("I/O error: No space (os error 28)"), "No space left on device; free some space"),
    "torch, half-way": (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "free some"),
    "torch, read-only": (
        RuntimeError("[enforce fail at inline_container.cc:747] . open file failed with strerror: Read-only file system"),
        "Read-only file system; make it writable",
    ),
    "torch, old form": (RuntimeError("write(): fd 3 failed with No space left on device"), "free some space"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_advice_fits_the_reason_whoever_writes(tmp_path, name):
    error, said = ERRORS[name]
    with pytest.raises(UserError) as found, writing(tmp_path / "file"):
        raise error
    assert str(found.value).startswith(f"cannot write {tmp_path}/file: ") and said in str(found.value)


def test_an_error_of_a_model_is_no_error_of_writing(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA out of memory"), writing(tmp_path):
        raise RuntimeError("CUDA out of memory")


def test_an_unknown_reason_is_told_as_it_is(tmp_path):
    assert "cannot write x: Input/output error; choose another place" in str(unwritable("x", OSError(errno.EIO, "y")))


@pytest.mark.parametrize("form", ["file", "folder", "link to nothing"])
def test_a_file_of_another_program_is_in_the_way(tmp_path, form):
    path = tmp_path / "README.md"
    if form == "file":
        path.write_text("mine")
    elif form == "folder":
        (path / "deep").mkdir(parents=True)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match="README.md is there already and would be overwritten; move it away"):
        refuse_others(tmp_path, ["READ*"])
    with pytest.raises(UserError, match="README.md is there already"):
        refuse_other(path, lambda text: False)


def test_what_is_empty_has_another_name_or_is_ours_is_not_in_the_way(tmp_path):
    (tmp_path / "slurm-1.out").write_text("a log")
    (tmp_path / "README.md").touch()
    (tmp_path / "rollouts").mkdir()
    refuse_others(tmp_path, ["README.md", "rollouts"])
    refuse_others(tmp_path / "none", ["*"])
    refuse_other(tmp_path / "README.md", lambda text: False)
    refuse_other(tmp_path / "slurm-1.out", lambda text: text == "a log")
    refuse_other(tmp_path / "none", lambda text: False)
