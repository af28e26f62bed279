"""The last, least and greatest value of every curve: what lists of trials show of it.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("curve", sa.Column("last_step", sa.BigInteger))
    for name in ("last", "low", "high"):
        op.add_column("curve", sa.Column(name, sa.Double))
    op.create_index("curve_name", "curve", ["name"])
    op.execute(
        "UPDATE curve SET last_step = (SELECT max(step) FROM point WHERE curve_id = curve.id), "
        "low = (SELECT min(value) FROM point WHERE curve_id = curve.id), "
        "high = (SELECT max(value) FROM point WHERE curve_id = curve.id), "
        "last = (SELECT value FROM point WHERE curve_id = curve.id ORDER BY step DESC LIMIT 1)"
    )
