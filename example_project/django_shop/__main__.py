"""The ``manage.py`` of this project."""

import os

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.django_shop.settings")
    execute_from_command_line()
