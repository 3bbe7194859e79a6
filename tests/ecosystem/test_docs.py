"""The snippets of docs/ecosystem.md, run one after the other in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.harness import Cluster

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "ecosystem.md"


def test_snippets_of_the_page_run(cluster: Cluster, tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) > 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        check=False,
        cwd=tmp_path,
        env={**os.environ, **cluster.environment, "HF_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=160,
    )
    assert done.returncode == 0, done.stdout
