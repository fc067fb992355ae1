"""Describes the measurements of the online benchmark and compares its sides."""

import statistics

from sides import Job

START, TRL = "start", "trl"
"""Names of the start model's evaluation and of TRL's side."""


def line_of(one: Job) -> str:
    """Describe one measurement."""
    accuracy = f"accuracy {statistics.fmean(one['right']):6.1%}"
    if "seconds" not in one:
        return accuracy
    rate, ties = one["completions"] / one["seconds"], one["tied"] / one["prompts"]
    synced = f", {one['sync_seconds']:.1f} s of it to sync weights" if "sync_seconds" in one else ""
    return (
        f"{accuracy}  {one['seconds']:7.1f} s  {rate:6.2f} completions/s  ties {ties:4.0%}  trained on "
        f"{one['trained_on'] / one['seconds']:5.2f}/s  ({one['completions']} completions, {one['steps']} steps{synced})"
    )


def report(found: dict[str, list[Job]]) -> Job:
    """Medians, ratios and differences of accuracy, printed and returned. Start and TRL come first."""
    figures: Job = {}
    for name, ones in found.items():
        figures[name] = {"accuracy": statistics.fmean(statistics.fmean(one["right"]) for one in ones)}
        if name == START:
            continue
        figures[name] |= {
            "completions_per_second": statistics.median(one["completions"] / one["seconds"] for one in ones),
            "ties": statistics.median(one["tied"] / one["prompts"] for one in ones),
            "trained_on_per_second": statistics.median(one["trained_on"] / one["seconds"] for one in ones),
        }
        words = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in figures[name].items())
        print(f"so far  {name:<10} {words}; accuracy {against(figures, found, name, START)}")
        if TRL in found and name != TRL:
            ratio = figures[name]["completions_per_second"] / figures[TRL]["completions_per_second"]
            print(f"so far  {name:<10} {ratio:.2f} times as fast as trl; accuracy {against(figures, found, name, TRL)}")
            figures[name]["times_as_fast"] = ratio
    return figures


def against(figures: Job, found: dict[str, list[Job]], name: str, other: str) -> str:
    """A side's accuracy less the other's, with its 95 % interval over the prompts of all rounds, as text."""
    from loop.measure.stats import paired_difference

    first, second = ([float(x) for one in found[side] for x in one["right"]] for side in (other, name))
    more = paired_difference(first, [1] * len(first), second, [1] * len(second), 0.95)
    figures[name][f"accuracy_less_that_of_{other}"] = [more.value, more.low, more.high]
    return f"{100 * more.value:+.1f} points [{100 * more.low:+.1f}, {100 * more.high:+.1f}] against {other}"
