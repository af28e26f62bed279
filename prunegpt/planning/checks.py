"""What can be wrong with a trial although every field of it is well formed. Messages only; no torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import UnknownPartError, listed, nearest, unknown
from prunegpt.planning.budget import DEFAULT_EPOCHS
from prunegpt.planning.facts import ModelFacts
from prunegpt.planning.outlines import is_words, layer_sizes, narrowed, outline_of, stored_matrices, unbuilt
from prunegpt.planning.rehearsed import refused
from prunegpt.planning.sources import has_chat_template, has_tokenizer, no_tokenizer, quantised_by, quantised_problem
from prunegpt.planning.texts import block_size_of, window_of
from prunegpt.recipes.learning_rate import Segment
from prunegpt.spec.adapter import adapter_problems
from prunegpt.spec.evaluate import length_problem, threads_problem
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.methods import reads_text
from prunegpt.spec.metrics import evaluation_of, is_measured, is_speed, is_task
from prunegpt.spec.part import Message
from prunegpt.spec.problems import hint_of, in_words
from prunegpt.spec.pruning import optimizer_problem, prune_problems
from prunegpt.spec.schema import (
    CalibrationSpec,
    DistillSpec,
    EvaluateSpec,
    FinetuneSpec,
    PruneSpec,
    StageConfig,
    TableSpec,
    TrialSpec,
)
from prunegpt.spec.sharding import sharding_problems
from prunegpt.spec.shrink import BudgetSpec, ShrinkSpec
from prunegpt.spec.shrinking import shrink_problems
from prunegpt.spec.training_arguments import training_problems

_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt"})  # more tokens than these are out of reach
_SHOWN = 6


def stage_problems(
    config: StageConfig, facts: ModelFacts | None, spec: TrialSpec, launcher: LauncherSpec
) -> Iterator[Message]:
    """What does not fit between a stage, the model as far as it is known, the trial and where it will run."""
    block_size = spec.data.block_size if spec.data else 0
    if isinstance(config, PruneSpec):
        yield from _pruning_problems(config, facts, block_size, {})
        return
    if isinstance(config, ShrinkSpec):
        wrong = list(shrink_problems(config, facts.config, *(layer_sizes(facts) or ()))) if facts else []
        yield from wrong
        if facts and not wrong and "refused" in (answered := narrowed(facts, config) or {}):
            yield "", answered["refused"]
        if config.budget and config.budget.measured:
            yield from _measuring_problems(config.budget, facts, launcher)
        if config.reads_text:
            yield from _window_problems(config.calibration, facts, block_size)
        return
    block_size = block_size_of(config.data, block_size)
    if message := _positions_problem(facts, block_size, "a training sequence"):
        yield "", message
    arguments = {**spec.train, **config.train}
    if config.prune:
        for path, message in _pruning_problems(config.prune, facts, block_size, _length(arguments)):
            yield f"prune.{path}".rstrip("."), message
        if message := optimizer_problem(config.prune.mode, str(arguments.get("optim", ""))):
            yield "train.optim", message
    if config.adapter:
        known = outline_of(facts) if facts else None
        for path, message in adapter_problems(
            config.adapter, known.matrices if known else None, prunes=config.prune is not None
        ):
            yield f"adapter.{path}".rstrip("."), message
    if isinstance(config, DistillSpec) and config.on_policy and 0 < block_size <= config.on_policy.new_tokens:
        yield (
            "on_policy.new_tokens",
            f"new_tokens must leave a prompt of a sequence, got {config.on_policy.new_tokens} of {block_size} tokens. "
            "Set fewer.",
        )
    yield from sharding_problems(config, arguments, spec.precision)
    ill_matched = list(training_problems(arguments, prunes=config.prune is not None))
    for name, message in ill_matched:
        yield f"train.{name}", message
    if not ill_matched:
        yield from refused(arguments, spec.device, spec.precision, launcher)
    for index, segment in enumerate(config.learning_rate):
        try:
            Segment.model_validate(segment)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            field = ".".join(str(step) for step in found["loc"]) or "it"
            told = f"{field} {in_words(found['msg'])}, got {found['input']!r}. {hint_of(found)}"
            yield f"learning_rate.{index}", f"a segment of a curve must be one of a recipe; {told}"


def _measuring_problems(budget: BudgetSpec, facts: ModelFacts | None, launcher: LauncherSpec) -> Iterator[Message]:
    if facts and (message := length_problem(budget.timing, facts.positions, facts.source)):
        yield "budget.speed", message
    if message := threads_problem(budget.timing):
        yield "budget.speed.threads", message
    if launcher.kind != "local":
        yield (
            "budget",
            f"{budget.limit[0]} is measured on the machine that plans the sweep; launcher {launcher.kind} runs trials "
            "elsewhere. Find the size there by `prunegpt shrink`, and write it as layers or ffn.",
        )


def evaluation_problems(
    spec: TrialSpec, facts: ModelFacts | None, launcher: LauncherSpec, place: Callable[[EvaluateSpec], str]
) -> Iterator[Message]:
    """What does not fit between the evaluations of a trial, its model and where it will run.

    Args:
        place: the path of an evaluation in the trial.
    """
    for one in spec.evaluations:
        if facts and one.speed and (message := length_problem(one.speed, facts.positions, facts.source)):
            yield f"{place(one)}.speed", message
        if one.speed and launcher.kind == "local" and (message := threads_problem(one.speed)):
            yield f"{place(one)}.speed.threads", message
        window = window_of(one, spec.data.block_size if spec.data else 0)
        if facts and not one.skip and one.kind == "text" and (message := window_problem(facts, window)):
            yield f"{place(one)}.block_size" if one.block_size else "data", message


def chat_problems(spec: TrialSpec, facts: ModelFacts | None) -> Iterator[Message]:
    """What chat messages and losses on responses lack: a chat template, or messages."""
    known = [("data", spec.data), *(("evaluate", one.data) for one in spec.evaluations)]
    for index, stage in enumerate(spec.stages):
        path, config = f"stages.{index}.{stage.kind}", stage.config
        calibrated = config.prune if isinstance(config, FinetuneSpec) else config
        if calibrated is not None:
            place = path if calibrated is config else f"{path}.prune"
            known.append((f"{place}.calibration.data", calibrated.calibration.data))
            sources = enumerate(calibrated.calibration.sources)
            known += [(f"{place}.calibration.sources.{number}.data", one.data) for number, one in sources]
        if not isinstance(config, FinetuneSpec):
            continue
        known.append((f"{path}.data", config.data))
        data = config.data or spec.data
        if config.loss_on == "responses" and data is not None and data.messages is None:
            yield (
                f"{path}.loss_on",
                "loss_on: responses needs chat messages; the dataset is plain text. Name their column as "
                "data.messages, or use loss_on: all.",
            )
    if facts and has_chat_template(facts.model.tokenizer or facts.model.source) is False:
        source = facts.model.tokenizer or facts.source
        prompts = [(path, data.generate) for path, data in known if data and data.generate]
        for path, data in [*known, *((f"{path}.generate.prompts", one.prompts) for path, one in prompts)]:
            if data is not None and data.messages is not None:
                yield (
                    f"{path}.messages",
                    f"chat messages need a tokeniser with a chat template; that of {source} has none. Name that of a "
                    f"chat model of the family as model.tokenizer, or put a chat_template.jinja beside it.",
                )


def _pruning_problems(
    prune: PruneSpec, facts: ModelFacts | None, block_size: int, length: Mapping[str, float | None]
) -> Iterator[Message]:
    known = outline_of(facts) if facts else None
    if facts and facts.files and known is None and (problem := unbuilt(facts)):
        yield "", f"transformers cannot build a model from the config: {problem}. Check config.json."
    yield from prune_problems(prune, known.matrices if known else None, length=length)
    try:
        calibrated = reads_text(prune)
    except UnknownPartError:  # a plug-in that does not load: reported above
        return
    if calibrated:
        yield from _window_problems(prune.calibration, facts, block_size)


def _window_problems(calibration: CalibrationSpec, facts: ModelFacts | None, block_size: int) -> Iterator[Message]:
    size = calibration.length or block_size_of(calibration.data, block_size)
    field = "calibration.length" if calibration.length else "block_size"
    if message := _positions_problem(facts, size, "a calibration window", field):
        yield "calibration", message


def _length(train: Mapping[str, Any]) -> dict[str, float | None]:
    """How long training is, by unit, as far as the arguments alone determine it."""
    steps = train.get("max_steps", -1)
    return {
        "epochs": None if steps > 0 else train.get("num_train_epochs", DEFAULT_EPOCHS),
        "steps": steps if steps > 0 else None,
        "fraction": 1.0,
    }


def window_problem(facts: ModelFacts, block_size: int) -> str | None:
    """Why perplexity cannot be measured on windows of that many tokens."""
    if facts.positions and block_size > facts.positions:
        return _too_long(facts, block_size, "an evaluation window")
    return None


def _positions_problem(facts: ModelFacts | None, length: int, what: str, field: str = "block_size") -> str | None:
    if facts is None:
        return None
    learned = (facts.config or {}).get("model_type") in _LEARNED_POSITIONS
    return _too_long(facts, length, what, field) if learned and facts.positions and length > facts.positions else None


def _too_long(facts: ModelFacts, length: int, what: str, field: str = "block_size") -> str:
    return (
        f"{what} must fit the {facts.positions} positions of {facts.source}; it has {length} tokens. Set {field} to "
        f"{facts.positions} or less."
    )


def model_problem(facts: ModelFacts) -> str | None:
    """Why a model cannot be pruned at all, as far as its config shows."""
    config = facts.config or {}
    if config.get("is_encoder_decoder"):
        return f"a model must be decoder-only; {facts.source} is an encoder-decoder. Use one such as GPT-2 or OPT."
    folder = Path(facts.model.source) if facts.files else None
    return quantised_problem(facts.source, quantised_by(config, folder))


def shape_problem(facts: ModelFacts) -> str | None:
    """Why the weights of a model are not those that its config asks for, as far as names and shapes show."""
    known = stored_matrices(facts)
    if not known:
        return None
    blocks = len({matrix.block for matrix in known if matrix.block is not None})
    rows, width = next((matrix.shape for matrix in known if is_words(matrix)), (None, None))
    told = [
        f"{asked} {what}, but its files hold {held}"
        for what, asked, held in (
            ("decoder layers", facts.blocks, blocks),
            ("rows of the embedding", facts.embedding_rows, rows),
            ("columns of the embedding", facts.embedding_width, width),
        )
        if asked is not None and held is not None and asked != held
    ]
    if not told:
        return None
    return (
        f"a model's files must hold exactly its weights; the config of {facts.source} asks for {' and '.join(told)}. "
        "Take config.json and weights from the same place."
    )


def tokenizer_problem(facts: ModelFacts) -> str | None:
    """Why a model has no tokeniser, or its tokeniser does not fit its embedding.

    Raises:
        ModelError: the tokeniser's file is damaged.
    """
    own = facts.files and not facts.model.tokenizer and not facts.model.trust_remote_code
    if own and not has_tokenizer(facts.files):
        return no_tokenizer(facts.source)
    return vocabulary_problem(facts.source, facts.vocabulary, facts.embedding_rows)


def vocabulary_problem(source: str, tokens: Mapping[str, int] | None, rows: int | None) -> str | None:
    """Why a vocabulary, token -> id, does not fit the rows of an embedding."""
    if tokens and rows and max(tokens.values()) >= rows:
        token = max(tokens, key=tokens.__getitem__)
        return (
            f"a tokeniser may use ids below the {rows} rows of the model's embedding; that of {source} has token "
            f"{token!r} = {tokens[token]}. Use the model's own tokeniser."
        )
    return None


def teacher_problem(student: ModelFacts, teacher: ModelFacts, block_size: int) -> str | None:
    """Why a teacher does not fit: its tokeniser is another (the first difference is named), or its window too short.

    Raises:
        ModelError: a tokeniser's file is damaged.
    """
    return _tokenizers_differ(student, teacher) or _positions_problem(teacher, block_size, "a teacher's window")


def _tokenizers_differ(student: ModelFacts, teacher: ModelFacts) -> str | None:
    if student.fingerprint == teacher.fingerprint or student.vocabulary is None or teacher.vocabulary is None:
        return None
    ours = {index: token for token, index in student.vocabulary.items()}
    theirs = {index: token for token, index in teacher.vocabulary.items()}
    for index in sorted({*ours, *theirs}):
        if ours.get(index) != theirs.get(index):
            return (
                f"a teacher must use the student's tokeniser; token {index} is {_token(ours, index)} in "
                f"{student.source} and {_token(theirs, index)} in {teacher.source}. Choose a teacher of the same "
                "family."
            )
    return None


def _token(tokens: Mapping[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "missing"


def table_problems(table: TableSpec, groups: list[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Rows and published figures that belong to no trial: a slip of the pen would show as a missing result."""
    for index, row in enumerate(table.rows):
        if not any(fnmatchcase(group, row.trial) for group in groups):
            yield (
                ("rows", index),
                f"a row must match a trial; {row.trial!r} matches none.{_trials(row.trial, groups)}",
            )
    for name in table.reported:
        if not any(fnmatchcase(group, name) for group in groups):
            message = f"a published figure must name a trial; {name!r} is none.{_trials(name, groups)}"
            yield ("reported", name), message
        shown = [column.value for column in table.columns]
        for column in table.reported[name]:
            if column not in shown and column != "perplexity":
                message = f"a published figure is of a column of its table; {unknown('column', column, shown)}"
                yield ("reported", name, column), message


def _trials(name: str, groups: list[str]) -> str:
    return f" Trials: {listed(nearest(name, groups), _SHOWN)}."


def unmeasured(metrics: Iterable[str], evaluations: Sequence[EvaluateSpec]) -> Iterator[str]:
    """What is wrong with metrics that no evaluation of a trial gives; of a group of tasks its members are not known."""
    texts = [one.called for one in evaluations if one.kind == "text" and not one.skip]
    speeds = [one.called for one in evaluations if one.speed and not one.skip]
    tasks = [task for one in evaluations for task in one.tasks or ()]
    for metric in metrics:
        if is_task(metric):
            if not tasks:
                yield f"{metric} is a score of tasks, and evaluate names none. Add evaluate.tasks, or remove it."
        elif is_speed(metric) and not speeds:
            yield f"{metric} is a speed, and evaluate measures none. Add evaluate.speed, or remove it."
        elif is_measured(metric) and not (texts or is_speed(metric)):
            why = "evaluate has no text" if tasks or speeds else "evaluate.skip is true"
            yield f"{metric} must be measured; {why}. Remove one."
        elif (name := evaluation_of(metric)) and name not in (known := speeds if is_speed(metric) else texts):
            yield f"{unknown('evaluation', name, filter(None, known))} It is asked for by {metric}."
