"""The Celery app, as Django projects usually define it."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.django_shop.settings")

app = Celery("shop")  # The name is part of the election's root, so every app has its own.
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
