"""One command at a time writes a folder or a file: what the second is told, and when a lock is free again."""

import errno
import multiprocessing
import os
import re
import signal
import socket
import threading
import time

import pytest

from nlf.data import locks
from nlf.data.locks import FOLDER_LOCK, locked_files, locked_folder, refuse_while_written
from nlf.errors import UserError

fork = multiprocessing.get_context("fork")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path / "run"`, with a worker of its own."""
    ready = fork.Event()

    def hold():
        with locked_folder(tmp_path / "run"):
            fork.Process(target=time.sleep, args=(20,), daemon=True).start()
            ready.set()
            time.sleep(60)

    process = fork.Process(target=hold)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_the_second_command_is_told_at_once_who_writes_the_folder(holder, tmp_path):
    who = re.escape(f"(process {holder.pid} on {socket.gethostname()}, since 2")
    said = f"run is being written by .* {who}.*; wait until it ends, or choose another"
    with pytest.raises(UserError, match=said), locked_folder(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_free_though_its_workers_live(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / "run" / FOLDER_LOCK).is_file()
    with locked_folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / FOLDER_LOCK).exists()


def test_a_model_that_is_being_written_is_not_read(holder, tmp_path):
    with pytest.raises(UserError, match="run is being written by .*; wait until it ends, or name a checkpoint in it"):
        refuse_while_written(tmp_path / "run")
    holder.kill()
    holder.join()
    refuse_while_written(tmp_path / "run")
    with locked_folder(tmp_path / "run"):
        refuse_while_written(tmp_path / "run")  # by the command that writes it
    refuse_while_written(tmp_path / "none")


def test_ranks_other_than_the_first_hold_no_lock(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with locked_folder(tmp_path / "run"):
        pass


def test_a_holder_may_lock_again_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "run"
    with locked_folder(path), locked_folder(path), locked_files(path / "a", path / "b"):
        with locked_files(path / "a"):
            pass
        assert {each.name for each in path.iterdir()} == {FOLDER_LOCK, ".a.lock", ".b.lock"}
    assert not list(tmp_path.iterdir())


def test_a_second_thread_is_refused_too(tmp_path):
    refused = []

    def second():
        with pytest.raises(UserError, match="is being written by"), locked_folder(tmp_path):
            pass
        refused.append(True)

    with locked_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused


def test_files_have_locks_of_their_own_and_a_link_shares_that_of_its_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with locked_files(tmp_path / "link"):
        assert [each.name for each in tmp_path.glob(".*.lock")] == [".a.lock"]


def test_a_folder_that_cannot_be_written_needs_no_locks_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with locked_files(tmp_path / "a"):
        assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_named_and_works(tmp_path, monkeypatch, caplog):
    def acquire(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    with locked_folder(tmp_path):
        pass
    assert "this file system has no locks" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    said = "cannot write .*: File exists; move away what is there"
    with pytest.raises(UserError, match=said), locked_folder(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/env/bin/nlf", "train", "--hub_token", "secret"], "nlf train"),
        (["/src/nlf/__main__.py", "score", "x"], "nlf score"),
        (["my/train.py", "secret"], "python train.py"),
        (["-c"], "python -c"),
    ],
)
def test_a_lock_names_the_command_without_its_secrets(monkeypatch, argv, said):
    monkeypatch.setattr("sys.argv", argv)
    assert locks._command() == said
