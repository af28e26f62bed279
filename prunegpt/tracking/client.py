"""A W&B server as we ask it ourselves: to register sweeps and to read runs. One HTTP request a question."""

import base64
import json
import netrc
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prunegpt.access import kept_token
from prunegpt.errors import PruneGPTError
from prunegpt.root import Root

CLOUD = "https://api.wandb.ai"
VIEWER = "query Viewer { viewer { id } }"  # asks whether the server is there and knows the key
TIMEOUT = 30.0  # seconds a question may take
_UPSERT = """
mutation UpsertSweep($config: String, $description: String, $entityName: String, $projectName: String) {
  upsertSweep(input: {
    config: $config, description: $description, entityName: $entityName, projectName: $projectName
  }) {
    sweep { name project { name entity { name } } }
    configValidationWarnings
  }
}
"""


class TrackingError(PruneGPTError):
    """Weights & Biases, or what answers in its place, cannot be reached or refuses."""


@dataclass(frozen=True)
class Server:
    """Where W&B is and who we are there."""

    address: str
    key: str

    @classmethod
    def find(cls) -> "Server":
        """The one that the client would talk to: WANDB_BASE_URL and WANDB_API_KEY, else what `wandb login` has kept.

        Raises:
            TrackingError: there is no key.
        """
        address = (os.environ.get("WANDB_BASE_URL") or _kept_address() or CLOUD).rstrip("/")
        key = os.environ.get("WANDB_API_KEY") or _kept_key(address)
        if not key and urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1"):
            key = kept_token(Root.find()) or ""  # which `prunegpt serve` takes as a key
        if not key:
            raise TrackingError(
                f"W&B at {address} needs an API key; there is none. Set WANDB_API_KEY, or run `wandb login`; for "
                "`prunegpt serve` it is the token in the link that it printed."
            )
        return cls(address, key)

    def ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The `data` of the answer.

        Raises:
            TrackingError: no answer, or a refusal.
        """
        body = json.dumps({"query": query, "variables": dict(variables)}).encode()
        credentials = base64.b64encode(f"api:{self.key}".encode()).decode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Basic {credentials}",
            "User-Agent": "prunegpt",
        }
        request = urllib.request.Request(f"{self.address}/graphql", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            told = error.reason
            with suppress(ValueError):
                told = _message(json.load(error)) or told
            hint = "Check WANDB_API_KEY." if error.code in (401, 403) else "Try again later."
            raise TrackingError(f"W&B at {self.address} refused with {error.code}: {told} {hint}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise TrackingError(
                f"W&B at {self.address} cannot be reached: {reason}. Check WANDB_BASE_URL and the network."
            ) from error
        if told := _message(found):
            raise TrackingError(f"W&B at {self.address} refused: {told}")
        data: dict[str, Any] = found.get("data") or {}
        return data


def register(config: Mapping[str, Any], *, project: str, entity: str | None) -> str:
    """Registers a sweep; gives ENTITY/PROJECT/ID.

    Raises:
        TrackingError: the server cannot be reached, or takes no such sweep.
    """
    variables = {
        "config": json.dumps(config),
        "description": config.get("description"),
        "entityName": entity or os.environ.get("WANDB_ENTITY"),
        "projectName": project,
    }
    sweep = Server.find().ask(_UPSERT, variables)["upsertSweep"]["sweep"]
    return f"{sweep['project']['entity']['name']}/{sweep['project']['name']}/{sweep['name']}"


def is_ours(address: str) -> bool:
    """Whether a server is `prunegpt serve`, which reads the root itself."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/v1/health", timeout=2) as answer:
            found = json.load(answer)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("status") == "ok" and "version" in found


def _kept_address() -> str:
    """`base_url` of the client's settings file."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.join(os.path.expanduser("~"), ".config", "wandb")
    try:
        with open(os.path.join(folder, "settings"), encoding="utf-8") as file:
            found = re.search(r"^\s*base_url\s*=\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _kept_key(address: str) -> str:
    """What `wandb login` wrote into the netrc file."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(urlsplit(address).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return ""
    return str(found[2]) if found else ""


def _message(answer: Any) -> str:
    """What is wrong, by an answer; empty where nothing is."""
    if not isinstance(answer, dict):
        return ""
    if isinstance(errors := answer.get("errors"), list):
        return "; ".join(str(error.get("message")) for error in errors if isinstance(error, dict))
    return str(answer.get("error") or "")
