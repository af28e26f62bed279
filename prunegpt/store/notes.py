"""What people write on trials. Anybody may write a note, at any time: nothing that runs depends on it."""

import time

from sqlalchemy import Connection, delete, select

from prunegpt.store.schema import note


def read_note(connection: Connection, trial_id: int) -> str:
    """The note of a trial as it was written; empty where there is none."""
    return str(connection.execute(select(note.c.text).where(note.c.trial_id == trial_id)).scalar() or "")


def write_note(connection: Connection, trial_id: int, text: str) -> None:
    """Replaces the note of a trial; an empty text removes it."""
    connection.execute(delete(note).where(note.c.trial_id == trial_id))
    if text:
        connection.execute(note.insert(), {"trial_id": trial_id, "text": text, "updated": time.time()})
