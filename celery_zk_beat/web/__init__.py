"""HTTP, where `zk_beat_http` asks for it: probes, metrics and the status page. Read-only.

Only here are waitress and prometheus_client imported, which the extra ``http`` brings.

Raises:
    SettingsError: on import, where a package is missing.
"""

from __future__ import annotations

from ..errors import SettingsError

try:
    import prometheus_client as prometheus_client
    import waitress as waitress
except ImportError as exc:
    raise SettingsError(
        "zk_beat_http needs prometheus_client and waitress: pip install 'celery-zk-beat[http]' "
        f"({exc})"
    ) from None
