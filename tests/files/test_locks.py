"""One holder at a time; a second one waits as long as it was told, and is told one sentence."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import warm_processes
from filelock import FileLock

from ovd_d2.errors import OVDError
from ovd_d2.files.locks import lock

HOLD = """
import sys, time
from ovd_d2.files.locks import lock
held = lock(sys.argv[1], taken="")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds):
    process = warm_processes.start(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_one_is_told_until_the_first_lets_go(tmp_path):
    first = lock(tmp_path / "a.lock", taken="")
    with pytest.raises(OVDError, match=r"^a is being written$"):
        lock(tmp_path / "a.lock", taken="a is being written")
    lock(tmp_path / "b.lock", taken="").release()  # another one is free
    first.release()
    lock(tmp_path / "a.lock", taken="").release()


def test_a_killed_process_loses_it(tmp_path):
    process = holder(tmp_path / "a.lock", 60)
    with pytest.raises(OVDError, match="taken"):
        lock(tmp_path / "a.lock", taken="taken")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lock(tmp_path / "a.lock", taken="taken").release()


def test_it_waits_as_long_as_told(tmp_path):
    process = holder(tmp_path / "a.lock", 0.5)
    start = time.monotonic()
    with pytest.raises(OVDError, match="taken"):
        lock(tmp_path / "a.lock", taken="taken", wait=0.1)
    lock(tmp_path / "a.lock", taken="taken", wait=60).release()
    assert 0.1 <= time.monotonic() - start < 30
    process.wait()


def test_file_systems_without_locks_warn_and_others_raise(tmp_path, monkeypatch, caplog):
    def fail(code):
        def acquire(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(FileLock, "acquire", acquire)

    fail(errno.ENOLCK)
    lock(tmp_path / "a.lock", taken="").release()
    assert "start no second writer" in caplog.text
    fail(errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        lock(tmp_path / "a.lock", taken="")
