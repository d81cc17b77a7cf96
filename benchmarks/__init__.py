"""What celery-zk-beat costs and how fast it is, measured on real servers: see README.md."""
