"""Artifacts as clients ask for them and make them."""

import json
import mimetypes
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from prunegpt.errors import listed
from prunegpt.tracking.endpoint.artifact_input import (
    aliases_of,
    input_of,
    refuse_unsupported,
    tags_of,
    text_of,
)
from prunegpt.tracking.endpoint.artifacts import ArtifactEntry, Artifacts, ArtifactVersion, hexadecimal
from prunegpt.tracking.endpoint.connection import NodeFields, connection, identifier, parts_of, stamp
from prunegpt.tracking.endpoint.filters import selected
from prunegpt.tracking.endpoint.hosted import run_id
from prunegpt.tracking.endpoint.intake import Rejected
from prunegpt.tracking.run_path import RunPath


class ArtifactNodes:
    """The artifacts of a root as nodes, and the mutations that make them.

    Args:
        upload: gives the address of this server as the client knows it, and the header that its uploads need.
        address: the same address, as files are to be fetched from it.
        run: gives the node of a run.
        project: gives the node of a project.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        upload: Callable[[], tuple[str, list[str]]],
        address: Callable[[], str],
        run: Callable[[RunPath], Any],
        project: Callable[[RunPath], NodeFields],
    ) -> None:
        self._artifacts = artifacts
        self._upload = upload
        self._address = address
        self._run = run
        self._project = project
        self.mutations: Mapping[str, Callable[..., Any]] = {
            "createArtifactType": self._create_type,
            "createArtifact": self._create,
            "createArtifactManifest": self._create_manifest,
            "updateArtifactManifest": self._update_manifest,
            "createArtifactFiles": self._create_files,
            "commitArtifact": self._commit,
            "updateArtifact": self._update,
            "deleteArtifact": self._delete,
            "useArtifact": self._use,
            "addAliases": self._add_aliases,
            "deleteAliases": self._delete_aliases,
        }

    # -- queries --------------------------------------------------------------------------------------------------

    def artifact(self, _: Any, id: Any = None) -> NodeFields | None:
        """By id."""
        found = self._artifacts.get(str(id))
        return self._node(found) if found else None

    def client_mapping(self, _: Any, clientID: Any = None) -> NodeFields | None:
        """The id of an artifact by its client's."""
        found = self._artifacts.get(str(clientID))
        return {"serverID": found.id} if found else None

    def collection_by_id(self, _: Any, id: Any = None) -> NodeFields | None:
        """A collection by id."""
        known = parts_of(str(id), "Collection")
        return self._collection(RunPath(known[0], known[1], ""), known[2]) if known else None

    def of_run(self, at: RunPath, used: bool) -> list[NodeFields]:
        """What a run has used, or has logged."""
        return [self._node(one) for one in self._artifacts.of_run(at, used)]

    def of_project(self, at: RunPath) -> NodeFields:
        """The fields of a project that are about artifacts."""

        def types() -> list[str]:
            return list(dict.fromkeys(one.type for one in self._artifacts.versions(at.entity, at.project)))

        def membership(_: Any, name: Any = None) -> NodeFields | None:
            found = self._artifacts.named(at.entity, at.project, str(name))
            return self._membership(found) if found else None

        return {
            "artifact": self._named(at),
            "artifactCollectionMembership": membership,
            "artifactCollection": lambda _, name=None: self._collection(at, str(name)),
            "artifactCollections": self._collections(at),
            "artifactType": lambda _, name=None: self._type(at, str(name)),
            "artifactTypes": lambda _, first=None, after=None: connection(
                types(), lambda name: self._type(at, name), first, after
            ),
        }

    def _type(self, at: RunPath, name: str) -> NodeFields:
        kind = name
        return {
            "id": identifier("ArtifactType", at.entity, at.project, name),
            "name": name,
            "description": None,
            "createdAt": stamp(min((one.created for one in self._artifacts.versions(*at[:2], type=name)), default=0.0)),
            "artifact": self._named(at),
            "artifactCollection": lambda _, name=None: self._collection(at, str(name), kind),
            "artifactSequence": lambda _, name=None: self._collection(at, str(name), kind),
            "artifactCollections": self._collections(at, kind),
            "artifactSequences": self._collections(at, kind),
        }

    def _named(self, at: RunPath) -> Callable[..., NodeFields | None]:
        """The field that gives an artifact of a project by name."""

        def field(_: Any, name: Any = None, **more: Any) -> NodeFields | None:
            found = self._artifacts.named(at.entity, at.project, str(name))
            return self._node(found) if found else None

        return field

    def _collections(self, at: RunPath, kind: str = "") -> Callable[..., NodeFields]:
        """The field that gives the collections of a project, or those of one type of it."""

        def field(_: Any, first: Any = None, after: Any = None, filters: Any = None, order: Any = None) -> NodeFields:
            first_of: dict[str, ArtifactVersion] = {}
            for one in self._artifacts.versions(at.entity, at.project, type=kind):
                first_of.setdefault(one.collection, one)
            fields = (
                {"name": name, "type": one.type, "created_at": stamp(one.created)} for name, one in first_of.items()
            )
            found = selected(fields, filters, order)
            return connection(found, lambda one: self._collection(at, one["name"]), first, after)

        return field

    def _collection(self, at: RunPath, name: str, kind: str = "") -> NodeFields | None:
        versions = self._artifacts.versions(at.entity, at.project, name, kind)
        if not versions:
            return None
        aliases = [(alias, one) for one in versions for alias in one.aliases]

        def artifacts(
            _: Any, first: Any = None, after: Any = None, filters: Any = None, order: Any = None
        ) -> NodeFields:
            found = selected(map(_fields, reversed(versions)), filters, order)
            made = connection([one["artifact"] for one in found], lambda one: one, first, after)
            for edge in made["edges"]:
                edge |= {"version": f"v{edge['node'].number}", "node": self._node(edge["node"])}
            return made

        def membership(_: Any, aliasName: Any = None) -> NodeFields | None:
            found = self._artifacts.named(at.entity, at.project, f"{name}:{aliasName}")
            return self._membership(found) if found else None

        return {
            "__typename": "ArtifactSequence",
            "id": identifier("Collection", at.entity, at.project, name),
            "name": name,
            "description": None,
            "state": "READY",
            "createdAt": stamp(versions[0].created),
            "updatedAt": stamp(versions[-1].updated),
            "project": lambda _: self._project(at),
            "defaultArtifactType": lambda _: self._type(at, versions[-1].type),
            "tags": {"edges": []},
            "aliases": lambda _, first=None, after=None: connection(
                aliases, lambda pair: self._alias_node(*pair), first, after
            ),
            "artifacts": artifacts,
            "artifactMembership": membership,
            "latestArtifact": lambda _: self._node(versions[-1]),
        }

    def _alias_node(self, alias: str, version: ArtifactVersion) -> NodeFields:
        return {
            "id": identifier("Alias", *version.place, alias),
            "alias": alias,
            "artifactCollection": lambda _: self._of(version),
        }

    def _aliases(self, version: ArtifactVersion) -> list[NodeFields]:
        """The aliases of a version, its number among them."""
        own = [f"v{version.number}"] if version.state == "COMMITTED" else []
        return [self._alias_node(alias, version) for alias in (*version.aliases, *own)]

    def _of(self, version: ArtifactVersion) -> NodeFields | None:
        return self._collection(RunPath(version.entity, version.project, ""), version.collection)

    def _membership(self, version: ArtifactVersion) -> NodeFields:
        return {
            "id": identifier("Membership", version.id),
            "versionIndex": version.number,
            "createdAt": stamp(version.created),
            "aliases": self._aliases(version),
            "artifactCollection": lambda _: self._of(version),
            "artifact": lambda _: self._node(version),
            "files": lambda _, **asked: self._files(version, **asked),
        }

    def _node(self, version: ArtifactVersion) -> NodeFields:
        at = RunPath(version.entity, version.project, version.run)

        def manifest(_: Any) -> NodeFields | None:
            if not version.manifest:
                return None
            name = quote(version.manifest)
            file = {"id": version.manifest, "directUrl": f"{self._address()}/artifact-manifests/{name}"}
            return {"id": version.manifest, "file": file}

        def used_by(_: Any) -> NodeFields:
            paths = [RunPath(*path.split("/", 2)) for path in version.used_by]
            return connection([run for path in paths if (run := self._run(path))], lambda run: run)

        def sequence(_: Any) -> NodeFields:
            own = {
                "__typename": "ArtifactSequence",
                "name": version.collection,
                "project": self._project(at),
                "latestArtifact": None,
            }
            return self._of(version) or own

        return {
            "id": version.id,
            "digest": version.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "state": version.state,
            "description": version.description,
            "metadata": version.metadata if isinstance(version.metadata, str) else json.dumps(version.metadata or {}),
            "versionIndex": version.number if version.state == "COMMITTED" else None,
            "size": lambda _: sum(entry.size for entry in self._artifacts.entries(version)),
            "fileCount": lambda _: sum(1 for _ in self._artifacts.entries(version)),
            "commitHash": version.id[:8],
            "createdAt": stamp(version.created),
            "updatedAt": stamp(version.updated),
            "historyStep": version.history_step,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": False,
            "tags": [{"__typename": "Tag", "id": identifier("Tag", name), "name": name} for name in version.tags],
            "aliases": self._aliases(version),
            "artifactType": lambda _: self._type(at, version.type),
            "artifactSequence": sequence,
            "currentManifest": manifest,
            "createdBy": lambda _: self._run(at) if version.run else None,
            "usedBy": used_by,
            "artifactMemberships": {"edges": [{"node": self._membership(version)}]},
            "files": lambda _, **asked: self._files(version, **asked),
            "filesByManifestEntries": lambda _, **asked: self._files(
                version, names=[entry.get("name") for entry in asked.get("entries") or []] or None
            ),
        }

    def _files(self, version: ArtifactVersion, names: Any = None, first: Any = None, after: Any = None) -> NodeFields:
        found = [entry for entry in self._artifacts.entries(version) if not names or entry.name in names]

        def node(entry: ArtifactEntry) -> NodeFields:
            name, digest, size, reference = entry
            kept = f"{self._address()}/artifactsV2/local/{quote(version.entity)}/{version.id}/{digest}"
            url = reference or kept
            return {
                "id": identifier("ArtifactFile", version.id, name),
                "name": name,
                "displayName": name,
                "url": url,
                "directUrl": url,
                "sizeBytes": size,
                "storagePath": None if reference else f"wandb_artifacts/{digest}",
                "mimetype": mimetypes.guess_type(name)[0],
                "updatedAt": stamp(version.updated),
                "digest": digest,
                "md5": digest,
            }

        return connection(found, node, first, after)

    # -- mutations ------------------------------------------------------------------------------------------------

    def _create_type(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        at = RunPath(text_of(asked, "entityName"), text_of(asked, "projectName"), "")
        return {"artifactType": self._type(at, text_of(asked, "name"))}

    def _create(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        several = asked.get("artifactCollectionNames") or [""]
        names = asked.get("artifactCollectionName") or several[0]
        if len(several) > 1:
            raise Rejected("an artifact is in one collection here. Log it to each.", 200)
        if not names or "/" in str(names) or ":" in str(names):
            raise Rejected(f"an artifact needs a name without / and :, got {names!r:.80}.", 200)
        refuse_unsupported(asked)
        version = self._artifacts.create(
            deduplicate=asked.get("enableDigestDeduplication", True) is not False,
            entity=text_of(asked, "entityName"),
            project=text_of(asked, "projectName"),
            type=text_of(asked, "artifactTypeName"),
            collection=str(names),
            digest=text_of(asked, "digest"),
            client_id=text_of(asked, "clientID"),
            distributed=text_of(asked, "distributedID"),
            description=asked.get("description"),
            metadata=asked.get("metadata"),
            aliases=aliases_of(asked),
            tags=tags_of(asked.get("tags")),
            history_step=asked.get("historyStep"),
            run=text_of(asked, "runName"),
        )
        return {"artifact": self._node(version)}

    def _create_manifest(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        version = self._version(asked, "artifactID")
        name = f"{version.id}-{run_id()}.json"
        if asked.get("type") in (None, "FULL"):
            version.manifest = name
        else:
            version.parts.append(name)
            version.base = text_of(asked, "baseArtifactID") if asked["type"] == "INCREMENTAL" else ""
        self._artifacts.keep(version)
        return {"artifactManifest": self._manifest(name)}

    def _update_manifest(self, _: Any, input: Any = None) -> NodeFields:
        name = text_of(input_of(input), "artifactManifestID")
        version = self._artifacts.get(name.partition("-")[0])
        if version is None:
            raise Rejected(f"there is no manifest {name!r:.80}.", 200)
        if name not in version.parts:
            version.manifest = name
            self._artifacts.keep(version)
        return {"artifactManifest": self._manifest(name)}

    def _manifest(self, name: str) -> NodeFields:
        address, headers = self._upload()
        url = f"{address}/artifact-manifests/{quote(name)}"
        file = {"id": name, "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": headers}
        return {"id": name, "file": file}

    def _create_files(self, _: Any, input: Any = None) -> NodeFields:
        address, headers = self._upload()
        nodes = []
        for spec in input_of(input).get("artifactFiles") or []:
            digest = hexadecimal(text_of(spec, "md5"))
            there = self._artifacts.has(digest)
            version = self._version(spec, "artifactID")
            nodes.append(
                {
                    "id": identifier("ArtifactFile", version.id, text_of(spec, "name")),
                    "name": spec.get("name"),
                    "displayName": spec.get("name"),
                    "storagePath": f"wandb_artifacts/{digest}",
                    "uploadUrl": None if there else f"{address}/artifact-files/{version.id}/{digest}",
                    "uploadHeaders": headers,
                    "uploadMultipartUrls": None,
                    "artifact": {"id": version.id},
                }
            )
        return {"files": {"edges": [{"node": node} for node in nodes]}}

    def _commit(self, _: Any, input: Any = None) -> NodeFields:
        version = self._version(input_of(input), "artifactID")
        self._artifacts.commit(version)
        return {"artifact": self._node(version)}

    def _update(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        refuse_unsupported(asked)
        version = self._version(asked, "artifactID")
        for name in ("description", "metadata"):
            if asked.get(name) is not None:
                setattr(version, name, asked[name])
        less = tags_of(asked.get("tagsToDelete"))
        more = [*version.tags, *tags_of(asked.get("tagsToAdd"))]
        version.tags = [tag for tag in dict.fromkeys(more) if tag not in less]
        self._artifacts.keep(version)
        if asked.get("aliases") is not None:
            aliases = aliases_of(asked)
            self._artifacts.unalias(version, [one for one in version.aliases if one not in aliases])
            self._artifacts.alias(version, aliases)
        return {"artifact": self._node(version)}

    def _delete(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        version = self._version(asked, "artifactID")
        if version.aliases and not asked.get("deleteAliases"):
            raise Rejected(
                "an artifact with aliases is deleted with delete_aliases=True only; "
                f"{version.collection}:v{version.number} has {listed(version.aliases)}.",
                200,
            )
        self._artifacts.delete(version)
        return {"artifact": self._node(version), "success": True}

    def _use(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        version = self._version(asked, "artifactID")
        path = "/".join(text_of(asked, name) for name in ("entityName", "projectName", "runName"))
        if path not in version.used_by:
            version.used_by.append(path)
            self._artifacts.keep(version)
        return {"artifact": self._node(version)}

    def _add_aliases(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        self._artifacts.alias(self._version(asked, "artifactID"), aliases_of(asked))
        return {"success": True}

    def _delete_aliases(self, _: Any, input: Any = None) -> NodeFields:
        asked = input_of(input)
        self._artifacts.unalias(self._version(asked, "artifactID"), aliases_of(asked))
        return {"success": True}

    def _version(self, asked: Mapping[str, Any], name: str) -> ArtifactVersion:
        found = self._artifacts.get(text_of(asked, name))
        if found is None:
            raise Rejected(f"there is no artifact {text_of(asked, name)!r:.80}.", 200)
        return found


def _fields(version: ArtifactVersion) -> NodeFields:
    """A version as filters and orders know it."""
    return {
        "artifact": version,
        "version_index": version.number,
        "created_at": stamp(version.created),
        "updated_at": stamp(version.updated),
        "digest": version.digest,
        "state": version.state,
        "alias": version.aliases,
        "metadata": version.metadata,
    }
