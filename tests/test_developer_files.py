"""Files that other programs read (hooks, templates, workflow, image) agree with the Makefile."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def recipe(target):
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def test_hooks_are_what_make_lint_does():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks)  # nothing is downloaded
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    lint = recipe("lint").replace(" --check", "").replace(" .\n", "\n")
    assert entries == re.findall(r"-m (.+)", lint)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_have_what_they_need(form):
    content = read(form)
    if form.stem == "config":
        assert content == {"blank_issues_enabled": True}
        return
    assert content["name"] and content["description"]
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["attributes"]["label"] for field in content["body"])


def test_the_workflow_does_what_ci_does():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    assert jobs["all"]["steps"][-1]["run"] == "bash .ci/run"
    assert jobs["quick"]["steps"][-1]["run"].startswith("make test")
    artwork = next(step for step in jobs["all"]["steps"] if "cache" in step.get("uses", ""))
    (lock,) = re.findall(r"hashFiles\('(.+)'\)", artwork["with"]["key"])
    assert (ROOT / lock).is_file()


def test_the_image_installs_what_the_makefile_installs():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.compile(r"install (.*-r requirements/[\w-]+\.txt)")
    ours, others = (
        [set(line.split()) for line in installs.findall(text)]
        for text in (recipe(r"\$\(STAMP\)"), dockerfile)
    )
    own = {
        "-q",
        "--disable-pip-version-check",
        "--no-cache",
        "--no-cache-dir",
        "--compile-bytecode",
    }
    assert len(ours) == 3
    assert [words - own for words in others] == [words - own for words in ours]


def test_the_image_has_only_files_that_are_there():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[1] == "*" and {"ovd_d2", "configs", "requirements", "setup.py"} <= set(kept)
    assert [name for name in kept if not (ROOT / name).exists()] == []
