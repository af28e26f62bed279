"""Trials that a search suggested; the end of an attempt's log, and whether its trial was tried again.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("trial") as batch:
        batch.add_column(sa.Column("search", sa.Text, nullable=False, server_default=""))
    with op.batch_alter_table("attempt") as batch:
        batch.add_column(sa.Column("log", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("outcome", sa.Text, nullable=False, server_default=""))
