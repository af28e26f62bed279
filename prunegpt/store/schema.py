"""The tables. JSON is in text columns: it is read whole, and text is what both databases give back fastest."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
)  # every schema there ever was, oldest first; the last is the one below

metadata = MetaData()

sweep = Table(
    "sweep",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("title", Text, nullable=False),
    Column("source", Text),  # the spec's file
    Column("folder", Text, nullable=False, server_default=""),  # working directory of the run; empty: not known
    Column("spec", Text, nullable=False),  # JSON, as read
    Column("tables", Text, nullable=False),  # JSON list
    Column("unchecked", Text, nullable=False),  # JSON list
    Column("created", Double, nullable=False),  # seconds since the epoch, as all times here
    Column("updated", Double, nullable=False),
)

trial = Table(
    "trial",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sweep_id", Integer, ForeignKey("sweep.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("group", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("label", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("implicit", Boolean, nullable=False),
    Column("shown", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("evaluation_key", Text, nullable=False),
    Column("plan", Text, nullable=False),  # the TrialPlan, JSON
    Column("search", Text, nullable=False, server_default=""),  # the search that suggested it; empty: the spec itself
    UniqueConstraint("sweep_id", "name"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trial_id", Integer, ForeignKey("trial.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("folder", Text, nullable=False),  # below the root; empty where no worker ran
    Column("chain", Text, nullable=False),  # JSON list: the stage keys the trial had then
    Column("key", Text, nullable=False),
    Column("evaluation_key", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("trace", Text, nullable=False),
    Column("started", Double, nullable=False),
    Column("ended", Double),
    Column("device", Text, nullable=False),
    Column("versions", Text, nullable=False),  # JSON
    Column("offset", BigInteger, nullable=False),  # bytes of points.jsonl that are in `point`
    Column("log", Text, nullable=False, server_default=""),  # the last lines of its log, where it did not finish
    Column("outcome", Text, nullable=False, server_default=""),  # the trial's state after it, or `retried`
    UniqueConstraint("trial_id", "number"),
    Index("attempt_state", "state"),
)

attempt_stage = Table(
    "attempt_stage",
    metadata,
    Column("attempt_id", Integer, ForeignKey("attempt.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("key", Text, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("record", Text, nullable=False),  # the StageRecord, JSON
    Index("attempt_stage_key", "key"),
)

stage = Table(
    "stage",
    metadata,
    Column("key", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("computed_by", Integer, ForeignKey("attempt.id", ondelete="SET NULL")),  # none: outside this database
    Column("published", Double, nullable=False),
    Column("computations", Integer, nullable=False),  # attempts that computed it to the end; 1 when all is well
)

curve = Table(
    "curve",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("attempt_id", Integer, ForeignKey("attempt.id", ondelete="CASCADE"), nullable=False),
    Column("stage", Integer, nullable=False),  # position in the chain
    Column("stage_key", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("last_step", BigInteger),  # of its points so far, which these sum up: lists of trials show them
    Column("last", Double),
    Column("low", Double),
    Column("high", Double),
    UniqueConstraint("attempt_id", "stage", "name"),
    Index("curve_stage_key", "stage_key"),
    Index("curve_name", "name"),
)

point = Table(
    "point",
    metadata,
    Column("curve_id", Integer, ForeignKey("curve.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("epoch", Double, nullable=False),
    Column("value", Double),  # none: not finite
    Column("time", Double, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

note = Table(
    "note",
    metadata,
    Column("trial_id", Integer, ForeignKey("trial.id", ondelete="CASCADE"), primary_key=True),
    Column("text", Text, nullable=False),  # Markdown, as it was written
    Column("updated", Double, nullable=False),
)
