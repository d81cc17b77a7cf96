"""A Django project whose periodic tasks are edited in the admin and go on when a beat dies.

Start as many beats as you like, on as many machines as you like. One of them is master::

    python -m example_project.django_shop migrate
    python -m example_project.django_shop createsuperuser
    python -m example_project.django_shop runserver --insecure
    celery -A example_project.django_shop worker
    celery -A example_project.django_shop beat
    celery -A example_project.django_shop beat      # a standby: kill the other and watch

``make demo-django`` starts all of it and shows a failover.
"""

from .celery import app as celery_app

__all__ = ["celery_app"]
