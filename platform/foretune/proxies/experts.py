"""A mixture of experts in place of the feed-forward, stacked: every weight has a first dimension of members.

Shapes
    K  members              T  positions    E  routed experts            G = K E  groups: an expert of a member
    B  sequences            D  width        k  of them active            M = K N k  assignments of a token to an expert
    N = B T, tokens         F  inner size of one expert                  R  rows that the experts multiply, at least M

A token goes through the k experts whose chances, a float32 softmax of the router's logits over all E, are largest.
Their outputs are added with those chances divided by their sum, as in Mixtral (Jiang et al. 2024, arXiv 2401.04088).
With k = 1 the chance itself is the weight (Fedus et al. 2021, arXiv 2101.03961, equation 2): divided by their sum it
would be 1, and no loss would reach the router. Shared experts are added with weight 1 (Dai et al. 2024, arXiv
2401.06066). No expert has a capacity and no token is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretune.parametrization import choose_multipliers
from foretune.proxies.layers import StackedLinear, activate
from foretune.records import DecoderSpec


class Experts(nn.Module):
    """Routed and shared experts of one block, for K members."""

    counts: Tensor
    """Tokens that went to each expert in this step, [K, E]; passes without gradients are not counted."""

    def __init__(self, model: DecoderSpec, members: int) -> None:
        """Weights are zero until the model is initialised."""
        super().__init__()
        if model.experts is None:
            raise ValueError("a mixture of experts needs model.experts, got None")
        experts = self.spec = model.experts
        self.gated = model.activation == "swiglu"
        self.router_scale = choose_multipliers(model).router
        self._into, parts = ("gate_up", 2) if self.gated else ("up", 1)
        self._auxiliary = torch.zeros(members)
        self.router = StackedLinear(members, model.width, experts.count)
        into = torch.zeros(members, experts.count, parts * experts.width, model.width)
        self.register_parameter(f"experts_{self._into}", nn.Parameter(into))
        self.experts_down = nn.Parameter(torch.zeros(members, experts.count, model.width, experts.width))
        if experts.shared:
            inner = experts.shared * experts.width
            self.add_module(f"shared_{self._into}", StackedLinear(members, model.width, parts * inner))
            self.shared_down = StackedLinear(members, inner, model.width)
        self.register_buffer("counts", torch.zeros(members, experts.count, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """K B T D to K B T D."""
        logits = self._score(x)
        chances = logits.softmax(dim=-1)
        weights, choices = chances.topk(self.spec.active, dim=-1)  # K N k
        if self.spec.active > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        first = torch.arange(len(x), device=x.device) * self.spec.count
        grouping = group_assignments((choices + first[:, None, None]).flatten(), len(x) * self.spec.count, len(x))
        self._auxiliary = self._account(logits, chances, grouping.counts.view(len(x), -1))
        mixed = self._mix(x.flatten(0, 2), weights, grouping).view_as(x)
        return mixed + self._share(x) if self.spec.shared else mixed

    def begin_step(self) -> None:
        """Forget the counts of the last step; the members may be others than then."""
        if len(self.counts) == len(self.router.weight):
            self.counts.zero_()
        else:
            self.counts = self.counts.new_zeros(len(self.router.weight), self.spec.count)

    def auxiliary_loss(self) -> Tensor:
        """The weighted balance and router losses of the last forward pass, [K]; 0 after one without gradients.

        Balance: E sum_e f_e P_e, which is 1 for an even load (Fedus et al. 2021, equations 4 to 6). P is the mean
        chance in this pass; f, the share of assignments, is a count and has no gradient. `global` takes f over the
        micro-batches of the step so far, `micro` over this one (Qiu et al. 2025, arXiv 2501.11873: experts that must
        be even within a few sequences cannot specialise). Router: the mean square of the log-sum-exp of its logits
        (Zoph et al. 2022, arXiv 2202.08906).
        """
        return self._auxiliary

    def load(self) -> Tensor:
        """Share of each expert in the assignments of the last step, [K, E]; zeros where there was no step."""
        return self.counts / self.counts.sum(dim=-1, keepdim=True).clamp(min=1)

    def violation(self) -> Tensor:
        """Load of the busiest expert over an even one, less 1, [K] (Wang et al. 2024, arXiv 2408.15664: MaxVio)."""
        return self.load().amax(dim=-1) * self.spec.count - 1

    def _score(self, x: Tensor) -> Tensor:
        """The router's logits K N E, in float32 under autocast too (Fedus et al. 2021, section 2.4)."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.router(x.float()).flatten(1, 2)
        return logits * self.router_scale

    def _account(self, logits: Tensor, chances: Tensor, counts: Tensor) -> Tensor:
        """Add to the counts of the step; the auxiliary losses [K]. Nothing of it where nothing is trained."""
        if not torch.is_grad_enabled():
            return logits.new_zeros(len(logits))
        self.counts += counts
        seen = counts if self.spec.balance == "micro" else self.counts
        shares = seen / seen.sum(dim=-1, keepdim=True)
        balance = self.spec.count * (shares * chances.mean(dim=1)).sum(dim=-1)
        weight = 0.0 if self.spec.balance == "none" else self.spec.balance_weight
        square = logits.logsumexp(dim=-1).square().mean(dim=1)
        return weight * balance + self.spec.router_z_weight * square

    def _mix(self, tokens: Tensor, weights: Tensor, grouping: Grouping) -> Tensor:
        """Tokens [K N, D] through their experts, each output times its weight K N k, to K N D."""
        assigned = tokens[:, None].expand(-1, self.spec.active, -1).flatten(0, 1)  # M D
        rows = assigned.index_select(0, grouping.sources)
        inner = activate(grouping.multiply(rows, getattr(self, f"experts_{self._into}")), gated=self.gated)
        outputs = grouping.multiply(inner, self.experts_down).index_select(0, grouping.places)
        return (outputs.view(*weights.shape, -1) * weights[..., None]).sum(dim=2)

    def _share(self, x: Tensor) -> Tensor:
        output: Tensor = self.shared_down(activate(getattr(self, f"shared_{self._into}")(x), gated=self.gated))
        return output


@dataclass(frozen=True)
class Grouping:
    """The assignments in the order of their groups, so that each expert multiplies its tokens at once."""

    counts: Tensor
    """Assignments of every group, [G]."""
    sources: Tensor
    """The assignment that each row holds, [R]."""
    places: Tensor
    """The row of each assignment, [M]."""
    sizes: tuple[int, ...] = ()
    """Rows of every group, one after the other; empty where rows lie in blocks."""
    owners: Tensor | None = None
    """The group of every block of rows."""

    def multiply(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Rows [R, inputs] times the matrix of their group in weights K E outputs inputs."""
        matrices = weights.flatten(0, 1)
        if self.owners is not None:
            return torch.bmm(rows.view(len(self.owners), -1, rows.shape[1]), matrices[self.owners].mT).flatten(0, 1)
        pairs = zip(torch.split(rows, list(self.sizes)), matrices.unbind(), strict=True)
        return torch.cat([part @ matrix.T for part, matrix in pairs])


def group_assignments(groups: Tensor, count: int, members: int) -> Grouping:
    """Order the assignments, given as the group of each in the order of the members, [M], into `count` groups.

    On a CPU group by group, which does no work twice. The sizes of the groups are then numbers of the host: on a GPU
    that would stop the queue in every block, and a compiler or a CUDA graph wants shapes that never change.
    """
    if groups.device.type == "cpu" and not torch.compiler.is_compiling():
        return group_by_size(groups, count)
    return group_in_blocks(groups, count, members)


def group_by_size(groups: Tensor, count: int) -> Grouping:
    """One row for every assignment."""
    order, places, counts = _sort(groups, count)
    return Grouping(counts, order, places, sizes=tuple(counts.tolist()))


def group_in_blocks(groups: Tensor, count: int, members: int) -> Grouping:
    """Blocks of equally many rows, each of one group, as in MegaBlocks (Gale et al. 2022, arXiv 2211.15841).

    All shapes follow from those of the input. A block is as long as an even load is, so that whatever the load, `count`
    partly filled blocks and as many full ones suffice: at most twice the products, and two copies of the weights. The
    length is an assumption: shorter blocks fill better and copy the weights more often.
    """
    _, places, counts = _sort(groups, count)
    size = -(-len(groups) // count)
    blocks = -(-counts // size)
    last = blocks.cumsum(0)
    shifts = (last - blocks) * size - (counts.cumsum(0) - counts)
    places = places + shifts[groups]
    owners = torch.searchsorted(last, torch.arange(count + -(-len(groups) // size), device=groups.device), right=True)
    owners = owners.clamp(max=count - 1)
    # A row without an assignment copies one of its own member, so that what is not a number there stays there.
    padding = owners // (count // members) * (len(groups) // members)
    sources = padding.repeat_interleave(size).scatter(0, places, torch.arange(len(groups), device=groups.device))
    return Grouping(counts, sources, places, owners=owners)


def _sort(groups: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The assignments by group, the place of each in that order, and how many each group has."""
    order = groups.argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = groups.new_zeros(count).scatter_add_(0, groups, torch.ones_like(groups))
    return order, places, counts
