"""Writes an export whole: room on the disk, a temporary place, the check, and only then its name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from prunegpt.errors import listed
from prunegpt.exporting.base import Export, ExportCheck, ExportError, ExportFormat, expected_bytes
from prunegpt.registry import EXPORT_FORMATS
from prunegpt.root import publishing

_SPARE = 64 << 20  # bytes: tokenizer, masks and headers


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    dtype: str
    size: int  # bytes
    checks: tuple[ExportCheck, ...]


def format_of(name: str, out: Path, dtype: str | None) -> tuple[ExportFormat, str]:
    """The format of a name and the dtype to write, checked before a model is loaded.

    Raises:
        ExportError: OUT or the dtype does not fit the format.
    """
    found: ExportFormat = EXPORT_FORMATS.load(name)
    kind = dtype or found.dtypes[0]
    if kind not in found.dtypes:
        raise ExportError(f"--dtype of {name} must be one of {listed(found.dtypes)}, got {kind}.")
    if found.suffix and out.suffix != found.suffix:
        raise ExportError(f"OUT of {name} must end in {found.suffix}, got {out}. Name it {out}{found.suffix}.")
    if not found.suffix and out.suffix in (".gguf", ".safetensors"):
        raise ExportError(f"OUT of {name} must be a folder, got {out}. Pass --to gguf, or name a folder.")
    return found, kind


def run(form: ExportFormat, export: Export, out: Path, *, replace: bool) -> Exported:
    """Writes, checks and publishes an export.

    Raises:
        ExportError: the format cannot hold the model, the disk has no room, or the check fails; nothing is left then.
    """
    form.holds(export)
    check_room(out, expected_bytes(export.model, export.dtype))
    with _place(out, form.suffix, replace) as temporary:
        export.progress(0, 2, "writing")
        form.write(export, temporary)
        export.progress(1, 2, "checking")
        checks = tuple(form.check(export, temporary))
        export.progress(2, 2, "checked")
        files = temporary.rglob("*") if temporary.is_dir() else (temporary,)
        size = sum(file.stat().st_size for file in files if file.is_file())
    return Exported(out, export.dtype, size, checks)


def check_room(out: Path, size: int) -> None:
    """Raises ExportError where the disk has no room for that many bytes."""
    folder = next(place for place in (out.absolute(), *out.absolute().parents) if place.is_dir())
    free, need = shutil.disk_usage(folder).free, size + _SPARE
    if free < need:
        raise ExportError(
            f"an export needs about {need / 1e6:,.0f} MB; the disk of {out} has {free / 1e6:,.0f} MB free. Free some "
            "space, or name an OUT on another disk."
        )


@contextmanager
def _place(out: Path, suffix: str, replace: bool) -> Iterator[Path]:
    """A temporary folder or file that becomes OUT when the block ends well."""
    if not suffix:
        with publishing(out.resolve(), replace=replace) as folder:
            yield folder
        return
    final = out.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem}.{uuid4().hex}.tmp{suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
