"""Copies of a server behave as processes from the start (``warm_processes``)."""

import os
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import warm_processes

pytestmark = pytest.mark.skipif(
    not warm_processes.available(), reason="not on this system, not while lines are counted"
)
PROBE = """
import atexit, os, sys
loaded = [name for name in ("torch", "detectron2", "ovd_d2") if name in sys.modules]
print(os.getcwd(), os.environ["WORD"], sys.argv, sys.path[0], __name__, loaded, sys.stdin.read())
print("to stderr", file=sys.stderr)
atexit.register(print, "at exit")
sys.exit(3)
"""


def run(*words, **options):
    return warm_processes.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=100, **options
    )


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_a_copy_is_like_a_process_from_the_start(tmp_path, kind):
    (tmp_path / "probe.py").write_text(PROBE)
    program = {"-c": ("-c", PROBE), "-m": ("-m", "probe"), "file": ("probe.py",)}[kind]
    options = {"cwd": tmp_path, "env": {**warm_processes.AT_START, "WORD": "owl"}}
    found = run(*program, "a", "-b", **options)
    fresh = subprocess.run(
        [sys.executable, *program, "a", "-b"], capture_output=True, text=True,
        stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip
    assert (fresh.returncode, found.returncode) == (3, 3)
    # Other people's packages are there already, the project is not.
    assert found.stdout.replace("['torch', 'detectron2']", "[]") == fresh.stdout
    assert found.stderr == fresh.stderr == "to stderr\n"


def test_errors_and_signals_are_the_command_s():
    found = run("-c", "1 / 0")
    assert found.returncode == 1 and found.stderr.endswith("ZeroDivisionError: division by zero\n")
    for end, code, said in (("4", 4, ""), ("'so it ends'", 1, "so it ends\n"), ("", 0, "")):
        found = run("-c", f"raise SystemExit({end})")
        assert (found.returncode, found.stderr) == (code, said)
    found = run("-c", "import os; os.kill(os.getpid(), 9)")
    assert found.returncode == -signal.SIGKILL
    with pytest.raises(subprocess.CalledProcessError):
        run("-c", "raise SystemExit(4)", check=True)


LIVES = """
import signal, sys, time
print("here", flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    print("stopped", "x" * 100_000, file=sys.stderr)
    print("last words")
    raise SystemExit(130)
"""


@pytest.mark.parametrize("start", [warm_processes.start, subprocess.Popen])
def test_one_that_goes_on_beside_is_told_signals(start):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start([sys.executable, "-c", LIVES], **pipes)
    assert isinstance(process, warm_processes.Started) == (start is warm_processes.start)
    assert process.stdout.readline() == "here\n" and process.poll() is process.returncode is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (printed, said) == ("last words\n", f"stopped {'x' * 100_000}\n")
    assert process.returncode == process.poll() == process.wait() == 130
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start([sys.executable, "-c", LIVES], **quiet)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.kill()  # of one that has ended


def test_what_takes_too_long_is_killed(tmp_path):
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(100)"
    with pytest.raises(subprocess.TimeoutExpired):
        warm_processes.run([sys.executable, "-c", code], cwd=tmp_path, timeout=10)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_shell_has_them_too(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    path = f"{warm_processes.shims()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "echo words | python probe.py a 2>&1; echo $?"], cwd=tmp_path,
        env={**warm_processes.AT_START, "PATH": path, "WORD": "owl"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (
        f"{tmp_path} owl ['probe.py', 'a'] {tmp_path} __main__ ['torch', 'detectron2'] words"
        in done.stdout
    )
    assert done.stdout.endswith("at exit\n3\n")


def test_what_a_test_set_when_the_server_started_is_not_the_server_s(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_processes, "_server", cache(warm_processes._server.__wrapped__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path))
        place = warm_processes._server()  # starts one
    probe = "import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [f"{warm_processes.shims()}/python", "-c", probe], capture_output=True, text=True,
        env=warm_processes.AT_START,
    )  # fmt: skip
    assert done.stdout == "True\n"
    assert run("-c", probe, env=warm_processes.AT_START).stdout == "True\n"
    assert warm_processes._server() == place


@pytest.mark.parametrize(
    "words, changed",
    [
        ([sys.executable, "-c", "pass"], {"HOME": "/nowhere"}),
        ([sys.executable, "-c", "pass"], {"OMP_NUM_THREADS": "7"}),
        ([sys.executable, "-O", "x.py"], {}),
        (["/bin/ls"], {}),
    ],
)
def test_what_has_to_start_by_itself(words, changed):
    start = warm_processes.AT_START
    assert warm_processes._request(words, "/", {**start, **changed}) is None
    assert warm_processes._request([sys.executable, "x.py"], "/", start) is not None
