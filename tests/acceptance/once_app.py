"""The app of app.py with the tasks that docs/integrations.md prints: each is queued only once."""

from __future__ import annotations

import re

from example_project.servers import REPOSITORY

from .app import app as app

PRINTED = "redis://localhost:6379/1"
page = (REPOSITORY / "docs" / "integrations.md").read_text()
for block in re.findall(r"^```python\n(from celery_(?:once|singleton) .*?)^```", page, re.M | re.S):
    assert PRINTED in block
    exec(block.replace(PRINTED, app.conf.result_backend), {"app": app})
