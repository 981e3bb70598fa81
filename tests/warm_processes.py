"""Python commands as processes of their own that start with other people's packages imported.

Importing torch takes seconds, the same ones for each command. A server that has imported it, but
nothing of this project, is forked for each command. So everything of the project is imported anew,
and Detectron2's own data sets are registered anew; working directory, environment, arguments,
output, exit code, signals and what runs at exit are those of a process from the start.

    done = warm_processes.run([sys.executable, "-m", "ovd_d2.cli.app", "models", "list"], ...)

:func:`run` stands for ``subprocess.run`` and :func:`start` for ``subprocess.Popen`` where a
command is ``ovd``, ``torchrun``, ``python FILE``, ``python -m MODULE`` or ``python -c CODE`` of
this environment. Whatever else there is starts as it would: other programs, other values of what
packages read when they are imported, ``make coverage``. :func:`shims` has ``ovd`` and ``python``
for a shell. Tests of the start itself use ``subprocess``.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PACKAGES = (
    "torch", "torch.utils.data", "torch.distributed", "torchvision.ops", "torchvision.transforms",
    "numpy", "scipy.optimize", "PIL.Image", "cv2", "fvcore.common.config", "fvcore.nn",
    "iopath.common.file_io", "omegaconf", "yaml", "tqdm", "pycocotools.cocoeval", "matplotlib",
    "matplotlib.figure", "safetensors.torch", "typer", "timm", "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert", "accelerate", "rich.progress", "pydantic",
    "torch.utils.cpp_extension", "lvis", "detectron2.config", "detectron2.model_zoo",
    "detectron2.engine", "detectron2.evaluation", "detectron2.modeling",
)  # fmt: skip
OURS = "ovd_d2"  # which each command imports itself
READ_AT_IMPORT = ("PYTHON", "HF_", "TRANSFORMERS_", "OMP_", "MKL_", "OPENBLAS_", "PYTORCH",
                  "TORCHDYNAMO", "CUDA", "MPLCONFIGDIR", "XDG_", "HOME", "LANG", "LC_",
                  "COVERAGE")  # fmt: skip
AT_START = dict(os.environ)  # of the tests: what a test sets is not the server's
HERE = Path(__file__).resolve()
BIN = Path(sys.executable).parent
START = """
import sys
path = sys.path[1:]
sys.path.insert(0, {folder!r})
import warm_processes
warm_processes.live(warm_processes.serve({place!r}), path)
"""
SHIM = '#!/bin/sh\nexec {python} -IS {here} {place} {program} "$@"\n'


# The server, and the processes that are its copies ------------------------------------------------


def serve(place: str) -> dict:
    """Forks a process per request on the socket ``place``; returns, in that process, the request.

    The server ends when its stdin is closed, thus with the process that started it.
    """
    import gc
    import importlib

    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:  # an optional one
            continue
    _make_transformers_tables()
    assert OURS not in sys.modules
    assert len(os.listdir("/proc/self/task")) == 1, "a copy of a process with threads hangs"
    gc.collect()
    gc.freeze()  # else the first collection of each copy writes into all of its memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(Path(place).parent)
            sys.exit()
        while _reap():
            pass
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _watch(connection)
        connection.close()


def _make_transformers_tables() -> None:
    """A thousand patterns of names of weights, which transformers compiles for its first model."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return
    get_checkpoint_conversion_mapping("bert")


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _watch(connection: socket.socket) -> dict:
    """Forks the command, reports its end, and kills it when nobody listens any more."""
    size, files, _, _ = socket.recv_fds(connection, 16, 3)
    request = connection.makefile("rb").read(int(size))
    child = os.fork()
    if child == 0:
        connection.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        return json.loads(request)
    connection.sendall(f"{child:16}".encode())
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended in ready:
        connection.sendall(f"{code:16}".encode())
    os._exit(0)


def live(request: dict, path: list[str]) -> None:
    """:func:`become`, and the end as the interpreter's, but that what is left is not destroyed one
    by one: that would copy all of the server's memory."""
    import atexit
    import threading

    code = 1
    try:
        become(request, path)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except Exception:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


def become(request: dict, path: list[str]) -> None:
    """Runs the command of ``request`` in this process as the interpreter would have from the start.

    Args:
        request: see :func:`_request`.
        path: the server's ``sys.path`` without the folder of its script.
    """
    import runpy

    kind, what, words = request["program"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.modules["matplotlib"].rcParams["backend"] = os.environ.get("MPLBACKEND", "agg")
    _register_anew()
    main = sys.modules["__main__"]
    for name in [name for name in vars(main) if name[:2] != "__"]:
        del vars(main)[name]
    script = {"-m": os.getcwd(), "-c": "", "file": str(Path(what).resolve().parent)}[kind]
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [script, *filter(None, places), *path]
    sys.argv[:] = ["-c" if kind == "-c" else what, *words]
    if kind == "-m":
        runpy._run_module_as_main(what)
        return
    if kind == "file":
        main.__file__ = what
        what = Path(what).read_text(encoding="utf-8")
    exec(compile(what, getattr(main, "__file__", "<string>"), "exec"), vars(main))


def _register_anew() -> None:
    """Detectron2's data sets, whose folder it takes from the environment when it is imported."""
    import importlib

    builtin = sys.modules.get("detectron2.data.datasets.builtin")
    if builtin is not None:
        sys.modules["detectron2.data"].DatasetCatalog.clear()
        sys.modules["detectron2.data"].MetadataCatalog.clear()
        importlib.reload(builtin)


# Those who ask ------------------------------------------------------------------------------------


class Process:
    """A copy of the server at ``place``, with a part of the interface of ``subprocess.Popen``."""

    def __init__(self, place: str, request: dict, files: list[int]):
        text = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(place)
        socket.send_fds(self._connection, [f"{len(text):16}".encode()], files)
        self._connection.sendall(text)
        self.pid = self._number()
        self.returncode = None

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or minus the signal that ended it; None if it runs ``timeout`` seconds."""
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = self._number()
            self.close()
        return self.returncode

    def _number(self) -> int:
        return int(self._connection.recv(16, socket.MSG_WAITALL))

    def close(self) -> None:
        """Ends the process if it runs still."""
        self._connection.close()

    def send_signal(self, number: int) -> None:
        if Process.wait(self, 0) is None:
            os.kill(self.pid, number)


class Started(Process):
    """A process that goes on beside this one, with the interface of ``subprocess.Popen``."""

    def __init__(self, words: list, place: str, request: dict, stdout, stderr, text: bool):
        self.args = words
        self.stdout = self._errors = None
        if stdout == subprocess.PIPE:
            reading, writing = os.pipe()
            self.stdout = os.fdopen(reading, "r" if text else "rb")
            stdout = os.fdopen(writing, "wb")
        if stderr == subprocess.PIPE:  # a file never fills up, whoever reads what first
            stderr = self._errors = tempfile.TemporaryFile("w+" if text else "w+b")  # noqa: SIM115
        with open(os.devnull, "r+b") as nothing:
            places = {None: None, subprocess.DEVNULL: nothing.fileno()}
            files = [places[f] if f in places else f.fileno() for f in (stdout, stderr)]
            out, err = (k if file is None else file for k, file in enumerate(files, 1))
            super().__init__(place, request, [nothing.fileno(), out, err])
        if self.stdout:
            stdout.close()

    def poll(self) -> int | None:
        return super().wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if super().wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple:
        """What it printed, when it has ended."""
        printed = self.stdout.read() if self.stdout else None
        self.wait(timeout)
        if self._errors:
            self._errors.seek(0)
        return printed, self._errors.read() if self._errors else None


def start(words: list, *, cwd=None, env=None, stdout=None, stderr=None, text=False):
    """``subprocess.Popen(words, ...)``, by a copy of the server where that can be; nothing on
    stdin, and ``stderr`` of a PIPE is for ``communicate`` alone."""
    words = [str(word) for word in words]
    environment = dict(os.environ if env is None else env)
    request = _request(words, str(cwd or os.getcwd()), environment)
    if request is None:
        return subprocess.Popen(
            words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, text=text,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    environment.setdefault("PYTHON_EXEC", f"{shims()}/python")  # what torchrun starts
    return Started(words, _server(), request, stdout, stderr, text)


def run(
    words: list, *, cwd=None, env=None, timeout=None, capture_output=False, text=False, check=False
) -> subprocess.CompletedProcess:
    """``subprocess.run(words, ...)``, by a copy of the server where that can be; nothing on stdin.

    Raises:
        subprocess.TimeoutExpired: it ran longer than ``timeout`` seconds; it has been killed.
        subprocess.CalledProcessError: with ``check``, when the exit code is not 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = {"stdout": out, "stderr": err} if capture_output else {}
        process = start(words, cwd=cwd, env=env, **files)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        printed = []
        for file in files.values():
            file.seek(0)
            content = file.read()
            printed.append(content.decode().replace("\r\n", "\n") if text else content)
    done = subprocess.CompletedProcess(process.args, process.returncode, *printed)
    if check:
        done.check_returncode()
    return done


def shims() -> str:
    """The folder of ``ovd`` and ``python`` for shells, for PATH before this environment's."""
    return str(Path(_server()).parent / "bin") if available() else str(BIN)


def _shim(place: str, program: str, *words: str) -> int:
    """Runs a shell's command as a copy of the server, or becomes the program itself."""
    server = json.loads(Path(f"{place}.json").read_text())
    request = _request([program, *words], os.getcwd(), dict(os.environ), server)
    if request is None:
        os.execv(program, [program, *words])
    process = Process(place, request, [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def available() -> bool:
    """Whether the system has what this needs and nobody measures lines."""
    return hasattr(os, "pidfd_open") and not any(name.startswith("COVERAGE") for name in os.environ)


@cache
def _server() -> str:
    """Starts the server of this process; the place of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    place = str(folder / "socket")
    Path(f"{place}.json").write_text(json.dumps(_read_at_import(AT_START)))
    (folder / "bin").mkdir()
    for name in ("ovd", "python"):
        command = SHIM.format(python=sys.executable, here=HERE, place=place, program=BIN / name)
        (folder / "bin" / name).write_text(command)
        (folder / "bin" / name).chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(folder=str(HERE.parent), place=place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={name: value for name, value in AT_START.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    _server.process = process  # its stdin closes with this process
    return place


def _request(words: list[str], cwd: str, environment: dict, server: dict | None = None):
    """What to ask of the server; None where a command has to start by itself.

    Args:
        server: what was read when the server imported its packages; default: of ``AT_START``.
    """
    server = _read_at_import(AT_START) if server is None else server
    program = _program(words[0], words[1:])
    if program is None or not available() or _read_at_import(environment) != server:
        return None
    return {"program": program, "cwd": cwd, "environment": environment}


def _program(name: str, words: list[str]) -> tuple[str, str, list[str]] | None:
    """("-m", "-c" or "file"; module, code or path; arguments) if it is one of this environment."""
    if Path(name).parent != BIN:
        return None
    if Path(name).name in ("ovd", "torchrun"):
        return "file", name, words
    if not Path(name).name.startswith("python") or not words:
        return None
    if words[0] in ("-m", "-c"):
        return words[0], words[1], words[2:]
    return None if words[0].startswith("-") else ("file", words[0], words[1:])


def _read_at_import(environment) -> dict[str, str]:
    """The variables that packages read when they are imported."""
    found = {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT)}
    # No package reads the first two when it is imported; gradio sets the third in a test's process.
    for name in ("PYTHONPATH", "PYTHON_EXEC", "HF_HUB_DISABLE_TELEMETRY"):
        found.pop(name, None)
    return found


if __name__ == "__main__":
    sys.exit(_shim(*sys.argv[1:]))
