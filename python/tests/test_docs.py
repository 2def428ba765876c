"""docs/python.md is run as it stands, top to bottom, on the quickstart's store."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/python.md"


def test_the_documented_example_runs_as_it_stands(quickstart, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/store").symlink_to(quickstart)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This DataLoader will create", "-W", "ignore::DeprecationWarning", "page.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    above = float(re.search(r"true above false: (\S+)", done.stdout).group(1))
    assert 0.65 < above <= 1 and "800 rows an epoch" in done.stdout, done.stdout
