"""Why a published figure of 1e9 or infinity is no perplexity: said wherever a table shows such a figure.

`tests/distill` reproduces it: the naive formula and ours on the same tensors.
"""

import math
from collections.abc import Iterable

from prunegpt.report.cells import Table

MARK = "no perplexity"  # how the footnote of such a figure begins
POSITIONS, TEMPERATURE, HARDNESS = 1024, 2.0, 0.5  # of the study


def is_shown(tables: Iterable[Table]) -> bool:
    """Whether some table shows such a figure."""
    return any(note.text.startswith(MARK) for table in tables for note in table.footnotes)


def blended(cross_entropy: float, divergence: float) -> float:
    """What was exponentiated, in nats: half the cross-entropy, and half the divergence summed over all positions.

    Args:
        cross_entropy: mean nats a token.
        divergence: mean nats a token between the softened distributions.
    """
    summed = TEMPERATURE**2 * POSITIONS * divergence
    return (1 - HARDNESS) * cross_entropy + HARDNESS * summed


def divergence_of(published: float, cross_entropy: float) -> float:
    """The mean divergence, nats a token, that a published figure stands for: `blended` read backwards."""
    return (math.log(published) - (1 - HARDNESS) * cross_entropy) / (HARDNESS * TEMPERATURE**2 * POSITIONS)


def explanation(published: float = 1.33e9, perplexity: float = 21.76) -> str:
    """The paragraph, as HTML: one figure of the study read backwards."""
    cross_entropy = math.log(perplexity)
    found = divergence_of(published, cross_entropy)
    return (
        '<h2 id="no-perplexity">Figures that are no perplexity</h2>\n'
        f"<p>A perplexity is exp of the mean cross-entropy of a token. The published figures of distilled rows are exp "
        f"of the training loss of distillation, {1 - HARDNESS:g} · CE + {HARDNESS:g} · T² · KL, whose divergence "
        f"was summed over the {POSITIONS:,} positions of a block and not averaged. A student {found:.4f} nats a token "
        f"from its teacher then shows exp({blended(cross_entropy, found):.2f}) = {published:.3g}, while its "
        f"perplexity may be {perplexity:g}; ten times that divergence shows "
        f"{math.exp(blended(cross_entropy, 10 * found)):.3g}, and past 709 nats the exponential is infinite. Here "
        f"perplexity is computed in one place, without teacher and without blended terms.</p>\n"
    )
