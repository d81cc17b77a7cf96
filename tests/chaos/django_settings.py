"""For those contenders whose schedule and states live in a database."""

import os

SECRET_KEY = "unused"
INSTALLED_APPS = ["django_celery_beat"]
TIME_ZONE = "UTC"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["CHAOS_DATABASE"],
        # Or SQLite refuses at once what a server would let wait.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
