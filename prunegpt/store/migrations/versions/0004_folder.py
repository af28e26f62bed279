"""The working directory that a sweep was run in: relative paths of its spec begin there.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("sweep") as batch:
        batch.add_column(sa.Column("folder", sa.Text, nullable=False, server_default=""))
