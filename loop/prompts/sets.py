"""Builds three disjoint prompt sets (train, gate, test) from the config's `prompts` section.

A prompt's id is a hash of its chat messages. Ids and seed alone, not the order of rows, decide sets and slices.
With files and hub data a larger `train` appends to the training prompts and changes nothing else; a reasoning-gym task
keeps its sets as long as it has generated enough entries.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loop.config.prompts_section import MixturePrompts, PromptsBase, PromptsConfig
from loop.errors import UserError
from loop.prompts.messages import check_template, messages_of, plain_columns, target_of
from loop.prompts.row import PromptRow, prompt_id
from loop.prompts.sources import Source, open_sources, unused
from loop.seeds import seeded

ORIGIN = "prompt_source"
"""The column with the name of a prompt's source."""


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` divided by the weights, by largest remainders (Hamilton's method); ties go to the first."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def interleaved(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Every (source, place in it), ordered so that any prefix has sources in proportion to their size: the j-th of n
    is at (j + 1/2) / n of the whole."""
    places = [((j + 0.5) / size, source, j) for source, size in enumerate(sizes) for j in range(size)]
    return [(source, j) for _, source, j in sorted(places)]


def names_of(config: MixturePrompts) -> list[str]:
    """A name for each source: its kind with its task, file or dataset; repeated names get a number."""
    names: list[str] = []
    for mixed in config.sources:
        name = source_name(mixed.prompts)
        again = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{again + 1}" if again else name)
    return names


def source_name(prompts: PromptsBase) -> str:
    """Name of the source: `file questions.jsonl`, `reasoning-gym chain_sum`."""
    given: dict[str, Any] = dict(prompts)
    kind = given["source"]
    where = given.get("task") or given.get("dataset") or str(given.get("path") or "").rpartition("/")[2]
    return f"{kind} {where}".rstrip()


def sized(config: MixturePrompts) -> list[PromptsBase]:
    """Each source's section with its share of the three sets, and the mixture's messages where it has none."""
    weights = [mixed.weight for mixed in config.sources]
    sizes = {name: shares(getattr(config, name), weights) for name in ("train", "gate", "test")}
    return [
        mixed.prompts.model_copy(
            update={name: counts[i] for name, counts in sizes.items()}
            | {"system": mixed.prompts.system if mixed.prompts.system is not None else config.system}
            | {"few_shot": mixed.prompts.few_shot or config.few_shot}
        )
        for i, mixed in enumerate(config.sources)
    ]


PATIENCE = 50
"""A source that generates its rows counts as exhausted after this many rows per prompt that is needed."""


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Three sets without a common prompt, each in its seeded order, and counts of the rows.

    counts: rows = empty + duplicates + also_in_test + train + gate + test + unused; `conflicts` are the
    duplicates whose target differs from that of the row that was kept, the first. A mixture also counts the prompts
    that an earlier source has (`elsewhere`) and those of each source; preference data count their pairs.
    """

    train: list[PromptRow]
    gate: list[PromptRow]
    test: list[PromptRow]
    counts: dict[str, int]
    notes: tuple[str, ...] = ()
    """What in the data looks meant, but is not used."""


def build_prompt_sets(config: PromptsConfig, seed: int) -> PromptSets:
    """Read the source or the sources, drop empty prompts and duplicates, and divide the rest. Raises UserError."""
    return _mix(config, seed) if isinstance(config, MixturePrompts) else _build(config, seed, frozenset())


def _mix(config: MixturePrompts, seed: int) -> PromptSets:
    """Build source after source; later ones leave out what earlier ones gave."""
    parts, given, counts, from_each = list[PromptSets](), set[str](), Counter[str](), dict[str, int]()
    for section, name in zip(sized(config), names_of(config), strict=True):
        part = _build(section, seed, frozenset(given))
        counts.update(part.counts)
        from_each[f"train from {name}"] = part.counts["train"]
        given.update(row.id for rows in (part.train, part.gate, part.test) for row in rows)
        parts.append(_from(part, name))
    train = [parts[source].train[place] for source, place in interleaved([len(part.train) for part in parts])]
    gate, test = ([row for part in parts for row in getattr(part, name)] for name in ("gate", "test"))
    notes = tuple(note for part in parts for note in part.notes)
    return PromptSets(train, gate, test, {**counts, **from_each}, notes)


def _from(part: PromptSets, name: str) -> PromptSets:
    """The sets of one source, its name in a column of each prompt."""

    def named(rows: list[PromptRow]) -> list[PromptRow]:
        return [replace(row, columns=row.columns | {ORIGIN: name}) for row in rows]

    return replace(part, train=named(part.train), gate=named(part.gate), test=named(part.test))


def _build(config: PromptsBase, seed: int, given: frozenset[str]) -> PromptSets:
    """The sets of one source without the prompts that were `given` before."""
    counts = dict.fromkeys(("rows", "empty", "duplicates", "conflicts", "also_in_test"), 0)
    main, test = open_sources(config, seed, counts)
    pool, test_pool = _Pool(config, main, counts), _Pool(config, test, counts) if test else None
    pool.read(main.rows)
    if main.rounds is not None:
        pool.generate((config.train or 0) + config.gate + config.test, main.rounds, given)
    if test is None or test_pool is None:
        return _divide(config, pool, seeded(pool.without(given), seed), None, [], counts)
    test_pool.read(test.rows)
    counts["also_in_test"] = sum(key in test_pool.first for key in pool.first)
    ids = [key for key in seeded(pool.without(given), seed) if key not in test_pool.first]
    return _divide(config, pool, ids, test_pool, seeded(test_pool.without(given), seed), counts)


class _Pool:
    """The distinct prompts of a source: for each id the first row that has it. Chosen rows are converted again."""

    def __init__(self, config: PromptsBase, source: Source, counts: dict[str, int]) -> None:
        self.config, self.source, self.counts = config, source, counts
        self.first: dict[str, int] = {}
        used = {source.prompt_column, source.target_column or "", *check_template(config.template, source)}
        self.notes = source.notes or unused(source.name, source.rows, used)

    def read(self, rows: Iterable[Mapping[str, Any]], start: int = 0) -> None:
        """Take in the rows from number `start` on, counting what is dropped."""
        for number, row in enumerate(rows, start):
            self.counts["rows"] += 1
            messages = messages_of(self.config, self.source, row, number)
            if messages is None:
                self.counts["empty"] += 1
                continue
            kept = self.first.setdefault(prompt_id(messages), number)
            if kept != number:
                self.counts["duplicates"] += 1
                other = self.source.rows[kept]
                self.counts["conflicts"] += target_of(self.source, row) != target_of(self.source, other)

    def generate(self, needed: int, rounds: Iterable[list[dict[str, Any]]], given: frozenset[str]) -> None:
        """Read round after round until `needed` prompts are distinct, or the source seems exhausted."""
        rows = self.source.rows
        assert isinstance(rows, list), "generated rows are kept"
        for entries in rounds:
            before, start = len(self.first), len(rows)
            rows += entries
            self.read(entries, start)
            nothing_new = len(self.first) == before and len(entries) >= needed
            if len(self.first.keys() - given) >= needed or nothing_new or len(rows) > PATIENCE * needed:
                return

    def without(self, given: frozenset[str]) -> list[str]:
        """The ids that no earlier source gave; the others are counted."""
        if given:
            self.counts["elsewhere"] = self.counts.get("elsewhere", 0) + sum(key in given for key in self.first)
        return [key for key in self.first if key not in given]

    def row(self, key: str) -> PromptRow:
        number = self.first[key]
        row = self.source.rows[number]
        messages = messages_of(self.config, self.source, row, number)
        assert messages is not None
        return PromptRow(key, messages, target_of(self.source, row), plain_columns(self.source, row, number))


def _divide(
    config: PromptsBase,
    pool: _Pool,
    ids: list[str],
    test_pool: _Pool | None,
    test_ids: list[str],
    counts: dict[str, int],
) -> PromptSets:
    """test first, then gate, then train, each from the front of the seeded order; too few is a UserError."""
    own_test = config.test if test_pool is None else 0
    wanted = own_test + config.gate + (config.train or config.per_iteration or 1)
    if len(ids) < wanted:
        raise UserError(_too_few(config, pool.source, len(ids), wanted, own_test, counts))
    if test_pool is not None and len(test_ids) < config.test:
        raise UserError(
            f"{test_pool.source.name} holds {len(test_ids)} distinct prompts for the test set, but prompts.test is "
            f"{config.test}; lower prompts.test or give more rows."
        )
    test = ids[:own_test] if test_pool is None else test_ids[: config.test]
    gate = ids[own_test : own_test + config.gate]
    train = ids[own_test + config.gate :][: config.train]
    sets = {"train": train, "gate": gate, "test": test}
    used = {name: len(keys) for name, keys in sets.items()}
    left = len(ids) + len(test_ids) - sum(used.values())
    assert len(set(train) | set(gate) | set(test)) == sum(used.values()), "the three prompt sets overlap"
    built = {
        name: [((test_pool if name == "test" else None) or pool).row(key) for key in keys]
        for name, keys in sets.items()
    }
    notes = tuple(dict.fromkeys(pool.notes + (test_pool.notes if test_pool else ())))
    return PromptSets(**built, counts={**counts, **used, "unused": left}, notes=notes)


def _too_few(
    config: PromptsBase, source: Source, found: int, wanted: int, own_test: int, counts: dict[str, int]
) -> str:
    names = {
        "empty": "empty",
        "duplicates": "duplicates",
        "also_in_test": "that are test prompts too",
        "elsewhere": "that another source gave",
    }
    dropped = ", ".join(f"{counts[key]} {words}" for key, words in names.items() if counts.get(key)) or "none"
    to_train = {"train": config.train} if config.train else {"per_iteration": config.per_iteration}
    sizes = {"test": own_test, "gate": config.gate} | to_train
    parts = [f"prompts.{name}={size}" for name, size in sizes.items() if size]
    keys = ", ".join(f"prompts.{name}" for name, size in sizes.items() if size)
    if not any(to_train.values()):
        parts.append("at least 1 to train on")
    more = "widen prompts.args so that the task has more different prompts"
    way = "give more rows" if source.rounds is None else more
    return (
        f"{source.name} gives {found} distinct prompts ({counts['rows']} rows; dropped: {dropped}), but "
        f"{' + '.join(parts)} need {wanted}; lower {keys}, or {way}."
    )
