"""What the tests of the losses over pairs are fed: three hand-made pairs, a token-level toy, random pairs with every
column, and every loss with every choice among its words."""

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses.batch import Pairs, Responses
from trainer.losses.table_pairs import ROWS

#                 logp_w  logp_l  ref_w  ref_l  n_w  n_l
PAIRS = {
    "A": (-12.0, -15.0, -13.0, -14.0, 5.0, 6.0),  # a = 1, b = -1, Δ = 2: healthy
    "B": (-20.0, -26.0, -18.5, -21.0, 8.0, 10.0),  # a = -1.5, b = -5, Δ = 3.5: both below the reference
    "C": (-9.0, -7.5, -8.0, -8.25, 3.0, 6.0),  # a = -1, b = 0.75, Δ = -1.75: ranked wrongly
}


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def make_pairs(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64, **columns: Any) -> Pairs:
    """Pairs from rows like those of `PAIRS`; both log-prob sums take gradients."""
    logp_w, logp_l, ref_w, ref_l, n_w, n_l = (tensor(column, dtype) for column in zip(*rows, strict=True))
    w = Responses(logp_w.requires_grad_(), n_w, ref_w)
    l = Responses(logp_l.requires_grad_(), n_l, ref_l)  # noqa: E741
    return Pairs(w, l, **{name: tensor(values, dtype) for name, values in columns.items()})


def named(names: str = "ABC", **columns: Any) -> Pairs:
    return make_pairs(*(PAIRS[name] for name in names), **columns)


def loss(name: str, pairs: Pairs, **arguments: Any) -> Tensor:
    """One value per pair; the arguments are all of the loss's arguments."""
    values: Tensor = ROWS[name].load()(pairs, **arguments)
    assert values.shape == pairs.w.logp.shape
    return values


def gradients(values: Tensor, pairs: Pairs) -> tuple[list[float], list[float]]:
    """Of the sum over pairs, by both log-prob sums; 0 where the loss does not depend on one."""
    leaves = (pairs.w.logp, pairs.l.logp)
    found = torch.autograd.grad(values.sum(), leaves, retain_graph=True, materialize_grads=True)
    return found[0].tolist(), found[1].tolist()


def one_pair(limit: float) -> st.SearchStrategy[tuple[float, ...]]:
    """A row for `make_pairs`: log-probs from -limit to a little under 0, lengths from 1 to 50."""
    logp, length = st.floats(-limit, -0.01), st.integers(1, 50).map(float)
    return st.tuples(logp, logp, logp, logp, length, length)


# A vocabulary of three tokens; each row is the whole next-token distribution at a position of the response.
TOY_W = ([0, 1], [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]], [[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]])
TOY_L = (
    [2, 0, 1],
    [[0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.1, 0.7, 0.2]],
    [[0.4, 0.4, 0.2], [0.4, 0.3, 0.3], [0.2, 0.5, 0.3]],
)


def toy(chosen: Any = TOY_W, rejected: Any = TOY_L) -> Pairs:
    """One pair with all that a loss may ask about its tokens; the shorter response is padded."""
    return Pairs(_toy_response(*chosen), _toy_response(*rejected))


def _toy_response(ids: list[int], policy: list[list[float]], reference: list[list[float]]) -> Responses:
    policy_TV, reference_TV = tensor(policy), tensor(reference)
    positions, padding = range(len(ids)), [0.0] * (3 - len(ids))
    tokens = tensor([[*(policy_TV[t, ids[t]].log().item() for t in positions), *padding]]).requires_grad_()
    ref_tokens = tensor([[*(reference_TV[t, ids[t]].log().item() for t in positions), *padding]])
    collision = [*(policy_TV**2).sum(-1).log().tolist(), *padding]
    kl = (reference_TV * (reference_TV / policy_TV).log()).sum().reshape(1).requires_grad_()
    return Responses(
        tokens.sum(-1), tensor([len(ids)]), ref_tokens.sum(-1), tokens, ref_tokens, kl, tensor([collision])
    )


LENGTHS_W, LENGTHS_L = (4, 2, 1), (3, 4, 2)


def every_leaf(seed: int) -> list[Tensor]:
    """What carries a gradient, for three pairs: token log-probs [P, L] and KLs [P] of chosen and rejected."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [-torch.rand(3, 4, generator=generator, dtype=torch.float64) * 3 - 0.05 for _ in range(2)]
    kls = [torch.rand(3, generator=generator, dtype=torch.float64) * 2 for _ in range(2)]
    return [leaf.requires_grad_() for leaf in (*tokens, *kls)]


def every_column(tokens_w: Tensor, tokens_l: Tensor, kl_w: Tensor, kl_l: Tensor) -> Pairs:
    """Three pairs with whatever a loss may need, of lengths that differ; the rest is fixed."""
    return Pairs(
        _with_every_column(tokens_w, kl_w, LENGTHS_W, shift=0.3),
        _with_every_column(tokens_l, kl_l, LENGTHS_L, shift=-0.2),
        score_w=tensor([1.0, 0.4, 3.0]).to(tokens_w),
        score_l=tensor([0.2, 0.5, -1.0]).to(tokens_w),
        win_w=tensor([0.85, 0.6, 0.9]).to(tokens_w),
        win_l=tensor([0.25, 0.5, 0.0]).to(tokens_w),
        probability=tensor([0.8, 0.55, 1.0]).to(tokens_w),
        margin=tensor([0.8, 0.1, 4.0]).to(tokens_w),
        mean_length_w=tensor(7 / 3).to(tokens_w),
        chosen_is_reference=torch.tensor([True, False, True]),
    )


def _with_every_column(tokens: Tensor, kl: Tensor, lengths: tuple[int, ...], shift: float) -> Responses:
    length = torch.tensor(lengths)
    inside = torch.arange(tokens.shape[-1]) < length.unsqueeze(-1)
    fixed = torch.linspace(-2.5, -0.5, 12).reshape(3, 4).to(tokens)
    tokens, ref_tokens, collision = tokens * inside, (fixed + shift) * inside, fixed / 2 * inside
    return Responses(tokens.sum(-1), length, ref_tokens.sum(-1), tokens, ref_tokens, kl, collision)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every loss over pairs with its default numbers and every combination of its words and flags."""
    for name, method in ROWS.items():
        fields = method.settings.model_fields.items()
        options = [get_args(field.annotation) or _flags(field.default) for _, field in fields]
        for values in product(*options):
            yield name, dict(zip((key for key, _ in fields), values, strict=True))


def _flags(default: Any) -> tuple[Any, ...]:
    return (True, False) if isinstance(default, bool) else (default,)


VARIANTS = list(variants())
VARIANT_IDS = ["-".join((name, *(str(v) for v in args.values() if isinstance(v, str)))) for name, args in VARIANTS]
