"""The same app in a Django project that consists of a database only."""

from __future__ import annotations

import json
import os

import django

# So that PostgreSQL's triggers can see it.
os.environ["PGAPPNAME"] = json.loads(os.environ["CONF"])["zk_beat_id"]
django.setup()

from .app import app  # noqa: E402

__all__ = ["app"]
