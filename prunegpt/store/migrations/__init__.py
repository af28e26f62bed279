"""Alembic's scripts: `env` runs them on a connection that is handed in, `versions` holds one file a schema change."""
