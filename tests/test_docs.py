"""The pages of docs and CONTRIBUTING: every code block runs, or says why it does not."""

import pytest
from code_blocks import LANGUAGES, READ, ROOT, blocks, pages, run_page

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
WITH_COMMANDS = [
    name for name, page in PAGES.items()
    if name != "README.md" and any(block.runs for block in blocks(page))
]  # fmt: skip
EXAMPLE = """
# Title

<!-- file: words.txt -->
```
cat
```

## First

```bash
# its comment
cp words.txt copied.txt; test -e train_net.py; test -e datasets/mini-v1
ovd mini build --no-such-option
```

<!-- not run: needs a GPU -->
```bash
exit 1
```

## Second

=== "in a tab"

    ```python title="example.py"
    name = open("copied.txt").read().strip()
    ```

```python
open("written.txt", "w").write(name)
```
"""


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_seen_and_read(name):
    """Fences that the pattern misses would be blocks that nobody runs."""
    found = blocks(PAGES[name])
    lines = PAGES[name].read_text(encoding="utf-8").splitlines()
    assert sum(line.lstrip().startswith("```") for line in lines) == 2 * len(found)
    for block in found:
        if block.left_out:
            assert len(block.mark.removeprefix("not run:").split()) > 1, f"no reason: {block}"
            continue
        assert block.language in LANGUAGES, f"mark it as not run: {block}"
        if block.language in READ:
            assert READ[block.language](block.text) is not None


def test_the_program_without_torch_is_the_one_that_ships():
    code = (ROOT / "ovd_d2/inference/detect_onnx.py").read_text(encoding="utf-8")
    assert code in [block.text for block in blocks(PAGES["docs/export.md"])]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_every_block_runs(name, cut_mini, tmp_path):
    run_page(PAGES[name], tmp_path, cut_mini)


def test_blocks_run_in_order_and_go_on_from_each_other(tmp_path):
    page, folder, mini = tmp_path / "page.md", tmp_path / "folder", tmp_path / "mini"
    page.write_text(EXAMPLE)
    folder.mkdir()
    mini.mkdir()
    run_page(page, folder, mini)
    assert (folder / "written.txt").read_text() == "cat"


def test_a_block_that_fails_is_shown(tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "folder"
    page.write_text("## Part\n\n```bash\nls no_such_file\n```\n")
    folder.mkdir()
    with pytest.raises(AssertionError, match=r"(?s)Part:\nls no_such_file.*cannot access"):
        run_page(page, folder, tmp_path)
