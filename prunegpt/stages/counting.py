"""What the datasets of a plan come to before it runs: blocks, windows and tokens, and what is wrong with them.

Counts are kept in the root, so that a dataset is tokenised and torch is loaded for what was not counted before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from prunegpt import __version__
from prunegpt.builtin import BUILTIN_MODELS, is_builtin
from prunegpt.errors import DataError, InputError, PruneGPTError
from prunegpt.planning import hub
from prunegpt.planning.budget import evaluations, job_problems, own_text_note, train_tokens
from prunegpt.planning.fingerprint import Files, digest, version_of, versions
from prunegpt.planning.inputs import Inputs, text_files
from prunegpt.planning.sources import model_files
from prunegpt.root import Root, read_json, write_json
from prunegpt.spec.plan import PlannedEvaluation, StagePlan, TrialPlan
from prunegpt.spec.schema import DataSpec, FinetuneSpec, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Fields of a model that decide how a text is tokenised.
_TOKENIZED_BY = {"source", "revision", "tokenizer", "tokenizer_revision", "trust_remote_code", "code_revision"}

Wrong = tuple[TrialPlan, str, str]  # a trial, its field, the message
_Read = tuple[DataSpec, str]  # a dataset and its split
_Count = tuple[int, float | None]  # what there is, and the share of its tokens that the loss counts; None: all


@dataclass(frozen=True)
class Costs:
    """Counts over distinct stages. Tokens are None where a text or tokeniser is not at hand."""

    stages: int
    shared: int
    cached: int
    train_tokens: int | None
    train_tokens_remaining: int | None
    train_tokens_without_sharing: int | None
    evaluation_tokens: int | None
    unchecked: tuple[str, ...]


def total(counts: Iterable[int | None]) -> int | None:
    """The sum; None where one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def _reach(model: ModelSpec, data: DataSpec) -> list[str]:
    """Asks the hub for what counting needs, with a short time-out, before libraries wait for minutes.

    Returns:
        The commits that a model and a dataset of the hub have.

    Raises:
        Unreachable: it does not answer, and its cache has no copy.
    """
    source, commits = model.tokenizer or model.source, []
    if not is_builtin(source) and not Path(source).exists():
        commits.append(hub.commit(source, model.tokenizer_revision if model.tokenizer else model.revision))
    if data.path and not is_builtin(data.path):
        commits.append(hub.commit(data.path, data.revision, "dataset"))
    return commits


def _identity(stage: StagePlan) -> str:
    """What stands for the blocks that a stage trains on."""
    assert stage.data is not None
    loss_on = stage.training.loss_on if stage.training else ""
    return f"{stage.data.model_dump_json()}{_tokenizer_of(stage.model)}{loss_on}"


def _tokenizer_of(model: ModelSpec) -> str:
    return model.model_dump_json(include=_TOKENIZED_BY)


class Counting:
    """Counts sequences and windows, each dataset once: datasets are tokenised and cached in the root.

    What could not be counted is in `unchecked`, in words.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        self.unchecked: dict[str, None] = {}
        self._blocks: dict[str, int | None] = {}
        self._counted: dict[str, float | None] = {}  # dataset -> share of its tokens that the loss counts; None: all
        self._failed: dict[str, str] = {}  # dataset -> why it cannot be read as the spec asks

    def costs(self, trials: Sequence[TrialPlan]) -> Costs:
        """Stages and tokens of these trials."""
        users = Counter(stage.key for trial in trials for stage in {item.key: item for item in trial.stages}.values())
        stages = {stage.key: stage for trial in trials for stage in trial.stages}
        tokens = {key: self.training(stage) for key, stage in stages.items()}
        cached = {key for key in stages if self.root.is_published(key)}
        return Costs(
            stages=len(stages),
            shared=sum(1 for count in users.values() if count > 1),
            cached=len(cached),
            train_tokens=total(tokens.values()),
            train_tokens_remaining=total(count for key, count in tokens.items() if key not in cached),
            train_tokens_without_sharing=total(tokens[stage.key] for trial in trials for stage in trial.stages),
            evaluation_tokens=total(self._evaluations(trials)),
            unchecked=tuple(self.unchecked),
        )

    def wrong(self, trials: Sequence[TrialPlan], searched: Iterable[Sequence[TrialPlan]]) -> list[Wrong]:
        """What is wrong with trials, and with some that searches may suggest."""
        return [*self.problems(trials), *(one for tried in searched for one in self.search_problems(tried))]

    def problems(self, trials: Sequence[TrialPlan]) -> list[Wrong]:
        """What is wrong once blocks are counted: a trial, its field, the message; of each stage at its first trial."""
        found: dict[str, list[Wrong]] = {}
        for trial in trials:
            for index, stage in enumerate(trial.stages):
                if stage.training and stage.key not in found:
                    found[stage.key] = [
                        (trial, f"stages.{index - 1}.{stage.kind}.{path}".rstrip("."), message)
                        for path, message in job_problems(stage, self.blocks(stage))
                    ]
        return [*chain.from_iterable(found.values()), *self._dataset_problems(trials)]

    def _dataset_problems(self, trials: Sequence[TrialPlan]) -> Iterator[Wrong]:
        """Datasets that cannot be used as asked: no chat template, no bos, too little text for calibration."""
        seen: set[str] = set()
        for trial in trials:
            checked = [("evaluate", self._measured_on(one, trial.model)) for one in trial.evaluations]
            for index, stage in enumerate(trial.stages[1:]):
                path = f"stages.{index}.{stage.kind}"
                checked.append((f"{path}.data", self._trained_on(stage)))
                if stage.calibration:
                    place = path if stage.prune or stage.shrink else f"{path}.prune"
                    checked.append((f"{place}.calibration", self._calibrated_on(stage)))
            for path, identity in checked:
                if identity in self._failed and identity not in seen:
                    seen.add(identity)
                    yield trial, path, self._failed[identity]

    def _measured_on(self, plan: PlannedEvaluation, model: ModelSpec) -> str:
        if plan.evaluate.kind != "text":
            return ""
        self.evaluation(plan, model)
        return plan.key + _tokenizer_of(model)

    def _trained_on(self, stage: StagePlan) -> str:
        if stage.training is None or stage.data is None:
            return ""
        self.blocks(stage)
        return _identity(stage)

    def _calibrated_on(self, stage: StagePlan) -> str:
        """Draws the windows of a calibration where that may fail."""
        spec = stage.calibration
        assert spec is not None
        if any(part.data.generate for part in spec.parts):
            return ""
        identity = f"{spec.model_dump_json()}{_tokenizer_of(stage.model)}"

        def draw() -> _Count:
            from prunegpt.stages import text

            text.check_calibration(spec, self._tokenizer(stage.model), Inputs(None), self.root)
            return spec.windows, None

        read = [(part.data, part.split) for part in spec.parts]
        self._once(identity, "calibration windows", stage.model, read, draw)
        return identity

    def search_problems(self, examples: Sequence[TrialPlan]) -> list[Wrong]:
        """As `problems`, of a search: those of its first example where every example has some."""
        found = [self.problems([trial]) for trial in examples]
        return found[0] if found and all(found) else []

    def per_trial(self, examples: Sequence[TrialPlan]) -> tuple[int, int] | None:
        """Tokens to train of a search's trials, the fewest and the most of some examples; None where not known.

        A stage that all examples have is trained once for all of them, and is counted in each.
        """
        found = [total(self.training(stage) for stage in trial.stages) for trial in examples]
        known = [tokens for tokens in found if tokens is not None]
        return (min(known), max(known)) if known and len(known) == len(found) else None

    def shared(self, examples: Sequence[TrialPlan]) -> int:
        """Tokens to train of the stages that all of a search's trials have, as far as known: they are trained once."""
        keys = [{stage.key for stage in trial.stages} for trial in examples]
        first = examples[0].stages if examples else ()
        return sum(self.training(stage) or 0 for stage in first if all(stage.key in found for found in keys))

    def training(self, stage: StagePlan) -> int | None:
        if stage.kind == "pretrain":
            return self._pretraining(stage)
        if stage.training is None or stage.data is None:
            return 0
        return train_tokens(stage, self.blocks(stage), self._counted.get(_identity(stage)))

    def blocks(self, stage: StagePlan) -> int | None:
        """Of the text that a stage trains on: counted, or as the spec declares them where its files are elsewhere."""
        data = stage.data
        assert data is not None
        if data.generate is not None:
            return stage.declared_blocks  # how much is written is known once it is there
        here = data.files is not None or (data.path is not None and Path(data.path).exists())
        counted = self._count(stage) if here or not data.tokens else None
        return counted if counted is not None else stage.declared_blocks

    def own_texts(self, trials: Sequence[TrialPlan]) -> Iterator[str]:
        """What to know of distillations whose students write their own text."""
        for trial in trials:
            for stage in trial.stages:
                if stage.distill and (note := own_text_note(stage, self.blocks(stage))):
                    yield f"{trial.name}: {note}"

    def _pretraining(self, stage: StagePlan) -> int | None:
        recipe = BUILTIN_MODELS[stage.model.source].pretraining
        data = DataSpec(path=recipe.text, train_split=recipe.split, block_size=recipe.block_size)
        training = FinetuneSpec(train=recipe.arguments)
        as_finetune = stage.model_copy(update={"data": data, "finetune": training})
        return train_tokens(as_finetune, self._count(as_finetune))

    def _count(self, stage: StagePlan) -> int | None:
        data, loss_on = stage.data, stage.training.loss_on if stage.training else "all"
        assert data is not None

        def blocks() -> _Count:
            from prunegpt.stages import text

            packed = text.training_blocks(data, self._tokenizer(stage.model), self.root, Inputs(None), loss_on)
            counted = None if packed.counted is None else float(packed.counted[: data.max_train_blocks].mean())
            return len(packed.tokens), counted

        what, read = f"tokens of {data.path or 'the files'}", [(data, data.train_split)]
        return self._once(_identity(stage), what, stage.model, read, blocks)

    def _tokenizer(self, model: ModelSpec) -> "PreTrainedTokenizerBase":
        from prunegpt.stages import cache

        return cache.tokenizer(self.root, model, Inputs(None))

    def _evaluations(self, trials: Sequence[TrialPlan]) -> Iterator[int | None]:
        """Tokens that will be scored of each stage: after it, and while it trains; once where trials share it."""
        distinct = {
            (stage.key, one.key): (stage, one, trial.model)
            for trial in trials
            for stage in trial.stages
            for one in trial.evaluations
            if one.evaluate.kind == "text"
        }
        last = {trial.stages[-1].key for trial in trials if trial.stages}
        for (key, evaluation_key), (stage, one, model) in distinct.items():
            after = one.evaluate.after_each or key in last
            if not self.root.is_measured(key, evaluation_key):
                times = 0 if self.root.is_published(key) else self.evaluations(stage)
                tokens = self.evaluation(one, model)
                yield None if times is None or tokens is None else tokens * (after + times)

    def watched(self, trials: Sequence[TrialPlan]) -> int:
        """How often a stage of these trials is evaluated while it trains, at most."""
        return max((self.evaluations(stage) or 0 for trial in trials for stage in trial.stages), default=0)

    def evaluations(self, stage: StagePlan) -> int | None:
        """How often a stage is evaluated while it trains."""
        return evaluations(stage, self.blocks(stage)) if stage.training and stage.data else 0

    def evaluation(self, plan: PlannedEvaluation, model: ModelSpec) -> int | None:
        """Tokens that one measurement of a perplexity scores."""

        def tokens() -> _Count:
            from prunegpt.stages import text

            windows = text.evaluation_windows(plan.evaluate, self._tokenizer(model), Inputs(None))
            return int(windows.scored_tokens.sum()), None

        assert plan.evaluate.data is not None
        read = [(plan.evaluate.data, plan.evaluate.split)]
        return self._once(plan.key + _tokenizer_of(model), "tokens to evaluate", model, read, tokens)

    def _once(
        self, identity: str, what: str, model: ModelSpec, read: Sequence[_Read], count: Callable[[], _Count]
    ) -> int | None:
        """The count, asked for once; None where the model or text is not at hand."""
        if identity not in self._blocks:
            self._blocks[identity] = None
            try:
                commits = [commit for data, _ in read for commit in _reach(model, data)]
                self._blocks[identity], self._counted[identity] = self._kept(identity, model, read, commits, count)
            except hub.Unreachable:
                pass  # the plan has said so
            except InputError as error:
                self.unchecked[f"{what}: {error}"] = None
            except DataError as error:
                self._failed[identity] = str(error)
            except PruneGPTError as error:
                self.unchecked[f"{what}: {error}"] = None
        return self._blocks[identity]

    def _kept(
        self, identity: str, model: ModelSpec, read: Sequence[_Read], commits: list[str], count: Callable[[], _Count]
    ) -> _Count:
        """The count, from the root where it has that of the same content, by the same versions."""
        try:
            files = dict.fromkeys([*model_files(model), *chain.from_iterable(text_files(*one) for one in read)])
            content = [identity, commits, [(str(file), self._files.hash(file)) for file in files]]
        except OSError:  # a folder that is read as a dataset
            return count()
        libraries = {**versions(), "datasets": version_of("datasets"), "prunegpt": __version__}
        place = self.root.data / f"count-{digest([*content, libraries])}.json"
        with suppress(OSError, ValueError, TypeError):
            found, counted = read_json(place)
            return int(found), counted
        made = count()
        with suppress(OSError):  # somebody else's root: nothing is kept
            write_json(place, made)
        return made

    @cached_property
    def _files(self) -> Files:
        return Files(self.root)
