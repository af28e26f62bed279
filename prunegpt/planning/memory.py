"""How much memory a model takes for what is done with it, from its shapes alone: estimates. No torch.

docs/how-to/gpu.md has these formulas in words. They are compared with the bytes that a pretended device counts, for
families like GPT-2 and like Llama, which they come from. Python and libraries are not counted: about 0.7 GB.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunegpt.registry import ACTIVATIONS, GATHERED, GRADIENTS, MASK_MODES
from prunegpt.spec.methods import method_entry
from prunegpt.spec.names import Matrix, parameter_of
from prunegpt.spec.outline import Outline
from prunegpt.spec.repair import RepairSpec, mixes_tokens
from prunegpt.spec.schema import GradualSpec

FLOAT, HALF = 4, 2  # bytes of a number
CALIBRATED = {"cpu": 2**11, "cuda": 2**14}  # tokens that are calibrated on at a time, by device
EVALUATED = 2**11  # tokens that are evaluated on at a time, at least
CHUNK = {"cpu": 2**23, "cuda": 2**26}  # logits that an evaluation holds at a time
DISTILLED = {"cpu": 6 * 2**20, "cuda": 2**26}  # the same of a distillation
WHOLE = 2**27  # logits of a micro-batch, up to which fine-tuning holds all
BESIDE = frozenset({"live", "elsa"})  # modes that keep another number beside each weight
FISHER = 2**22  # entries of block inverses that oBERT holds at a time


@dataclass(frozen=True)
class Sizes:
    """What memory depends on. Those of a layer are of the one whose matrices are largest."""

    parameters: int
    products: int  # weights that inputs are multiplied by: all but embeddings that are looked up
    tied: int  # of those, embeddings that are the output layer too
    matrices: int  # weights of the matrices of all layers
    layers: int
    width: int  # of hidden states
    vocabulary: int
    layer: int  # weights of the matrices of a layer
    largest: int  # of one matrix
    inputs: int  # widths of the inputs of a layer's matrices, each input once
    read: int  # the same, each input as often as a matrix reads it
    outputs: int  # widths of their outputs
    inner: int  # the widest input
    grams: int  # entries of the Gram matrices of a layer, one for each distinct input
    gated: bool  # whether the feed-forward part multiplies two outputs, as Llama's
    attention: tuple[int, int] = (0, 0)  # weights of its matrices; widths of their inputs and outputs
    mlp: tuple[int, int] = (0, 0)  # the same

    @classmethod
    def of(cls, outline: Outline, *, width: int, vocabulary: int, active: int = 1) -> "Sizes":
        """Those of a model.

        Args:
            outline: its matrices; vectors are left out.
            width: of its hidden states.
            vocabulary: rows of its output layer.
            active: experts that a token is routed to.
        """
        layers: defaultdict[int, list[Matrix]] = defaultdict(list)
        for matrix in outline.matrices:
            if matrix.block is not None:
                layers[matrix.block].append(matrix)
        layer = max(layers.values(), key=lambda found: sum(map(_weights, found)), default=[])
        inputs: dict[tuple[str, int], int] = {}
        grams: dict[tuple[str, str, int], int] = {}
        read = outputs = wide = 0
        parts = {True: [0, 0], False: [0, 0]}  # of what mixes tokens, and of the rest: weights, widths
        inner = max((matrix.shape[1] for matrix in layer), default=1)
        for matrix in layer:
            (out, columns), parameter = matrix.shape, parameter_of(matrix.name)
            group, expert = parameter.removesuffix(".weight").rpartition(".")[0], matrix.name.removeprefix(parameter)
            grams[group, expert, columns] = columns**2
            part = parts[mixes_tokens(parameter.rpartition(f".{matrix.block}.")[2].partition(".")[0])]
            part[0] += out * columns
            if expert in ("", "[0]"):  # the other experts are as large
                times = active if expert else 1
                part[1] += (out + columns * ((group, columns) not in inputs)) * times
                inputs[group, columns] = columns * times
                read, outputs = read + columns * times, outputs + out * times
                wide += out // inner if out % inner == 0 else 0
        every = [one for found in layers.values() for one in found]
        return cls(
            parameters=sum(map(_weights, outline.matrices)),
            products=sum(_weights(one) for one in outline.matrices if not one.embedding or one.others),
            tied=sum(_weights(one) for one in outline.matrices if one.embedding and one.others),
            matrices=sum(map(_weights, every)),
            layers=len(layers),
            width=width,
            vocabulary=vocabulary,
            layer=sum(map(_weights, layer)),
            largest=max(map(_weights, layer), default=0),
            inputs=sum(inputs.values()),
            read=read,
            outputs=outputs,
            inner=inner,
            grams=sum(grams.values()),
            gated=wide > 1,
            attention=(parts[True][0], parts[True][1]),
            mlp=(parts[False][0], parts[False][1]),
        )


def _weights(matrix: Matrix) -> int:
    return matrix.shape[0] * matrix.shape[1]


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what is done with a model.

    Attributes:
        sizes: of the model.
        half: whether products are computed in bfloat16 or float16, with weights in float32.
        device: cuda, for any accelerator, or cpu, where more of it is in the host's memory.
        stored: bytes of a weight.
        heads: of a layer, where their attention maps are held, as in eager attention; else 0.
    """

    sizes: Sizes
    half: bool = False
    device: str = "cuda"
    stored: int = FLOAT
    heads: int = 0

    @property
    def weights(self) -> int:
        """The model as it is between two stages."""
        return self.stored * self.sizes.parameters

    @property
    def copies(self) -> int:
        """The weights as autocast copies them for products."""
        return HALF * self.sizes.products if self.half and self.stored == FLOAT else 0

    @property
    def _passing(self) -> int:
        """What a layer holds of a token at its widest, where nothing is kept for a backward pass."""
        size = self.sizes
        if size.gated:
            return (6 if self.half else 12) * size.inner + 16 * size.width
        return (16 if self.half else 20) * size.inner + 4 * size.width

    @property
    def _kept(self) -> int:
        """What a layer keeps of a token for the backward pass."""
        size = self.sizes
        if not self.half:
            return 4 * (size.inputs + size.outputs) + (
                8 * size.width + 4 * size.inner if size.gated else 12 * size.inner
            )
        return 2 * (size.read + size.outputs) + (
            12 * size.width + 2 * size.inner if size.gated else 4 * size.width + 12 * size.inner
        )

    def _mapping(self, length: int) -> int:
        """What a layer holds of a token while it makes attention maps."""
        return 8 * self.heads * length + 36 * self.sizes.width if self.heads else 0

    def evaluation(self, tokens: int, *, length: int = 0, alone: bool = False) -> int:
        """Of perplexity, on some tokens at a time.

        Args:
            length: tokens of a window, for attention maps.
            alone: whether the model is there for that alone, so that the weights of products are there once.
        """
        size = self.sizes
        head = (10 if self.half else 8) * min(tokens * size.vocabulary, CHUNK[self.device])
        once = 2 * HALF * (size.products - size.tied) if alone and self.half else 0
        return (
            self.weights
            + self.copies
            - once
            + max(head + 8 * tokens * size.width, tokens * self._passing, tokens * self._mapping(length))
        )

    def one_shot(
        self, method: str, needs: frozenset[str], windows: int, length: int, *, repair: RepairSpec | None = None
    ) -> int:
        """Of one-shot pruning by a method.

        Args:
            needs: what it is given, as its entry in the registry says.
            windows: of calibration.
            length: tokens of one.
            repair: of decoder layers; None: they are not repaired.
        """
        mending = self._repairing(windows, length, repair) if repair else 0
        if needs & GRADIENTS:
            single = windows if "gradients" in needs else 0
            whole = not single or repair or needs & ACTIVATIONS
            most = self._gradients(length, single) if whole else self._layerwise(length, single, streamed=False)
            return max(most, self.weights + mending)
        most = self._solving(method) if "gram" in needs else 17 * self.sizes.largest
        kept = self.sizes.matrices  # masks, which are kept on the host
        if needs & ACTIVATIONS:
            most = max(most, self._calibrating(windows, length, needs))
            kept += 4 * windows * length * self.sizes.width  # hidden states, likewise
        most = max(most, mending)
        return self.weights + most + (kept if self.device == "cpu" else 0)

    def streamed(self, method: str, needs: frozenset[str], windows: int, length: int) -> int:
        """Of the same on a device that holds one layer at a time; a CPU holds all, and gradients of one at a time."""
        if needs & GRADIENTS:
            single = windows if "gradients" in needs else 0
            return max(
                self._layerwise(length, single, streamed=True),
                self.streamed(method, needs - GRADIENTS, windows, length),
            )
        if not needs & ACTIVATIONS:
            return 0  # scored on the host
        most = self._solving(method) if "gram" in needs else 17 * self.sizes.largest
        return self.stored * self.sizes.layer + max(most, self._calibrating(windows, length, needs))

    def _calibrating(self, windows: int, length: int, needs: frozenset[str]) -> int:
        """Inputs of a layer's matrices, and what the layer holds beside them, of the tokens that are run at a time.

        Gram matrices of the layer before are there still, and so are its regional gradients.
        """
        if "regional_gradient" in needs:
            return self._regional(length) + (4 * self.sizes.grams if "gram" in needs else 0)
        size, tokens = self.sizes, min(windows * length, max(CALIBRATED[self.device], length))
        beside = (3 if size.gated else 4) * (size.inner + size.width)
        held = 4 * (size.inputs + beside) if self.stored == FLOAT else 2 * size.inputs + 12 * size.inner
        return tokens * max(held, self._mapping(length)) + (4 * size.grams if "gram" in needs else 0)

    def _regional(self, length: int) -> int:
        """Regional gradients of two layers, those of a window in its widest matrices, and what it keeps of its tokens.

        Until the second layer is seen, the first is scored.
        """
        size = self.sizes
        step = length * (self._kept + 6 * self.heads * length + 16 * size.inner + 12 * size.width)
        return 8 * size.layer + (9 + 2 * self.stored) * size.largest + step * self.stored // FLOAT

    def _repairing(self, windows: int, length: int, spec: RepairSpec) -> int:
        """Gradients, moments and masks of a scope, what it keeps of a step's tokens, and outputs of the dense one."""
        size, stored, tokens = self.sizes, self.stored, spec.batch_size * length
        maps, outputs = 4 * self.heads * length, stored * windows * length * size.width
        beside = 14 if stored == FLOAT else 18  # of a weight: beside one of few digits is a copy in float32
        if spec.scope == "block":
            kept = (self._kept + (16 if size.gated else 8) * size.inner) * stored // FLOAT
            return beside * size.layer + tokens * (kept + maps) + outputs
        weights, widths = size.mlp
        mlp = beside * weights + tokens * stored * (widths + 5 * size.inner)
        weights, widths = size.attention
        attention = beside * weights + tokens * (stored * widths + 28 * size.width + maps)
        dense = stored * size.layer + tokens * self._passing * stored // FLOAT  # the dense layer's outputs are taken
        of = {"mlp": mlp + outputs, "attention": max(attention, dense) + outputs}
        return of[spec.scope] if spec.scope in of else max(max(of.values()), mlp + 2 * outputs)

    def _solving(self, method: str) -> int:
        """The Gram matrices of a layer, what they are factored into, and what is computed with the widest of them."""
        size = self.sizes
        if method == "admm":
            return 4 * (3 * size.grams + size.inner**2 + 18 * size.largest)
        return 4 * (2 * size.grams + max(3 * size.inner**2, 4 * size.largest))

    def _gradients(self, length: int, single: int) -> int:
        """Sums of the gradients of all layers over windows; of `single` ones see `_surgery`."""
        size = self.sizes
        loss = max(12 * size.vocabulary, 16 * size.inner)
        layers = size.layers * (self._kept + 4 * self.heads * length)
        passing = length * ((layers + 12 * size.width) * self.stored // FLOAT + loss)
        return self.weights + 8 * size.matrices + max(4 * size.matrices, passing, self._surgery(single))

    def _layerwise(self, length: int, single: int, *, streamed: bool) -> int:
        """Losses without a layer, then the gradients of one layer and their sums, then what is solved with them.

        Args:
            streamed: whether the device holds what is computed with, and not the whole model.
        """
        size, away = self.sizes, streamed and self.device != "cpu"
        around, layer = (self.stored * (size.parameters - size.matrices), self.stored * size.layer)
        losses = length * (12 * size.vocabulary + 2 * self.stored * size.width)
        kept = self._kept + 4 * self.heads * length + 12 * size.width + 16 * size.inner
        back = 8 * size.layer + max(layer, length * kept * self.stored // FLOAT, self._surgery(single))
        return max((around if away else self.weights) + losses, (layer if away else self.weights) + back)

    def _surgery(self, single: int) -> int:
        """What oBERT solves a matrix with, some blocks of the Fisher matrix of `single` gradients at a time."""
        if not single:
            return 0
        largest = self.sizes.largest
        return 25 * min(64 * largest, FISHER) + 32 * single * min(largest, FISHER // 64)

    def training(
        self,
        tokens: int,
        *,
        length: int = 0,
        masks: int = 0,
        update: int = 0,
        optimizer: int = 8,
        distilled: int | None = None,
        checkpointing: bool = False,
        frozen: bool = False,
        processes: int = 1,
        sharded: bool = False,
    ) -> int:
        """Of fine-tuning and distillation.

        Args:
            tokens: of a micro-batch.
            length: of a sequence, for attention maps.
            masks: bytes that masks take for each weight of a matrix, see `mask_bytes`.
            update: bytes that a change of the masks takes beside the weights, see `updating`.
            optimizer: bytes of its state for a weight.
            distilled: bytes of the teacher that runs beside the student; 0: its logits are cached; None: no teacher.
            checkpointing: whether layers keep their inputs alone, and compute the rest again in the backward pass.
            frozen: whether an adapter is trained in place of the weights.
            processes: that train together, each on a device.
            sharded: whether each holds a part of the weights, gradients and moments. Else it holds all of them, and
                gradients a second time, in the buckets in which they are shared.
        """
        size, trained = self.sizes, 0 if frozen else self.sizes.parameters
        shards = processes if sharded else 1
        state = (self.weights + optimizer * trained + masks * size.matrices) // shards + self.copies
        if shards > 1:  # what is gathered at a time: two layers, the embedding and the output layer
            state += min(self.weights, self.stored * 2 * (size.layer + size.vocabulary * size.width))
        elif processes > 1:
            state += FLOAT * trained
        kept = self._kept + (6 if self.half else 4) * self.heads * length
        layers = 4 * size.layers * size.width + kept if checkpointing else size.layers * kept
        saved = tokens * (layers + 12 * size.width)
        logits, head = tokens * size.vocabulary, (6 if self.half else 4) * size.vocabulary * size.width
        if distilled is not None:
            loss = distilled + 24 * min(logits, DISTILLED[self.device]) + head + 8 * tokens * size.width
        elif logits > WHOLE:
            loss = 16 * min(logits, DISTILLED[self.device]) + head
        else:
            loss = max(12 * logits, 16 * tokens * size.inner)
        return max(state + saved + loss, state + max(4 * trained // shards, update) + (distilled or 0))

    def updating(self, prune: GradualSpec) -> int:
        """What a change of the masks in training takes beside the weights: that of one-shot pruning by its method."""
        seen = method_entry(prune.method).needs | MASK_MODES.entry(prune.mode).needs
        windows, length = prune.calibration.windows, prune.calibration.length or 1
        single = replace(self, half=False)
        return single.one_shot(prune.method, seen - GATHERED, windows, length) - self.weights


def mask_bytes(prune: GradualSpec | None, *, held: bool) -> int:
    """Bytes that masks in training take for each weight of a matrix: their own, and what they are chosen by.

    Args:
        prune: how masks change; None where they do not.
        held: whether earlier stages have pruned.
    """
    if prune is None:
        return int(held)
    mode = MASK_MODES.entry(prune.mode)
    gathered = len((method_entry(prune.method).needs | mode.needs) & GATHERED)
    return 1 + FLOAT * (gathered + (prune.mode in BESIDE))


def optimizer_bytes(train: Mapping[str, Any]) -> int:
    """Bytes that the optimizer of these training arguments keeps for each weight, about."""
    name = str(train.get("optim", "adamw_torch"))
    if name in ("sgd", "adafactor"):  # whose moments are none, or rows and columns
        return 0
    if name.endswith(("8bit", "4bit")):
        return 2
    return 4 if name in ("adagrad", "rmsprop") else 8
