"""Pair all prompts of an iteration within balance and cap, with counts that add up to the input."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.pairing.one_prompt import NO_ANSWERS, build_prompt
from loop.pairing.reasons import PROMPT_OUTCOMES, RESPONSE_REASONS
from loop.pairing.records import Answers, Judged, Made
from loop.pairing.single_rules import over_iteration
from loop.seeds import hash_of

CLASSES = 5
"""Classes of prompts by solve rate: below 20 %, 20 to 40 %, and so on."""


def quotas(counts: Mapping[str, int], cap: int | None, iteration: int) -> dict[str, int]:
    """Number of relations that each prompt keeps: an equal level, and one more for some until `cap` is reached. A hash
    of iteration and id draws the prompts that get one more."""
    if cap is None or sum(counts.values()) <= cap:
        return dict(counts)
    level = _level(counts, cap)
    spare = cap - sum(min(count, level) for count in counts.values())
    drawn = sorted(
        (prompt_id for prompt_id, count in counts.items() if count > level),
        key=lambda prompt_id: hash_of(iteration, prompt_id, separator=":"),
    )
    more = set(drawn[:spare])
    return {prompt_id: min(count, level) + (prompt_id in more) for prompt_id, count in counts.items()}


def balanced(counts: Mapping[str, int], solve_rates: Mapping[str, float], iteration: int) -> dict[str, int]:
    """Quotas that give every class of prompts as many relations as the smallest class has."""
    classes: dict[int, dict[str, int]] = {}
    for prompt_id, count in counts.items():
        which = min(int(solve_rates[prompt_id] * CLASSES), CLASSES - 1)
        classes.setdefault(which, {})[prompt_id] = count
    smallest = min((sum(members.values()) for members in classes.values()), default=0)
    kept = [quotas(members, smallest, iteration) for members in classes.values()]
    return {prompt_id: count for members in kept for prompt_id, count in members.items()}


def _level(counts: Mapping[str, int], cap: int) -> int:
    """The highest level at which all prompts together stay within the cap."""
    level = 0
    while sum(min(count, level + 1) for count in counts.values()) <= cap:
        level += 1
    return level


@dataclass(frozen=True, slots=True)
class Pairing:
    """All relations of an iteration; counts of responses by reason and of prompts by outcome."""

    iteration: int
    relations: Sequence[Made]
    responses: dict[str, int]
    prompts: dict[str, int]


@dataclass(slots=True)
class _PairState:
    """Relations by prompt, and counts of responses by reason and of prompts by outcome, so far."""

    made: dict[str, Sequence[Made]]
    answers: Mapping[str, Answers]
    responses: Counter[str]
    prompts: Counter[str]

    def limit(self, allowed: Mapping[str, int], reason: str) -> None:
        """Keep the allowed number per prompt; prompts and responses that lose all of them move to `reason`."""
        for prompt_id, count in allowed.items():
            of_prompt = self.made[prompt_id]
            if count == len(of_prompt):
                continue
            stay = of_prompt[:count]
            lost = len(self._own(prompt_id, of_prompt) - self._own(prompt_id, stay))
            self.responses.update({"used": -lost, reason: lost})
            self.made[prompt_id] = stay
            if not stay:
                self.prompts.update({"paired": -1, reason: 1})
                del self.made[prompt_id]

    def sizes(self) -> dict[str, int]:
        """Number of relations by prompt."""
        return {prompt_id: len(of_prompt) for prompt_id, of_prompt in self.made.items()}

    def _own(self, prompt_id: str, relations: Sequence[Made]) -> set[str]:
        return {id for one in relations for id in one.responses} - self.answers.get(prompt_id, NO_ANSWERS).ids


def pair_all(
    groups: Iterable[tuple[str, Sequence[Judged]]],
    settings: PairsConfig,
    iteration: int,
    *,
    answers: Mapping[str, Answers] | None = None,
    seed: int = 0,
) -> Pairing:
    """Pair prompt by prompt, then balance and cap; only relations and counts are kept. A prompt's result depends on the
    seed, the iteration and its own responses, never on the order of the prompts."""
    state = _PairState({}, answers or {}, Counter(), Counter())
    solve_rates: dict[str, float] = {}
    for prompt_id, judged in groups:
        if prompt_id in solve_rates:
            raise ValueError(f"prompt {prompt_id} came to pairing twice in iteration {iteration}")
        given = state.answers.get(prompt_id, NO_ANSWERS)
        one = build_prompt(prompt_id, judged, settings, answers=given, seed=f"{seed}|{iteration}")
        solve_rates[prompt_id] = one.solve_rate
        state.responses.update(one.reasons.values())
        state.prompts[one.outcome] += 1
        if one.relations:
            state.made[prompt_id] = one.relations
    if RULES[settings.rule].standardises and settings.standardise == "iteration":
        state.made = over_iteration(state.made)
    if settings.balance == "solve_rate":
        state.limit(balanced(state.sizes(), solve_rates, iteration), "balance")
    state.limit(quotas(state.sizes(), settings.max_pairs, iteration), "over_cap")
    relations = [one for of_prompt in state.made.values() for one in of_prompt]
    return _pairing(iteration, relations, state.responses, state.prompts)


def joined(parts: Sequence[Pairing], iteration: int) -> Pairing:
    """Merge the results of several slices of an iteration's prompts."""
    responses, prompts = Counter[str](), Counter[str]()
    for part in parts:
        responses.update(part.responses)
        prompts.update(part.prompts)
    relations = [one for part in parts for one in part.relations]
    return _pairing(iteration, relations, responses, prompts)


def _pairing(iteration: int, relations: list[Made], responses: Counter[str], prompts: Counter[str]) -> Pairing:
    return Pairing(iteration, relations, _ordered(responses, RESPONSE_REASONS), _ordered(prompts, PROMPT_OUTCOMES))


def _ordered(counts: Counter[str], order: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in order if counts[name]}
