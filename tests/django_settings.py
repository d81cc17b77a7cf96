"""Settings for schedulers that keep entries and run states in a database. It is PostgreSQL if the
environment of libpq names one (PGDATABASE and others), MariaDB if MYSQL_DATABASE and others do,
otherwise SQLite in the file DJANGO_DATABASE. DJANGO_CONNECTION is JSON with more keys for
DATABASES."""

import json
import os

import django

SECRET_KEY = "unused"
INSTALLED_APPS = ["django_celery_beat"]
TIME_ZONE = "UTC"
USE_TZ = True
#: Never used; but pytest-celery looks at every object of the process, and so reads this one.
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

# Otherwise SQLite refuses at once what a server would let wait.
_patience: dict[str, object] = {"timeout": 20}
if django.VERSION >= (5, 1):
    _patience["transaction_mode"] = "IMMEDIATE"

if "PGDATABASE" in os.environ:
    _database: dict[str, object] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
    }
elif "MYSQL_DATABASE" in os.environ:
    import pymysql

    pymysql.install_as_MySQLdb()
    _database = {
        "ENGINE": "django.db.backends.mysql",
        "NAME": os.environ["MYSQL_DATABASE"],
        "HOST": os.environ["MYSQL_HOST"],
        "PORT": os.environ["MYSQL_TCP_PORT"],
        "USER": "root",
    }
else:
    _database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["DJANGO_DATABASE"],
        "OPTIONS": _patience,
    }
DATABASES = {"default": {**_database, **json.loads(os.environ.get("DJANGO_CONNECTION", "{}"))}}
