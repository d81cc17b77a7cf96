"""Those of tests/django_settings.py with django-celery-results, which one test alone needs."""

from tests.django_settings import *  # noqa: F403
from tests.django_settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_celery_results"]
