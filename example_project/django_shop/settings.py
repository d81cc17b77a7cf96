"""Settings of a small Django project: the admin, django-celery-beat, and celery-zk-beat."""

import os
from pathlib import Path

# All that celery-zk-beat needs: the name of its scheduler, the address of ZooKeeper, and the
# scheduler whose entries it dispatches.
CELERY_BEAT_SCHEDULER = "celery_zk_beat:ZooKeeperScheduler"
CELERY_ZK_BEAT_HOSTS = os.environ.get("ZK_BEAT_HOSTS", "localhost:2181")
CELERY_ZK_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_ZK_BEAT_ID = os.environ.get("ZK_BEAT_ID")  # None: host and pid
CELERY_ZK_BEAT_SESSION_TIMEOUT = float(os.environ.get("ZK_BEAT_SESSION_TIMEOUT", 10))

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = TIME_ZONE = "UTC"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "example_project.django_shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "example_project.django_shop.urls"
STATIC_URL = "static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# This is an example: it serves only loopback, and has no secrets.
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
SECRET_KEY = "an example has none"

if "PGDATABASE" in os.environ:  # libpq reads the server's address from PGHOST and PGPORT
    _database: dict[str, object] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
    }
else:
    _database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", str(Path(__file__).with_name("db.sqlite3"))),
        "OPTIONS": {"timeout": 20},
    }
DATABASES = {"default": _database}
