"""Artifacts that runs log: a record per version below ROOT/wandb/artifacts, files by the MD5 that manifests name."""

import json
import os
import re
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from hashlib import md5
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from prunegpt.root import Root, read_json, write_text
from prunegpt.tracking.endpoint.hosted import run_id
from prunegpt.tracking.endpoint.intake import Rejected
from prunegpt.tracking.run_path import RunPath

LATEST = "latest"
ARTIFACTS = 100_000_000_000  # bytes of the files of all artifacts of a root
_CHUNK = 1 << 20
_MANIFEST, _DIGEST = re.compile(r"[a-z0-9]{1,32}-[a-z0-9]{1,32}\.json"), re.compile(r"[0-9a-f]{32}")


class ArtifactEntry(NamedTuple):
    """One file of a version."""

    name: str
    digest: str  # MD5 in hexadecimal digits; of a reference what its client has put there
    size: int  # bytes
    reference: str  # the address of a file that is elsewhere; empty for one that is kept here


class ArtifactVersion(BaseModel):
    """One version of an artifact."""

    id: str
    entity: str
    project: str
    type: str
    collection: str  # the name without a version
    digest: str
    state: Literal["PENDING", "COMMITTED", "DELETED"] = "PENDING"
    number: int = 0  # of the version, once it is committed
    client_id: str = ""
    description: str | None = None
    metadata: Any = None
    aliases: list[str] = []
    tags: list[str] = []
    created: float = 0.0
    updated: float = 0.0
    history_step: int | None = None
    run: str = ""  # id of the run that logged it
    used_by: list[str] = []  # ENTITY/PROJECT/ID of runs
    manifest: str = ""  # name of its manifest's file
    logged_by: list[str] = []  # ENTITY/PROJECT/ID of further runs that logged the same content
    distributed: str = ""  # what its clients call it, where several make it together
    base: str = ""  # id of the version that its parts are added to
    parts: list[str] = []  # names of manifests that make up its own, in their order

    @property
    def place(self) -> tuple[str, str, str]:
        """The collection that it is in."""
        return self.entity, self.project, self.collection


class Artifacts:
    """The artifacts of a root. Used by one process, the server's.

    Args:
        most: bytes that the files of all of them may take together.
    """

    def __init__(self, root: Root, most: int = ARTIFACTS) -> None:
        self._folder = root.path / "wandb" / "artifacts"
        self._most = most
        self._taken: int | None = None  # bytes of all files, once they are counted
        self._lock = RLock()
        self._known: dict[str, ArtifactVersion] | None = None

    def all(self) -> list[ArtifactVersion]:
        """Every version, the oldest first."""
        with self._lock:
            if self._known is None:
                found = [self._read(file) for file in (self._folder / "versions").glob("*.json")]
                self._known = {one.id: one for one in sorted(found, key=lambda one: one.created)}
            return list(self._known.values())

    def get(self, name: str) -> ArtifactVersion | None:
        """The version of that id, or of that id of its client's."""
        return next((one for one in self.all() if name and name in (one.id, one.client_id)), None)

    def versions(self, entity: str, project: str, collection: str = "", type: str = "") -> list[ArtifactVersion]:
        """The committed versions of a project, or of one collection or type of it."""
        return [
            one
            for one in self.all()
            if one.state == "COMMITTED"
            and (one.entity, one.project) == (entity, project)
            and collection in ("", one.collection)
            and type in ("", one.type)
        ]

    def of_run(self, at: RunPath, used: bool) -> list[ArtifactVersion]:
        """The committed versions that a run has used, or has logged."""
        own = tuple(at)
        return [
            one
            for one in self.all()
            if one.state == "COMMITTED"
            and (
                "/".join(own) in one.used_by
                if used
                else (one.entity, one.project, one.run) == own or "/".join(own) in one.logged_by
            )
        ]

    def named(self, entity: str, project: str, name: str) -> ArtifactVersion | None:
        """The version that COLLECTION:ALIAS means, where the alias may be vN or a digest; default the latest."""
        collection, _, alias = name.partition(":")
        found = self.versions(entity, project, collection)
        for one in reversed(found):
            if (alias or LATEST) in (*one.aliases, f"v{one.number}", one.digest, one.client_id):
                return one
        return None

    def create(self, *, deduplicate: bool, **said: Any) -> ArtifactVersion:
        """A new version, the one that others are making with it, or the last one that has the same content.

        Raises:
            Rejected: the collection holds artifacts of another type, or something said of it is none.
        """
        with self._lock:
            try:
                new = ArtifactVersion(id=run_id() + run_id(), created=time.time(), updated=time.time(), **said)
            except ValidationError as error:
                raise Rejected(f"an artifact is malformed: {error.errors()[0]['msg']}.", 200) from error
            there = self.versions(new.entity, new.project, new.collection)
            if there and there[-1].type != new.type:
                raise Rejected(f"{new.collection} holds artifacts of type {there[-1].type}, got {new.type}.", 200)
            together = [
                one
                for one in self.all()
                if one.place == new.place and one.state == "PENDING" and new.distributed == one.distributed != ""
            ]
            if together:
                return together[-1]
            if deduplicate and (same := [one for one in there if one.digest == new.digest]):
                run = f"{new.entity}/{new.project}/{new.run}"
                if new.run not in ("", same[-1].run) and run not in same[-1].logged_by:
                    same[-1].logged_by.append(run)
                self._alias(same[-1], [*new.aliases, LATEST])
                return same[-1]
            self.keep(new)
            return new

    def commit(self, version: ArtifactVersion) -> None:
        """A version is there whole: it gets its number and aliases.

        Raises:
            Rejected: its manifest, or a file that this names, was not sent.
        """
        with self._lock:
            self._join(version)
            if not version.manifest or not self.manifest(version.manifest).is_file():
                raise Rejected(f"the artifact {version.collection} cannot be committed: its manifest was not sent.")
            absent = [one.name for one in self.entries(version) if not one.reference and not self.has(one.digest)]
            if absent:
                raise Rejected(
                    f"the artifact {version.collection} cannot be committed: {absent[0]!r:.80} was not sent"
                    f"{f', nor were {len(absent) - 1} others' if absent[1:] else ''}. Log it again."
                )
            if version.state == "PENDING":
                taken = [one.number for one in self.all() if one.place == version.place and one.state != "PENDING"]
                version.number = max(taken, default=-1) + 1
                version.state = "COMMITTED"
                self._alias(version, [*version.aliases, LATEST])

    def _join(self, version: ArtifactVersion) -> None:
        """Makes the manifest of a version of its parts, and of that of the version that they are added to.

        Raises:
            Rejected: a part was not sent, or is no manifest.
        """
        if not version.parts or version.state != "PENDING":
            return
        base = self.get(version.base)
        whole: dict[str, Any] = {}
        for name in (*([base.manifest] if base and base.manifest else ()), *version.parts):
            try:
                found = read_json(self.manifest(name))
                whole = {**found, "contents": {**whole.get("contents", {}), **found["contents"]}}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Rejected(
                    f"the artifact {version.collection} cannot be committed: {name} was not sent."
                ) from error
        version.manifest = f"{version.id}-{run_id()}.json"
        write_text(self.manifest(version.manifest), json.dumps(whole))

    def keep(self, version: ArtifactVersion) -> None:
        """Writes a version as it is now."""
        with self._lock:
            self.all()
            assert self._known is not None
            version.updated = time.time()
            self._known[version.id] = version
            write_text(self._folder / "versions" / f"{version.id}.json", version.model_dump_json(indent=1) + "\n")

    def alias(self, version: ArtifactVersion, aliases: Sequence[str]) -> None:
        """Gives a version further aliases, which others of its collection lose."""
        with self._lock:
            self._alias(version, aliases)

    def unalias(self, version: ArtifactVersion, aliases: Sequence[str]) -> None:
        """Takes aliases from a version."""
        with self._lock:
            version.aliases = [one for one in version.aliases if one not in aliases]
            self.keep(version)

    def delete(self, version: ArtifactVersion) -> None:
        """Marks a version as deleted, and removes the files that no other one has."""
        with self._lock:
            version.state, version.aliases = "DELETED", []
            self.keep(version)
            shared = {entry.digest for one in self.all() if one.state != "DELETED" for entry in self.entries(one)}
            for digest in {one.digest for one in self.entries(version) if not one.reference} - shared:
                if self.has(digest):
                    self._taken = self._bytes() - self.file(digest).stat().st_size
                    self.file(digest).unlink()

    # -- files ----------------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> Path:
        """Where the manifest of that name is.

        Raises:
            Rejected: the name is none.
        """
        if not _MANIFEST.fullmatch(name):
            raise Rejected("there is no such manifest.", 404)
        return self._folder / "manifests" / name

    def file(self, digest: str) -> Path:
        """Where the file is whose MD5 is that.

        Raises:
            Rejected: it is no MD5 in hexadecimal digits.
        """
        if not _DIGEST.fullmatch(digest):
            raise Rejected(f"a file is named by its MD5 in hexadecimal digits, got {digest!r:.80}.", 404)
        return self._folder / "files" / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether there is a file of that MD5."""
        return bool(_DIGEST.fullmatch(digest)) and self.file(digest).is_file()

    def entries(self, version: ArtifactVersion) -> Iterator[ArtifactEntry]:
        """The files of a version, as its manifest names them."""
        if not version.manifest:
            return
        try:
            contents = read_json(self.manifest(version.manifest))["contents"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        for name, entry in contents.items():
            reference, digest = str(entry.get("ref") or ""), str(entry.get("digest") or "")
            yield ArtifactEntry(
                name, digest if reference else hexadecimal(digest), int(entry.get("size") or 0), reference
            )

    def take_file(self, digest: str, content: Path) -> None:
        """Keeps an uploaded file.

        Raises:
            Rejected: it is not what its digest says, or there is no room for it among the artifacts.
        """
        found = md5(usedforsecurity=False)
        with content.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
        if found.hexdigest() != digest:
            raise Rejected(f"a file must have the MD5 that was announced, {digest}; it has {found.hexdigest()}.")
        target = self.file(digest)
        with self._lock:
            taken = self._bytes() + (0 if target.is_file() else content.stat().st_size)
            if taken > self._most:
                raise Rejected(
                    f"the artifacts of a root may take {self._most} bytes here, but with this file would take {taken}. "
                    f"Delete versions that nobody needs; `prunegpt serve --artifact-limit` sets the limit.",
                    413,
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(content, target)
            self._taken = taken

    def take_manifest(self, name: str, content: Path) -> None:
        """Keeps an uploaded manifest."""
        target = self.manifest(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(content, target)

    def _bytes(self) -> int:
        """Bytes of all files."""
        if self._taken is None:
            self._taken = sum(file.stat().st_size for file in (self._folder / "files").glob("*/*"))
        return self._taken

    def _alias(self, version: ArtifactVersion, aliases: Sequence[str]) -> None:
        for other in self.all():
            if other.place == version.place and other.id != version.id and set(other.aliases) & set(aliases):
                other.aliases = [one for one in other.aliases if one not in aliases]
                self.keep(other)
        version.aliases = list(dict.fromkeys([*version.aliases, *aliases]))
        self.keep(version)

    def _read(self, file: Path) -> ArtifactVersion:
        return ArtifactVersion.model_validate_json(file.read_text(encoding="utf-8"))


def hexadecimal(digest: str) -> str:
    """An MD5 in Base64, as manifests have it, in hexadecimal digits; empty where it is none."""
    try:
        return b64decode(digest).hex()
    except ValueError:
        return ""
