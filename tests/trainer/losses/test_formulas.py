"""Every loss against its formula in plain Python, number by number, on random relations with random arguments. The
formulas are written from the papers (the codes, where docs/methods.md says so), not from the functions."""

import random
from collections.abc import Callable
from math import exp, log, sqrt
from types import SimpleNamespace as Record
from typing import Any

import pytest
from torch import Tensor

from tests.helpers.loss_cases import VARIANT_IDS, VARIANTS, every_column, every_leaf, loss
from tests.helpers.loss_relations import evaluate, random_relation
from trainer.losses import table_others
from trainer.losses.batch import Groups, Pairs, Responses, Singles
from trainer.losses.table import METHODS

Formula = Callable[..., float]
SEEDS = range(4)


def sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z))


def surprise(z: float) -> float:
    return -log(sigmoid(z))


def softmax(values: list[float]) -> list[float]:
    total = sum(exp(value) for value in values)
    return [exp(value) / total for value in values]


def noisy(z: float, e: float) -> float:
    return (1 - e) * surprise(z) + e * surprise(-z)


GPO: dict[str, Callable[[float], float]] = {
    "logistic": lambda z: log(1 + exp(-z)),
    "hinge": lambda z: max(0, 1 - z),
    "squared": lambda z: (1 - z) ** 2,
    "exponential": lambda z: exp(-z),
    "truncated_quadratic": lambda z: max(0, 1 - z) ** 2,
    "savage": lambda z: 1 / (1 + exp(z)) ** 2,
}
SLOPES: dict[str, Callable[[float, float], float]] = {
    "reverse_kl": lambda x, _: log(x) + 1,
    "forward_kl": lambda x, _: -1 / x,
    "js_divergence": lambda x, _: log(2 * x / (1 + x)),
    "alpha_divergence": lambda x, alpha: (1 - x**-alpha) / alpha,
}
"""`f'(x)` of the divergences in table 1 of arXiv:2309.16240."""


def imitation(p: Record, normalise: str) -> float:
    return -p.w.logp / {"response": p.w.n, "step": p.mean_n, "sum": 1}[normalise]


def squares(p: Record, target_w: float, target_l: float, combine: str) -> float:
    return ((p.a - target_w) ** 2 + (p.b - target_l) ** 2) / {"sum": 1, "mean": 2}[combine]


def kept_tail(p: Record, y: Record, alpha: float, apply_to: str) -> float:
    common = min(p.w.n, p.l.n)
    weights = [1 if t < common else alpha for t in range(y.n)]
    ref = weights if apply_to == "both" else [1] * y.n
    return sum(k * x - m * r for k, m, x, r in zip(weights, ref, y.tokens, y.ref_tokens, strict=False))


def wpo(p: Record, beta: float, clamp: bool) -> float:
    weight = 1.0
    for y in (p.w, p.l):
        weight *= exp(sum(x - c for x, c in zip(y.tokens[: y.n], y.collision, strict=False)) / y.n)
    return (min(weight, 1) if clamp else weight) * surprise(beta * p.delta)


def orpo(p: Record, odds_weight: float) -> float:
    p_w, p_l = exp(p.w.u), exp(p.l.u)
    return -p.w.u + odds_weight * surprise(log(p_w / (1 - p_w)) - log(p_l / (1 - p_l)))


def exo(p: Record, beta: float, label_smoothing: float, labels: str) -> float:
    q, wanted = sigmoid(beta * p.delta), (log(1 - label_smoothing), log(label_smoothing))
    log_w, log_l = wanted if labels == "normalised" else (0, -10)
    return q * (log(q) - log_w) + (1 - q) * (log(1 - q) - log_l)


def discopop(p: Record, beta: float, tau: float) -> float:
    z = beta * p.delta
    return (1 - sigmoid(z / tau)) * surprise(z) + sigmoid(z / tau) * exp(-z)


def mpo(
    p: Record, beta: float, preference_weight: float, quality_weight: float, nll_weight: float, **how: str
) -> float:
    quality = surprise(beta * p.a) + surprise(-beta * p.b)
    return preference_weight * surprise(beta * p.delta) + quality_weight * quality + nll_weight * imitation(p, **how)


PAIRS: dict[str, Formula] = {
    "dpo": lambda p, beta: -log(exp(beta * p.a) / (exp(beta * p.a) + exp(beta * p.b))),
    "cdpo": lambda p, beta, label_smoothing: noisy(beta * p.delta, label_smoothing),
    "robust": lambda p, beta, label_smoothing: (
        ((1 - label_smoothing) * surprise(beta * p.delta) - label_smoothing * surprise(-beta * p.delta))
        / (1 - 2 * label_smoothing)
    ),
    "dno": lambda p, eta: noisy(eta * p.delta, 1 - sigmoid(p.win_w - p.win_l)),
    "gpo": lambda p, beta, shape: GPO[shape](beta * p.delta),
    "hinge": lambda p, beta: max(0, 1 - beta * p.delta),
    "ipo": lambda p, tau, normalise: ((p.delta if normalise == "sum" else p.mean_delta) - 1 / (2 * tau)) ** 2,
    "online_ipo": lambda p, tau: (
        p.probability * (p.delta - 1 / (2 * tau)) ** 2 + (1 - p.probability) * (p.delta + 1 / (2 * tau)) ** 2
    ),
    "r_dpo": lambda p, beta, alpha: surprise(beta * p.delta - alpha * (p.l.n - p.w.n)),
    "dpo_norm": lambda p, beta: surprise(beta * p.mean_delta),
    "f_dpo": lambda p, beta, divergence, alpha: surprise(
        beta * (SLOPES[divergence](exp(p.a), alpha) - SLOPES[divergence](exp(p.b), alpha))
    ),
    "exo": exo,
    "discopop": discopop,
    "rebel": lambda p, eta, form: (p.delta / eta - (p.score_w - p.score_l)) ** 2 * (1 if form == "paper" else eta**2),
    "xpo": lambda p, beta, alpha: surprise(beta * p.delta) + alpha * (p.w if p.chosen_is_reference else p.l).logp,
    "dpop": lambda p, beta, penalty: surprise(beta * (p.delta - penalty * max(0, -p.a))),
    "sppo": lambda p, eta, combine: squares(p, eta * (p.win_w - 1 / 2), eta * (p.win_l - 1 / 2), combine),
    "sppo_hard": lambda p, eta, combine: squares(p, eta / 2, -eta / 2, combine),
    "sppo_single": lambda p, eta, combine: squares(
        p, eta * (p.probability - 1 / 2), eta * (1 / 2 - p.probability), combine
    ),
    "apo_zero": lambda p, beta: 1 - sigmoid(beta * p.a) + sigmoid(beta * p.b),
    "apo_down": lambda p, beta: sigmoid(beta * p.a) + 1 - sigmoid(beta * p.delta),
    "nca": lambda p, beta: surprise(beta * p.a) + (surprise(-beta * p.a) + surprise(-beta * p.b)) / 2,
    "bco_pair": lambda p, beta: surprise(beta * p.a) + surprise(-beta * p.b),
    "mpo": mpo,
    "tdpo1": lambda p, beta: surprise(beta * (p.delta - (p.l.kl - p.w.kl))),
    "tdpo2": lambda p, beta, alpha: surprise(beta * (p.delta - alpha * (p.l.kl - p.w.kl))),
    "wpo": wpo,
    "ld_dpo": lambda p, beta, **tail: surprise(beta * (kept_tail(p, p.w, **tail) - kept_tail(p, p.l, **tail))),
    "slic": lambda p, delta, nll_weight: max(0, delta - p.w.logp + p.l.logp) - nll_weight * p.w.logp,
    "hinge_raw": lambda p, gamma: max(0, 1 - gamma * (p.w.logp - p.l.logp)),
    "cpo": lambda p, beta, nll_weight, normalise: (
        surprise(beta * (p.w.logp - p.l.logp)) + nll_weight * imitation(p, normalise)
    ),
    "simpo": lambda p, beta, gamma_beta_ratio: surprise(beta * p.w.u - beta * p.l.u - gamma_beta_ratio * beta),
    "orpo": orpo,
    "nll": imitation,
    "unlikelihood": lambda p, alpha: -(p.w.logp - alpha * p.l.logp),
    "tr_dpo": lambda p, beta, alpha, tau: surprise(beta * p.delta),
}


def ranking(g: list[Record], beta: float, choices: str, normalise: str) -> float:
    terms = [-log(softmax([beta * y.h for y in g[k:]])[0]) for k in range(len(g) - 1)]
    return terms[0] if choices == "best" else sum(terms) / (len(terms) if normalise == "mean" else 1)


def d2o(g: list[Record], beta: float, alpha: float) -> float:
    *own, bad = g
    return surprise(beta * sum(y.h for y in own) / len(own) - alpha * bad.h)


def exo_rw(g: list[Record], beta: float, beta_r: float) -> float:
    ours, wanted = softmax([beta * y.h for y in g]), softmax([y.score / beta_r for y in g])
    return sum(p * log(p / q) for p, q in zip(ours, wanted, strict=True))


def infonca(g: list[Record], beta: float, alpha: float) -> float:
    wanted, ours = softmax([y.score / alpha for y in g]), softmax([beta * y.h for y in g])
    return -sum(p * log(q) for p, q in zip(wanted, ours, strict=True))


def nca_rw(g: list[Record], beta: float, alpha: float) -> float:
    wanted = softmax([y.score / alpha for y in g])
    return sum(p * surprise(beta * y.h) + surprise(-beta * y.h) / len(g) for p, y in zip(wanted, g, strict=True))


GROUPS: dict[str, Formula] = {
    "plackett_luce": ranking,
    "d2o": d2o,
    "exo_rw": exo_rw,
    "infonca": infonca,
    "nca_rw": nca_rw,
}


def by_label(s: Record, z: float, desirable_weight: float, undesirable_weight: float) -> float:
    return desirable_weight * (1 - sigmoid(z)) if s.good else undesirable_weight * (1 - sigmoid(-z))


def token_gain(s: Record, tau: float) -> float:
    """The value of a loss whose gradient is the policy gradient."""
    drift = sum((x - r) * x for x, r in zip(s.tokens, s.ref_tokens, strict=True))
    return tau * drift - (s.score - 1 / 2) * s.logp


SINGLES: dict[str, Formula] = {
    "apo_zero_unpaired": lambda s, beta, **weights: by_label(s, beta * s.h, **weights),
    "sft": lambda s, normalise: -s.logp / (s.n if normalise == "response" else 1),
    "retain_kl": lambda s: s.kl / s.n,
    "npo": lambda s, beta: 2 / beta * log(1 + exp(s.h) ** beta),
    "simnpo": lambda s, beta, gamma, gamma_times_beta: (
        -2 / beta * log(sigmoid(-beta / s.n * s.logp - gamma * (beta if gamma_times_beta else 1)))
    ),
    "dro_v": lambda s, tau: (s.score - s.value - tau * s.h) ** 2 / 2,
    "spo": lambda s, eta: (s.h - eta * (s.score - 1 / 2)) ** 2,
    "nash_md": lambda s, tau: -(s.score - 1 / 2 - tau * s.h) * s.logp,
    "nash_md_token": token_gain,
}


def kto(step: list[Record], beta: float, **weights: float) -> list[float]:
    z0 = max(0, sum(s.mismatched.h for s in step) / len(step))
    return [by_label(s, beta * (s.h - z0), **weights) for s in step]


def bco(step: list[Record], beta: float, momentum: float) -> list[float]:
    """The first step of a round: the running means are its own."""
    good, bad = ([beta * s.h for s in step if s.good is label] for label in (True, False))
    shift = (sum(good) / len(good) + sum(bad) / len(bad)) / 2
    return [surprise((1 if s.good else -1) * (beta * s.h - shift)) for s in step]


def matched(step: list[Record], x: list[float], y: list[float], beta: float, label_smoothing: float) -> list[float]:
    partner = dict(zip(sorted(x), sorted(y), strict=True))
    return [noisy(beta * (one - partner[one]), label_smoothing) for one in x]


STEPS: dict[str, Callable[..., list[float]]] = {
    "kto": kto,
    "bco": bco,
    "aot": lambda step, **smoothing: matched(
        step, [p.w.logp - p.l.logp for p in step], [p.w.ref - p.l.ref for p in step], **smoothing
    ),
    "aot_unpaired": lambda step, **smoothing: matched(step, [p.a for p in step], [p.b for p in step], **smoothing),
}


def plain(y: Responses, at: tuple[int, ...]) -> Record:
    """One response in plain numbers."""

    def one(column: Tensor | None) -> Any:
        return None if column is None else column[at].tolist()

    names = ("logp", "ref", "tokens", "ref_tokens", "kl", "collision", "value")
    record = Record(n=int(y.length[at]), **{name: one(getattr(y, name)) for name in names})
    record.u, record.h = record.logp / record.n, None if record.ref is None else record.logp - record.ref
    return record


def plain_pairs(pairs: Pairs) -> list[Record]:
    found = []
    for at in range(len(pairs.w.logp)):
        w, l = plain(pairs.w, (at,)), plain(pairs.l, (at,))  # noqa: E741
        names = ("score_w", "score_l", "win_w", "win_l", "probability", "margin", "chosen_is_reference")
        columns = {name: getattr(pairs, name) for name in names}
        p = Record(w=w, l=l, **{name: None if c is None else c[at].item() for name, c in columns.items()})
        p.mean_n = None if pairs.mean_length_w is None else pairs.mean_length_w.item()
        p.a, p.b, p.delta, p.mean_delta = w.h, l.h, w.h - l.h, w.h / w.n - l.h / l.n
        found.append(p)
    return found


def plain_singles(singles: Singles) -> list[Record]:
    found = []
    for at in range(len(singles.y.logp)):
        s = plain(singles.y, (at,))
        s.good = None if singles.good is None else bool(singles.good[at])
        s.score = None if singles.score is None else singles.score[at].item()
        s.mismatched = None if singles.mismatched is None else plain(singles.mismatched, (at,))
        found.append(s)
    return found


def plain_groups(groups: Groups) -> list[list[Record]]:
    found = []
    for g, row in enumerate(groups.present.tolist()):
        members = [plain(groups.y, (g, k)) for k, there in enumerate(row) if there]
        for k, member in enumerate(members):
            member.score = None if groups.score is None else groups.score[g, k].item()
        found.append(members)
    return found


def drawn(arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    """The arguments with every number between half and one and a half times its default; shares stay below 1."""
    rng = random.Random(seed)
    return {
        name: min(value * rng.uniform(0.5, 1.5), 0.99 if value < 1 else 1e9)
        if isinstance(value, float) and not isinstance(value, bool)
        else value
        for name, value in arguments.items()
    }


def test_every_loss_has_a_formula() -> None:
    assert PAIRS.keys() | GROUPS.keys() | SINGLES.keys() | STEPS.keys() | {"beta_dpo"} == METHODS.keys()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=VARIANT_IDS)
def test_losses_over_pairs(name: str, arguments: dict[str, Any], seed: int) -> None:
    pairs, given = every_column(*every_leaf(seed)), drawn(arguments, seed)
    expected = [PAIRS[name](p, **given) for p in plain_pairs(pairs)]
    assert loss(name, pairs, **given).tolist() == pytest.approx(expected, rel=1e-7)


CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "plackett_luce": {"choices": ("all", "best"), "normalise": ("sum", "mean")},
    "sft": {"normalise": ("response", "sum")},
    "simnpo": {"gamma_times_beta": (False, True)},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*GROUPS, *SINGLES, *STEPS, "tr_dpo"])
def test_losses_over_groups_singles_and_steps(name: str, seed: int) -> None:
    method = table_others.ROWS[name]
    relation = random_relation(method, seed=seed)
    given = drawn(method.settings().model_dump(), seed) | ({"gamma": 0.3} if name == "simnpo" else {})
    given |= {key: options[seed % 2] for key, options in CHOICES.get(name, {}).items()}
    if isinstance(relation, Groups):
        expected = [GROUPS[name](g, **given) for g in plain_groups(relation)]
    else:
        rows = plain_pairs(relation) if isinstance(relation, Pairs) else plain_singles(relation)
        each = SINGLES | PAIRS
        expected = STEPS[name](rows, **given) if name in STEPS else [each[name](row, **given) for row in rows]
    update = method.load_update()
    state = {} if update is None else {"state": update(relation, {}, **given)}
    assert method.load()(relation, **given, **state).tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("seed", range(12))
def test_beta_dpo(seed: int) -> None:
    """As the authors' code: beta from `mean(A[sample_index])`, running values updated before use."""
    relation = random_relation(table_others.ROWS["beta_dpo"], count=10, seed=seed)
    assert isinstance(relation, Pairs)
    before = {"mean": 0.4, "spread": 1.3, "steps": 6.0}
    update = table_others.ROWS["beta_dpo"].load_update()
    assert update is not None
    state = update(relation, before, momentum=0.9)
    values = evaluate("beta_dpo", relation, state=state, seed=seed, keep=0.7).tolist()
    gaps = [p.delta for p in plain_pairs(relation)]
    mean = sum(gaps) / 10
    spread = sqrt(sum((gap - mean) ** 2 for gap in gaps) / 9)
    assert (state["mean"], state["spread"]) == pytest.approx((0.36 + 0.1 * mean, 1.17 + 0.1 * spread))
    kept = [at for at, value in enumerate(values) if value > 0]
    assert len(kept) == 7
    beta = max(0.1 * (1 + 0.6 * (sum(gaps[at] for at in kept) / 7 - state["mean"])), 1e-3)
    expected = [10 / 7 * log(1 + exp(-beta * gap)) if at in kept else 0 for at, gap in enumerate(gaps)]
    assert values == pytest.approx(expected, rel=1e-7)
