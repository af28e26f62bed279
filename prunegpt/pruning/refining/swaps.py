"""SparseSwaps: a kept weight of a row and a pruned one change places where the layer's outputs come nearer by it."""

import torch
from torch import Tensor

_FEW = 16  # kept weights of a row whose partners are tried at a time
PAIRS = 1 << 18  # pairs that are tried at a time, so that they stay near a CPU's cache
_PAIRS_ACCELERATOR = 1 << 25
_ROUNDING = 1e-6  # of a row's error: a change that is no gain


def swaps(
    weight: Tensor, mask: Tensor, *, gram: Tensor, group: int, held: Tensor | None = None, max_swaps: int = 100
) -> Tensor:
    """Zimmer et al. 2025, "SparseSwaps", arXiv 2512.10922: 1-swaps by the Gram matrix, each row for itself.

    The error of a row is vᵀGv with v its pruned weights; let c = G·v. To prune p and keep u in its place changes it by
    2·w_p·c_p + w_p²·G_pp - 2·w_u·c_u + w_u²·G_uu - 2·w_p·w_u·G_pu. The pair with the least change is exchanged and c
    brought up to date, until no pair lowers the error.

    Not every pair is tried. What the exchanges of p come to at best is bounded by what they came to when they were last
    tried and by how far c has moved since. The 16 p with the lowest bounds are tried with all partners, and more of
    them where no exchange of these lowers the error. In rows of up to 16 weights that finds the best pair; in longer
    ones a pair that is nearly as good may come first. In the end no pair is left that lowers the error.

    Args:
        weight: [out, in].
        mask: bool [out, in], True = kept: where to start.
        gram: XᵀX, [in, in].
        group: inputs that follow one another among which weights are exchanged: M of a pattern N:M, else all.
        held: bool [out, in]; what is False stays pruned, and counts as zero.
        max_swaps: exchanges in a row, at most.

    Returns:
        bool [out, in], True = kept; as many in each group of each row as in `mask`.
    """
    weight, gram = weight.detach().float(), gram.float()
    open_weights = torch.ones_like(mask) if held is None else held  # [out, in]
    pairs = PAIRS if weight.device.type == "cpu" else _PAIRS_ACCELERATOR
    rows = max(1, pairs // (min(_FEW, weight.shape[1]) * group))
    parts = zip(torch.split(weight, rows), torch.split(mask, rows), torch.split(open_weights, rows), strict=True)
    return torch.cat([_Rows(*part, gram, group).exchanged(max_swaps) for part in parts])  # [out, in]


class _Rows:
    """Some rows of a matrix, and what exchanges in them come to. Tensors are [rows, in]."""

    def __init__(self, weight: Tensor, kept: Tensor, held: Tensor, gram: Tensor, group: int) -> None:
        self.gram, self.group = gram, group
        self.kept, self.held = kept.clone(), held
        self.weight = weight * held
        self.own = self.weight.square() * gram.diagonal()  # w²·G
        self.moved = self.weight.masked_fill(kept, 0) @ gram  # c
        self._look()
        size = self.own.sqrt()
        largest = -self._least_of_group(-size.masked_fill(self.gain.isinf(), 0))
        below = self.lose + self._least_of_group(self.gain) - 2 * size * largest  # as |G_pu| ≤ √(G_pp·G_uu)
        self.least = below.masked_fill(~kept, torch.inf)  # a bound of what exchanges of a kept weight change at best

    def _look(self) -> None:
        """What it changes to prune a weight, and to keep one that may be kept: infinity for others."""
        mixed = 2 * self.weight * self.moved
        self.lose = self.own + mixed
        self.gain = (self.own - mixed).masked_fill_(self.kept | ~self.held, torch.inf)

    def exchanged(self, most: int) -> Tensor:
        """The mask after at most as many exchanges in each row."""
        result = self.kept.clone()
        alive = torch.arange(len(result), device=result.device)  # [rows]: that are not done
        for _ in range(most):
            enough = (self.weight * self.moved).masked_fill_(self.kept, 0).sum(dim=1).clamp_(min=0) * -_ROUNDING
            p, change = self._best(enough)  # [rows] each
            better = change < enough  # [rows]
            if not bool(better.all()):
                result[alive[~better]] = self.kept[~better]
                for name in ("kept", "held", "weight", "own", "moved", "lose", "gain", "least"):
                    setattr(self, name, getattr(self, name)[better])
                alive, p = alive[better], p[better]
            if not len(alive):
                return result
            self._exchange(p)
        result[alive] = self.kept
        return result

    def _best(self, enough: Tensor) -> tuple[Tensor, Tensor]:
        """The kept weight of each row whose exchange changes its error least, and that change: [rows] each.

        Args:
            enough: [rows]; a change that is not below it is none.
        """
        change = torch.full_like(enough, torch.inf)  # [rows]
        p = torch.zeros_like(enough, dtype=torch.int64)  # [rows]
        left = torch.arange(len(p), device=p.device)  # [rows left]
        while len(left):
            bound, few = self.least[left].topk(min(_FEW, self.least.shape[1]), dim=1, largest=False)  # [left, few]
            found = self.lose[left].gather(1, few) + self._partners(left, few).amin(dim=2)  # [left, few]
            found.masked_fill_(bound.isinf(), torch.inf)  # where fewer are kept
            self.least[left[:, None], few] = found
            value, place = found.min(dim=1)  # [left]
            ahead = value < change[left]  # [left]
            p[left] = torch.where(ahead, few.gather(1, place[:, None])[:, 0], p[left])
            change[left] = torch.where(ahead, value, change[left])
            left = left[(change[left] >= enough[left]) & (self.least[left].amin(dim=1) < enough[left])]
        return p, change

    def _partners(self, rows: Tensor, few: Tensor) -> Tensor:
        """What it changes to keep each weight of their group in the place of some, without what their loss changes.

        Args:
            rows: [n].
            few: [n, few], inputs.

        Returns:
            [n, few, group].
        """
        place = few // self.group  # [n, few]
        near = self.gram.view(len(self.gram), -1, self.group)[few, place]  # [n, few, group]
        near *= self.weight[rows].gather(1, few).unsqueeze(2)
        if self.group == self.weight.shape[1]:
            others, gains = self.weight[rows, None], self.gain[rows, None]  # [n, 1, in]
        else:
            groups = (one.view(len(one), -1, self.group) for one in (self.weight, self.gain))
            others, gains = (one[rows[:, None], place] for one in groups)  # [n, few, group]
        return torch.addcmul(gains, near, others, value=-2)

    def _exchange(self, p: Tensor) -> None:
        """Exchanges p, [rows], for their best partners; bounds move by what a partner can have gained at most."""
        rows, first = torch.arange(len(p), device=p.device), p[:, None]
        u = self._partners(rows, first)[:, 0].argmin(dim=1) + p // self.group * self.group  # [rows]
        ours, theirs = self.weight.gather(1, first), self.weight.gather(1, u[:, None])  # [rows, 1]
        lose, gain = self.lose, self.gain
        self.moved += ours * self.gram[p] - theirs * self.gram[u]
        self.kept[rows, u] = True
        self._look()
        self.least += self.lose - lose + self._least_of_group(self.gain - gain.masked_fill(self.gain.isinf(), 0))
        self.kept[rows, p] = False
        self.gain[rows, p] = back = self.own[rows, p] - 2 * ours[:, 0] * self.moved[rows, p]
        alone = self.lose + back[:, None] - 2 * self.weight * ours * self.gram[p]  # with p as the partner
        groups = torch.arange(alone.shape[1], device=p.device) // self.group  # [in]
        apart = (groups != first // self.group) | ~self.kept
        self.least = torch.minimum(self.least, alone.masked_fill_(apart, torch.inf)).masked_fill_(~self.kept, torch.inf)
        self.least[rows, u] = self.lose[rows, u] + self._partners(rows, u[:, None]).amin(dim=(1, 2))

    def _least_of_group(self, values: Tensor) -> Tensor:
        """The least value of each group, at each of its inputs."""
        groups = values.view(len(values), -1, self.group)  # [rows, groups, group]
        return groups.amin(dim=2, keepdim=True).expand_as(groups).reshape(values.shape)
