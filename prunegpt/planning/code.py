"""A stage whose criterion is in a file names it by its place, with the hash of its content."""

from dataclasses import replace
from pathlib import Path

from prunegpt.errors import PruneGPTError
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.sources import find_local
from prunegpt.spec.code import CodePart
from prunegpt.spec.schema import FinetuneSpec, PruneSpec, StageConfig


def with_code(config: StageConfig, base: Path | None, files: Files) -> StageConfig:
    """The stage with the file of its criterion found, where it has one.

    Args:
        base: the spec's folder.

    Raises:
        PruneGPTError: there is no such file.
    """
    if isinstance(config, FinetuneSpec):
        return (
            config if config.prune is None else config.model_copy(update={"prune": _found(config.prune, base, files)})
        )
    return _found(config, base, files) if isinstance(config, PruneSpec) else config


def _found(prune: PruneSpec, base: Path | None, files: Files) -> PruneSpec:
    code = CodePart.of(prune.method)
    if code is None:
        return prune
    path = find_local(code.path, base)
    if path is None or not path.is_file():
        raise PruneGPTError(f"criterion {code}: {code.path} does not exist. Check its path.")
    return prune.model_copy(update={"method": str(replace(code, path=str(path), digest=files.hash(path)))})
