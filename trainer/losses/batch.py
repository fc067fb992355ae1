"""Inputs of the losses, in nats; None was not asked for by the loss's `needs`. `P` pairs, `S` singles, `G` groups of at
most `K` responses, `L` tokens of the longest response; `*N` is the relation's shape: `P`, `S` or `G, K`."""

from dataclasses import dataclass

from torch import Tensor


def given(column: Tensor | None, need: str) -> Tensor:
    """The column, present because the loss declares the need."""
    assert column is not None, f"the loss must declare the need `{need}`"
    return column


@dataclass(frozen=True, slots=True)
class Responses:
    """Model outputs for some responses. Only `logp`, `tokens`, `kl` and `value` carry a gradient."""

    logp: Tensor
    """[*N] log-prob summed over the response's tokens, under the policy."""
    length: Tensor
    """[*N] number of tokens that were summed, at least 1."""
    ref: Tensor | None = None
    """[*N] the same sum under the reference (need `reference`)."""
    tokens: Tensor | None = None
    """[*N, L] log-prob of each token under the policy, 0 after the response's end (need `tokens`)."""
    ref_tokens: Tensor | None = None
    """[*N, L] the same under the reference (needs `reference` and `tokens`)."""
    kl: Tensor | None = None
    """[*N] sum over positions of KL(reference || policy) over the whole vocabulary (need `sequence_kl`)."""
    collision: Tensor | None = None
    """[*N, L] log of the sum of squared probabilities over the vocabulary at each position, under the policy; 0 after
    the end (need `collision`)."""
    value: Tensor | None = None
    """[*N] the value network's prediction for the response's prompt (need `value`)."""

    @property
    def gap(self) -> Tensor:
        """`h = logp - ref`: how far the response has moved from the reference."""
        return self.logp - given(self.ref, "reference")

    @property
    def mean(self) -> Tensor:
        """`u = logp / length`: mean log-prob of a token."""
        return self.logp / self.length


@dataclass(frozen=True, slots=True)
class Pairs:
    """Chosen (w) and rejected (l) response of each pair; the columns come from the data."""

    w: Responses
    l: Responses  # noqa: E741  the literature's letter
    score_w: Tensor | None = None
    """[P] the judge's score of the chosen response (need `scores`)."""
    score_l: Tensor | None = None
    win_w: Tensor | None = None
    """[P] share of the prompt's responses that the chosen one beats, in [0, 1] (need `win_rates`)."""
    win_l: Tensor | None = None
    probability: Tensor | None = None
    """[P] probability that the chosen response is preferred to the rejected one (need `probability`)."""
    margin: Tensor | None = None
    """[P] by how much the chosen response is better (need `margin`)."""
    mean_length_w: Tensor | None = None
    """[] mean number of tokens of the chosen responses of the whole optimizer step."""
    chosen_is_reference: Tensor | None = None
    """[P] bool: the chosen response was sampled from the reference, not the rejected one (need `origin`)."""

    @property
    def delta(self) -> Tensor:
        """`Δ = a - b`, [P]."""
        return self.w.gap - self.l.gap

    @property
    def mean_delta(self) -> Tensor:
        """`a / n_w - b / n_l`, [P]: the same over mean token log-probs."""
        return self.w.gap / self.w.length - self.l.gap / self.l.length


@dataclass(frozen=True, slots=True)
class Singles:
    """Single responses with a label or a score."""

    y: Responses
    good: Tensor | None = None
    """[S] bool: desirable or not (need `labels`)."""
    score: Tensor | None = None
    """[S] (need `scores`)."""
    mismatched: Responses | None = None
    """[S] the response of another prompt of the step after this one's prompt (need `mismatched`)."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Up to K responses to each prompt, best first; shorter groups are padded."""

    y: Responses
    """Fields of shape [G, K]."""
    present: Tensor
    """[G, K] bool: False is padding (log-probs 0 and length 1 there)."""
    score: Tensor | None = None
    """[G, K] (need `scores`)."""
