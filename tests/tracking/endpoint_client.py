"""A client of the W&B endpoint that speaks as wandb-core does, without it."""

import json
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from prunegpt.root import Root
from prunegpt.tracking.endpoint.app import WandbServer
from prunegpt.tracking.endpoint.artifacts import ARTIFACTS, Artifacts

GRID = {"method": "grid", "program": "train.py", "parameters": {"lr": {"values": [0.1, 0.01]}}}


_PROJECT = "project { id name entity { id name } }"


DOCUMENTS = {  # as the client sends them, each with its variables
    "Viewer": "query Viewer { viewer { id entity username email flags teams { edges { node { name } } } } }",
    "UpsertSweep": f"""
        mutation UpsertSweep($id: ID, $config: String, $description: String, $entityName: String, $projectName: String,
                             $controller: JSONString, $state: String, $displayName: String) {{
          upsertSweep(input: {{
            id: $id, config: $config, description: $description, entityName: $entityName, projectName: $projectName,
            controller: $controller, state: $state, displayName: $displayName,
          }}) {{ sweep {{ name {_PROJECT} }} configValidationWarnings }}
        }}""",
    "SweepWithRuns": """
        query SweepWithRuns($entity: String, $project: String, $sweep: String!, $specs: [JSONString!]!) {
          project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) {
            id name method state description config createdAt heartbeatAt updatedAt earlyStopJobRunning bestLoss
            controller scheduler
            runs { edges { node {
              name state config exitcode heartbeatAt shouldStop failed stopped running summaryMetrics
              sampledHistory(specs: $specs)
            } } }
          } }
        }""",
    "CreateAgent": """
        mutation CreateAgent($host: String! $projectName: String, $entityName: String, $sweep: String!) {
          createAgent(input: {
            host: $host, projectName: $projectName, entityName: $entityName, sweep: $sweep,
          }) { agent { id } }
        }""",
    "Heartbeat": """
        mutation Heartbeat($id: ID!, $metrics: JSONString, $runState: JSONString) {
          agentHeartbeat(input: {id: $id, metrics: $metrics, runState: $runState}) { agent { id } commands }
        }""",
    "UpsertBucket": f"""
        mutation UpsertBucket($id: String, $name: String, $project: String, $entity: String, $groupName: String,
                              $displayName: String, $config: JSONString, $sweep: String, $summaryMetrics: JSONString,
                              $tags: [String!], $notes: String, $jobType: String, $host: String) {{
          upsertBucket(input: {{
            id: $id, name: $name, groupName: $groupName, modelName: $project, entityName: $entity,
            displayName: $displayName, config: $config, sweep: $sweep, summaryMetrics: $summaryMetrics,
            tags: $tags, notes: $notes, jobType: $jobType, host: $host
          }}) {{
            bucket {{ id name displayName description config sweepName {_PROJECT} historyLineCount }} inserted
          }}
        }}""",
    "RunResumeStatus": """
        query RunResumeStatus($project: String, $entity: String, $name: String!) {
          model(name: $project, entityName: $entity) {
            id name entity { id name }
            bucket(name: $name, missingOk: true) {
              id name summaryMetrics displayName logLineCount historyLineCount eventsLineCount historyTail eventsTail
              config tags notes wandbConfig(keys: ["t"])
            }
          }
        }""",
    "CreateRunFiles": """
        mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
          createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
            runID uploadHeaders files { name uploadUrl }
          }
        }""",
    "DeleteEverything": "mutation DeleteEverything($id: ID) { deleteEverything(input: {id: $id}) { success } }",
}


class Client:
    """Asks as wandb-core does.

    Args:
        artifacts: bytes that all artifacts may take.
    """

    def __init__(self, root: Root, artifacts: int = ARTIFACTS) -> None:
        self.root = root
        self.endpoints = [WandbServer(root, artifacts=Artifacts(root, artifacts))]
        self.http = TestClient(Starlette(routes=self.endpoints[0].routes()))

    def after_restart(self) -> "Client":
        """Asks another server of the root; the first has ended without a word."""
        again = Client(self.root)
        self.endpoints += again.endpoints
        return again

    def ask(self, operation: str, /, **variables: Any) -> Any:
        asked = {"query": DOCUMENTS[operation], "variables": variables, "operationName": ""}
        answer = self.http.post("/graphql", json=asked)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if found.get("errors"):
            raise AssertionError(found["errors"][0]["message"])
        return found["data"]

    def sweep(self, config: Any = GRID) -> str:
        made = self.ask("UpsertSweep", config=json.dumps(config), entityName=None, projectName="mine")
        name: str = made["upsertSweep"]["sweep"]["name"]
        return name

    def heartbeat(self, agent: str, *alive: str) -> list[dict[str, Any]]:
        states = json.dumps(dict.fromkeys(alive, True))
        told = self.ask("Heartbeat", id=agent, metrics="{}", runState=states)
        commands: list[dict[str, Any]] = json.loads(told["agentHeartbeat"]["commands"])
        return commands

    def stream(
        self, run: str, rows: list[dict[str, Any]], offset: int = 0, at: str = "local/mine", **more: Any
    ) -> None:
        history = {"offset": offset, "content": [json.dumps(row) for row in rows]}
        body = {"files": {"wandb-history.jsonl": history, **more.pop("files", {})}, **more}
        assert self.http.post(f"/files/{at}/{run}/file_stream", json=body).status_code == 200
