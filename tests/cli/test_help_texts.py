"""`--help` of every command shows its texts whole, words in square brackets too."""

import json
import sys

import pytest
import warm_processes

CODE = """
import json, sys
import typer
from ovd_d2.cli import app
root = typer.main.get_command(app.build_app())

def texts(words, command):
    helps = [command.help, *[getattr(param, "help", "") for param in command.params]]
    found = {" ".join(words): [text or "" for text in helps]}
    for name, below in getattr(command, "commands", {}).items():
        found.update(texts([*words, name], below))
    return found

all_of_them = texts([], root)
for words in all_of_them:
    print("\\n@@@", words, flush=True)
    try:
        app.main([*words.split(), "--help"])
    except SystemExit as end:
        assert not end.code
print("\\n@@@ json")
print(json.dumps(all_of_them))
"""


@pytest.fixture(scope="module")
def helps():
    """Words of a command -> (what its --help prints, the texts in its source)."""
    shown = warm_processes.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0, shown.stderr
    parts = [part.split("\n", 1) for part in shown.stdout.split("\n@@@ ")[1:]]
    printed = {words.strip(): text for words, text in parts}
    return {words: (printed[words], texts) for words, texts in json.loads(printed["json"]).items()}


def squeezed(text):
    """Without what line breaks change."""
    return "".join(text.replace("\b", "").split())


def test_every_text_is_whole(helps):
    assert len(helps) > 30
    for words, (printed, texts) in helps.items():
        for text in texts:
            assert squeezed(text) in squeezed(printed), (words, text)


def test_words_in_brackets_are_shown(helps):
    in_brackets = [words for words, (_, texts) in helps.items() if "[" in " ".join(texts)]
    assert "pseudo-label" in in_brackets
    assert "[names]}" in squeezed(helps["pseudo-label"][0])


def test_usage_has_no_brackets_in_brackets(helps):
    for words, (printed, _) in helps.items():
        usage = printed.split("Usage: ")[1].split("\n\n")[0]
        assert "[[" not in usage, words
        assert usage.startswith(f"ovd {words}".strip())
