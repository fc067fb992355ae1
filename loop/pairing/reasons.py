"""Descriptions of prompt outcomes and response reasons, with advice on what to change."""

from collections.abc import Mapping

PROMPT_OUTCOMES = {
    "paired": "used",
    "all_correct": "all-correct",
    "all_wrong": "all-wrong",
    "all_tied": "all-tied",
    "within_margin": "within the margin that pairs must exceed",
    "truncated": "one-sided once truncated responses were dropped",
    "length_gap": "without a pair of similar lengths (pairs.max_length_gap)",
    "near_duplicate": "without a pair that differs enough (pairs.min_edit_distance)",
    "no_gold": "without a gold answer",
    "no_negative": "without an answer known to be bad",
    "equals_gold": "answered with the answer from the data alone",
    "no_games": "without two responses that met",
    "no_score": "without any score",
    "balance": "over the share of their solve rate (pairs.balance)",
    "over_cap": "over pairs.max_pairs",
}
"""Outcomes of prompts, with their descriptions."""

RESPONSE_REASONS = {
    "used": "in at least one pair, single or group",
    "unused": "fit to be used, but other responses were taken",
    "balance": "its pairs were over the share of its solve rate (pairs.balance)",
    "over_cap": "its pairs were over pairs.max_pairs",
    "abstain": "the judge could not tell",
    "error": "the judge failed",
    "duplicate": "same tokens as an earlier response of the prompt",
    "equals_gold": "same tokens as the gold answer, or as the bad one",
    "truncated": "cut off at max_tokens (pairs.drop_truncated)",
    "tied": "its possible partners score the same",
    "within_margin": "its possible partners are within pairs.min_margin",
    "length_gap": "its possible partners are longer or shorter by more than pairs.max_length_gap",
    "near_duplicate": "its possible partners are nearly the same (pairs.min_edit_distance)",
    "not_accepted": "rejected by rejection sampling",
    "no_games": "no decided game against another response",
    "prompt_all_correct": "no wrong response to the prompt",
    "prompt_all_wrong": "no correct response to the prompt",
    "prompt_all_tied": "no response to the prompt is better than another",
    "prompt_within_margin": "best and worst of the prompt are within the margin",
    "prompt_truncated": "its possible partners were truncated",
    "prompt_length_gap": "no pair of the prompt is within pairs.max_length_gap",
    "prompt_near_duplicate": "no pair of the prompt differs enough (pairs.min_edit_distance)",
    "prompt_no_gold": "the prompt has no gold answer",
    "prompt_no_negative": "the prompt has no answer known to be bad",
    "prompt_no_games": "no two responses to the prompt met",
}
"""Reasons why responses were used or not, with their descriptions."""

REMEDIES = {
    "all_correct": "use harder prompts, or raise sampling.temperature or sampling.n",
    "all_wrong": (
        "raise sampling.temperature or sampling.n, use easier prompts, show prompts.few_shot examples, "
        "or lower pairs.correct_at if the judge gives partial credit"
    ),
    "all_tied": "raise sampling.temperature or sampling.n, or use a judge with finer scores",
    "within_margin": "lower pairs.min_margin (dno_prct: pairs.gold_margin and pairs.own_margin)",
    "truncated": "raise sampling.max_tokens, or set pairs.drop_truncated to none",
    "length_gap": "raise pairs.max_length_gap",
    "near_duplicate": "lower pairs.min_edit_distance, or raise sampling.temperature",
    "no_gold": "name the column with gold answers in pairs.gold_column, or use another pairs.rule",
    "no_negative": "fill the column that pairs.negative_column names",
    "equals_gold": "use harder prompts",
    "no_games": "raise sampling.n to at least 2",
    "no_score": "look at the verdicts (prefloop show): the judge abstained or failed on every response",
}
"""Advice by outcome."""

LOST_BEFORE = {"error": "judge errors", "abstain": "abstentions of the judge", "duplicate": "duplicates"}


def why_nothing(iteration: int, prompts: Mapping[str, int], responses: Mapping[str, int]) -> str:
    """Why the iteration made nothing: the outcomes of its prompts, and advice."""
    total = sum(prompts.values())
    if not total:
        return f"no pairs in iteration {iteration}: no prompt came in"
    outcomes = sorted(prompts, key=lambda outcome: -prompts[outcome])
    counts = [f"{PROMPT_OUTCOMES[outcome]} ({prompts[outcome]} of {total})" for outcome in outcomes]
    if len(outcomes) == 1:
        happened = f"every prompt was {counts[0]}"
    else:
        happened = f"the prompts were {', '.join(counts[:-1])} and {counts[-1]}"
    remedies = "; ".join(REMEDIES[outcome] for outcome in outcomes if outcome in REMEDIES)
    return f"no pairs in iteration {iteration}: {happened}{_lost_responses(responses)}; {remedies}"


def _lost_responses(responses: Mapping[str, int]) -> str:
    """A clause on the responses that no rule saw; empty if there are none."""
    total = sum(responses.values())
    lost = [
        f"{responses[reason]} of {total} responses to {cause}"
        for reason, cause in LOST_BEFORE.items()
        if reason in responses
    ]
    return f"; lost before pairing: {', '.join(lost)}" if lost else ""
