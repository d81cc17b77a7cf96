"""A small real Celery project that runs on celery-zk-beat, and a demo of a failover."""
