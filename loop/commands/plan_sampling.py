"""The sampling part of the plan: responses and paid calls, at most and as expected. Imports nothing heavy."""

from dataclasses import asdict, dataclass

from judges.context import Usage
from judges.contract import Judge
from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.measure.allocation import usual_share
from loop.store.run_records import Json


@dataclass(frozen=True, slots=True)
class JudgeCalls:
    """What a paid judge will be asked at most, in a whole campaign."""

    each: Usage
    """One call at its longest."""
    total: Usage | None = None
    """All calls and their tokens; None if the number of prompts is only known from the data."""
    cost: float | None = None
    """In the currency of the judge's prices; None without prices."""
    expected: int | None = None
    """Calls with adaptive sampling, if solve rates are spread evenly."""

    def as_json(self) -> Json:
        """Plain values."""
        total = {"calls": None} if self.total is None else asdict(self.total)
        expected = {} if self.expected is None else {"calls_expected": self.expected}
        return {**total, **expected, "cost": self.cost, "each": asdict(self.each)}


def judge_calls(loaded: LoadedConfig, judge: Judge, *, trains: bool = True, evaluates: bool = True) -> JudgeCalls:
    """Bounds on what a paid judge is asked, votes and orders included, if no call fails.

    It labels the training responses, judges the evaluations, or both. Tokens are a bound, in the policy's tokens:
    prompts as long as the engine takes, responses and replies cut off.
    """
    config = loaded.base
    held_out = judge.calls_at_most(1 + config.eval.samples) * (config.prompts.gate + config.prompts.test)
    calls = held_out * (loaded.iterations + 1) if evaluates else 0
    tokens, expected, adapts = tokens_of_a_call(config, judge), float(calls), False
    for k in range(1, loaded.iterations + 1) if trains else ():
        at = loaded.at(k)
        prompts = at.prompts.per_iteration or at.prompts.train
        if prompts is None:
            return JudgeCalls(tokens)
        here = judge.calls_at_most(at.sampling.widened(k - 1).n) * prompts
        calls += here
        expected += here * sampled_share(at)
        adapts |= at.sampling.adaptive is not None
    whole = Usage(calls, tokens.prompt_tokens * calls, tokens.completion_tokens * calls)
    return JudgeCalls(tokens, whole, judge.cost(whole), round(expected) if adapts else None)


def sampled_share(config: Config) -> float:
    """The share of n responses to every prompt that is sampled: adaptively less, if solve rates are spread evenly."""
    adaptive, n = config.sampling.adaptive, config.sampling.n
    if adaptive is None:
        return 1.0
    wanted = adaptive.wanted(config.pairs.at_most)
    return usual_share(n, adaptive.probe, wanted=wanted, keep=adaptive.keep, budget=adaptive.budget)


def tokens_of_a_call(config: Config, judge: Judge) -> Usage:
    """One call at its longest: the template, a prompt, its responses, and the judge's reply."""
    template, shown, reply = judge.longest_call
    longest = max(config.sampling.max_tokens, config.eval.max_tokens or 0)
    prompt = config.engine.max_model_len - longest
    return Usage(1, template + prompt + shown * longest, reply)


def describe_adaptive(config: Config) -> str:
    """The two phases, if there are two."""
    adaptive = config.sampling.adaptive
    if adaptive is None:
        return ""
    most = f", {adaptive.budget:.0%} of all at most" if adaptive.budget < 1 else ""
    return (
        f"; {adaptive.probe} to each first, then more where they pay until {adaptive.keep:.0%} of the expected pairs"
        f"{most} (about {sampled_share(config):.0%} of all responses if solve rates are spread evenly)"
    )


def describe_widen(config: Config, k: int) -> str:
    """What earlier iterations may change about this one's sampling."""
    widen = config.sampling.widen
    if widen is None or k == 1:
        return ""
    most = config.sampling.widened(k - 1)
    return (
        f"; up to temperature {most.temperature:g} and {most.n} responses if earlier iterations leave fewer than "
        f"{widen.below:.0%} of the prompts mixed"
    )


def describe_calls(asked: JudgeCalls) -> str:
    """What a paid judge will be asked, for a person."""
    each, total = asked.each, asked.total
    if not each.completion_tokens:  # it asks nobody for a reply: a model of its own reads the text
        known = "a number of" if total is None else f"at most {total.calls:,}"
        return f"{known} verdicts, each on a text of at most {each.prompt_tokens:,} tokens"
    size = f"of at most {each.prompt_tokens:,} tokens and {each.completion_tokens:,} of reply"
    if total is None:
        return f"calls {size} each; how many depends on the prompts (prompts.train is null)"
    no_prices = "no prices given (budget.prompt_price, completion_price)"
    money = no_prices if asked.cost is None else f"cost at most {asked.cost:,.2f}"
    usually = "" if asked.expected is None else f" (about {asked.expected:,} if solve rates are spread evenly)"
    return f"at most {total.calls:,} calls{usually} {size} each; {money}"
