"""Forward passes of policy, reference and value network over a step's rows. `R` responses of a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data import PreferenceData, Relation
from trainer.diagnostics import StepTotals
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.losses.batch import Responses
from trainer.model import Arithmetic
from trainer.objective import Objective
from trainer.parallel.team import ALONE, Team
from trainer.reference import RowReference
from trainer.relations import Placed, moved
from trainer.scorer import RowBatch, RowScorer, Scores, along_paths, to_batch
from trainer.tree.rows import Layout, Row, Step, encode_row


@dataclass(frozen=True, slots=True)
class StepContext:
    """What stays the same over all steps of a round."""

    scorer: RowScorer
    learner: Learner
    data: PreferenceData
    arithmetic: Arithmetic
    layout: Layout
    seed: int = 0
    team: Team = ALONE
    log_sampler: bool = False
    """Whether to log the difference between the policy's and the sampler's log-probs."""
    dropout: bool = False
    """Whether adapters leave out inputs in training steps."""

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.learner.objective

    def relations(self, step: Step) -> list[Relation]:
        """All relations of a step, in the order of its rows."""
        return [self.data.relations[relation.index] for row in step.rows for relation in row.relations]


@dataclass(frozen=True, slots=True)
class RowJob:
    """A row on the device, with its reference numbers."""

    row: Row
    batch: RowBatch
    reference: RowReference | None
    placed: list[Placed]
    encoded: int
    at: int
    """Its index among the step's rows."""
    idle: bool
    """Another process counts this row (`Turn.idle`)."""
    seed: int | None = None
    """In a training step with dropout: what the row's random numbers are drawn from, in every pass over it."""


def row_jobs(
    context: StepContext, step: Step, reference: Sequence[RowReference] | None, number: int | None = None
) -> Iterator[RowJob]:
    """This process's rows of the step, one after the other, as the model reads them; `number` is that of a training
    step."""
    arithmetic = context.arithmetic
    for at, idle in context.team.turns(len(step.rows)):
        row, scored = step.rows[at], None if reference is None else reference[at]
        encoded = encode_row(context.data, row, context.layout)
        batch = to_batch(encoded, device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
        placed = [(context.data.relations[relation.index], relation.places) for relation in row.relations]
        seed = None
        if number is not None and context.dropout:
            seed = (context.seed + 1_000_003 * number + 7_919 * at) % 2**63
        yield RowJob(row, batch, scored, placed, encoded.encoded, at, idle, seed)


def forward(context: StepContext, job: RowJob) -> tuple[Responses, Scores]:
    """Run policy, reference and value network over the row."""
    needs, batch, learner = context.objective.needs, job.batch, context.learner
    if job.seed is not None:
        torch.manual_seed(job.seed)
    live = learner.live
    logits = live.logits(batch) if live is not None and "sequence_kl" in needs else None
    scores: Scores = context.scorer(batch, collision="collision" in needs, entropy=True, reference_logits_NV=logits)
    ref = live.score(batch) if live is not None and live.moves else job.reference
    device, tokens = scores.sum_R.device, "tokens" in needs
    responses = Responses(
        logp=scores.sum_R,
        length=batch.length_R,
        ref=None if ref is None else ref.sum_R.to(device),
        tokens=along_paths(scores.token_K, batch.path_RL) if tokens else None,
        ref_tokens=None if ref is None or ref.tokens_RL is None else ref.tokens_RL.to(device),
        kl=scores.kl_R,
        collision=None if scores.collision_K is None else along_paths(scores.collision_K, batch.path_RL),
        value=None if learner.value is None else learner.value.of_row(context.data, job.row),
    )
    return responses, scores


@torch.no_grad()
def read_rows(
    context: StepContext, jobs: Sequence[RowJob], rows: int, totals: StepTotals, *, check_zero: bool = False
) -> list[Responses]:
    """Model outputs without gradients for `rows`, of which this process reads `jobs`; entropies go into `totals`."""
    mine: list[Responses] = []
    for job in jobs:
        responses, scores = forward(context, job)
        mine.append(responses)
        if check_zero:
            check_step_zero(responses, job.row, context.data)
        if not job.idle:
            totals.add(entropy_of(scores) | gap_of(context, job, responses))
    torch.clear_autocast_cache()  # weights that were cast without gradients must not serve training
    if context.team.size == 1:
        return mine
    rows_in_order = context.team.in_order([moved(responses, "cpu") for responses in mine], rows)
    return [moved(responses, context.arithmetic.device) for responses in rows_in_order]


def place_over(data: PreferenceData, rows: Sequence[Row]) -> list[Placed]:
    """The relations of these rows in the order of the data, so that random draws do not depend on the rows."""
    placed: dict[int, Placed] = {}
    before = 0
    for row in rows:
        for relation in row.relations:
            places = tuple(before + place for place in relation.places)
            placed[relation.index] = (data.relations[relation.index], places)
        before += row.responses
    return [placed[index] for index in sorted(placed)]


def prompts_of(data: PreferenceData, rows: Sequence[Row]) -> list[str]:
    """Ids of the prompts in these rows, for messages."""
    return sorted({data.groups[tree.group].id for row in rows for tree in row.trees})


def mean_length(data: PreferenceData, relations: Sequence[Relation], arithmetic: Arithmetic) -> Tensor:
    """[] mean number of tokens of the relations' first (for pairs: chosen) responses."""
    lengths = [data.length(relation.prompt_id, relation.responses[0]) for relation in relations]
    return torch.tensor(sum(lengths) / len(lengths), device=arithmetic.device)


def check_step_zero(responses: Responses, row: Row, data: PreferenceData) -> None:
    """TrainerError unless policy and reference agree exactly: every log-ratio must be 0."""
    worst = 0.0 if responses.ref is None else float(responses.gap.detach().abs().max())
    if worst != 0.0:
        raise TrainerError(
            f"Step-0 check failed: policy and reference are the same weights, yet a log-prob of the prompts "
            f"{', '.join(prompts_of(data, [row]))} differs by {worst:.3g} nat before the first update. The reference "
            "log-probs do not belong to this model and these rows, or the model's forward pass does not repeat exactly."
        )


def entropy_of(scores: Scores) -> dict[str, tuple[float, float]]:
    """The row's mean entropy as a sum over one row."""
    return {} if scores.entropy is None else {"entropy": (float(scores.entropy), 1.0)}


def gap_of(context: StepContext, job: RowJob, scored: Responses) -> dict[str, tuple[float, float]]:
    """Mean difference of policy and sampler log-probs (nats per token), as sums over responses and tokens."""
    if not context.log_sampler:
        return {}
    groups = ((context.data.groups[tree.group].responses, tree.responses) for tree in job.row.trees)
    responses = [members[index] for members, wanted in groups for index in wanted]
    known = [
        (abs(response.sampled_logp - logp), len(response.token_ids))
        for response, logp in zip(responses, scored.logp.detach().tolist(), strict=True)
        if response.sampled_logp is not None
    ]
    return {"sampler_gap": (sum(gap for gap, _ in known), float(sum(n for _, n in known)))} if known else {}
