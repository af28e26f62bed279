"""What stands in the environment for a reason is found neither in records nor in the database, logs or exports."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.redact import HIDDEN, is_secret, redact, secrets
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.support.here import Here

CANARIES = {
    "WANDB_API_KEY": "canary0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    "HF_TOKEN": "canary-of-the-hub-token",
    "AWS_SECRET_ACCESS_KEY": "canary/of+the/cloud==",
    "PGPASSWORD": "canary of the database",
}


@pytest.mark.parametrize("name", [*CANARIES, "OPENAI_API_KEYS", "db_password", "GITHUB_TOKEN", "GOOGLE_CREDENTIALS"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["HOME", "PATH", "PRUNEGPT_ROOT", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEY_BARS"])
def test_names_that_are_none(name: str) -> None:
    assert not is_secret(name)


@given(
    st.dictionaries(st.sampled_from([*CANARIES, "HOME"]), st.text(min_size=8, max_size=30), max_size=4),
    st.lists(st.text(max_size=10), min_size=2, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_no_secret_of_an_environment_is_left(environment: dict[str, str], parts: list[str]) -> None:
    text = "".join(part + value for part, value in zip(parts, environment.values(), strict=False))
    left = redact(text, environment)
    hidden = {secret for secret in secrets(environment) if secret not in HIDDEN}
    assert not [secret for secret in hidden if secret in left.replace(HIDDEN, "\x00")]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://me:pa55word@host/db", f"postgresql://{HIDDEN}@host/db"),
        ("https://x/y?a=1&token=abc123def&b=2", f"https://x/y?a=1&token={HIDDEN}&b=2"),
        ("Authorization: Bearer abcdefgh.ijkl", f"Authorization: Bearer {HIDDEN}"),
        (f"token hf_{'aB3' * 11} refused", f"token {HIDDEN} refused"),
        ("loss 0.123 at step 5 of sweep/trial: key 3f2a9c", "loss 0.123 at step 5 of sweep/trial: key 3f2a9c"),
        ("https://example.org:8080/path@x", "https://example.org:8080/path@x"),
    ],
)
def test_what_is_shaped_like_a_secret(text: str, left: str) -> None:
    assert redact(text, {}) == left


def test_short_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("a to b", {"SOME_KEY": "a", "SOME_TOKEN": "to"}) == "a to b"


def test_a_trial_that_fails_with_secrets_in_its_error_tells_none(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.stages import graph

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)

    def leak(*_: Any) -> Any:
        raise RuntimeError(f"cannot connect with {CANARIES} to https://user:canary-pass@host?token=canary-token")

    monkeypatch.setitem(graph.STAGES, "finetune", leak)
    root = Root(tmp_path / "runs")
    plan = plan_data({**spec, "trials": spec["trials"][:2]}, root=root)

    with Store.open(root) as store:
        outcome = run_sweep(plan, root, store, Here())
        result = store.result("small/finetuned")
    assert outcome.failed == ("small/finetuned",)
    assert "cannot connect with" in result.error
    assert HIDDEN in result.error
    record = AttemptRecord.read(root.path / result.folder / "record.json")
    assert "RuntimeError" in record.trace
    found = {
        path.relative_to(root.path)
        for path in root.path.rglob("*")
        if path.is_file() and b"canary" in path.read_bytes()
    }
    assert not found
    archive = shutil.make_archive(str(tmp_path / "export"), "tar", root.path)
    assert b"canary" not in Path(archive).read_bytes()
