"""The console script as a process: exit codes, messages, and how little it imports."""

import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ovd_d2

OVD = str(Path(sys.executable).with_name("ovd"))


def ovd(*words, **options):
    return subprocess.run([OVD, *words], capture_output=True, text=True, timeout=120, **options)


def run_as_ovd(code):
    """Runs python code in a process whose argv[0] is ``ovd``."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['ovd', '--help']\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_version():
    result = ovd("--version")
    assert (result.returncode, result.stdout) == (0, f"ovd_d2 {ovd_d2.__version__}\n")


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = """
from ovd_d2.cli.app import main
try:
    main()
finally:
    print([m for m in ("torch", "detectron2") if m in sys.modules])
"""
    result = run_as_ovd(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]"
    for name in ("demo", "doctor", "mini"):
        assert f" {name} " in result.stdout


@pytest.mark.parametrize("words", [["nonsense"], ["doctor", "--nonsense"], ["mini", "nonsense"]])
def test_wrong_usage_is_exit_code_2(words):
    result = ovd(*words)
    assert result.returncode == 2
    assert "nonsense" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_old_name_names_the_new_one():
    result = ovd("bench", "store")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: ovd bench is now called ovd speed.\n"


def test_bad_input_is_one_line_and_exit_code_2():
    result = ovd("demo", "--models", "vild_text,nonsense")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: --models nonsense: the demo knows supervised_all,")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x/y"), OSError(36, "File name too long",
              "/" + "d/" * 2500), OSError("odd")]
)  # fmt: skip
def test_files_that_cannot_be_used_end_any_command_in_one_sentence(monkeypatch, capsys, error):
    from ovd_d2.cli import app, doctor

    def examine():
        raise error

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit) as exit_info:
        app.main(["doctor"])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and (error.strerror or "odd") in line and len(line) < 400


def test_any_command_that_raises_ovd_error_ends_that_way(monkeypatch, capsys):
    from ovd_d2.cli import app, doctor
    from ovd_d2.errors import OVDError

    def examine():
        raise OVDError("The file x is broken: build it again.")

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit) as exit_info:
        app.main(["doctor"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: The file x is broken: build it again.\n"


def test_callbacks_can_be_read_on_python_3_10():
    """typer asks issubclass of annotations of callbacks, which fails there for list[str]."""
    from ovd_d2.cli.app import COMMANDS, build_app

    seen = []
    groups = [build_app(COMMANDS)]
    while groups:
        group = groups.pop()
        groups += [info.typer_instance for info in group.registered_groups]
        for command in group.registered_commands:
            for option in inspect.signature(command.callback).parameters.values():
                callback = getattr(option.default, "callback", None)
                if callback is not None:
                    seen += inspect.signature(callback).parameters.values()
    assert seen
    assert not [value for value in seen if isinstance(value.annotation, types.GenericAlias)]
