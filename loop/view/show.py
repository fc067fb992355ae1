"""Show single prompts of an iteration with their responses, verdicts and pairs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from loop.errors import UserError
from loop.pairing.data_answers import GivenPair, given_pairs
from loop.prompts.row import read_table
from loop.store import tables
from loop.store.lineage import inherited_caches
from loop.store.run_folder import RunFolder
from loop.store.stage import is_further
from loop.store.verdict_cache import kept_in, paid_in


def collect_prompts(run: RunFolder, k: int, which: str, wanted: str | None, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` prompts of one set with their results, shard by shard."""
    rows = {row.id: row for row in read_table(tables.read(_prompt_file(run, which)))}
    pairs = _pairs(run, k) if which == "train" else {}
    found: list[dict[str, Any]] = []
    shards = run.judged_shards(k, which)
    further = [_groups(*shard) for shard in shards if is_further(shard[0])]
    for shard in shards[: len(shards) - len(further)]:
        for prompt_id, members in _groups(*shard).items():
            members += [one for groups in further for one in groups.get(prompt_id, [])]
            row = rows[prompt_id]
            asked = row.messages[-1]["content"]
            if wanted is None or wanted in prompt_id or wanted in asked:
                pair_ids = pairs.get(prompt_id, [])
                found.append(
                    {
                        "prompt_id": prompt_id,
                        "prompt": asked,
                        "target": row.target,
                        "responses": members,
                        "pairs": pair_ids,
                    }
                )
            if len(found) == limit:
                return found
    return found + collect_given(run, k, which, wanted, limit - len(found), pairs)


def collect_given(
    run: RunFolder, k: int, which: str, wanted: str | None, limit: int, pairs: dict[str, list[tuple[str, str]]]
) -> list[dict[str, Any]]:
    """Up to `limit` prompts whose answers are not sampled but come from the data: of the iteration's pairs, or
    the held-out ones without a judge."""
    rows = {row.id: row for path in _given_prompts(run, k, which) for row in read_table(tables.read(path))}
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for path in _given_answers(run, k, which):
        for answer in tables.read(path, ["prompt_id", "response_id", "text"]).to_pylist():
            shown = {**answer, "temperature": None, "finish_reason": "stop", "verdict": None}
            answers.setdefault(answer["prompt_id"], {})[answer["response_id"]] = shown
    found: list[dict[str, Any]] = []
    for prompt_id, members in answers.items():
        row = rows[prompt_id]
        ids = pairs.get(prompt_id, []) if which == "train" else [_ids(pair) for pair in given_pairs(row)]
        asked = row.messages[-1]["content"]
        given = any(set(pair) <= members.keys() for pair in ids)
        if len(found) < limit and given and (wanted is None or wanted in prompt_id or wanted in asked):
            told = {"prompt_id": prompt_id, "prompt": asked, "target": row.target}
            found.append({**told, "responses": list(members.values()), "pairs": ids})
    return found


def _ids(pair: GivenPair) -> tuple[str, str]:
    return pair.chosen.response_id, pair.rejected.response_id


def _given_prompts(run: RunFolder, k: int, which: str) -> list[Path]:
    offline = run.stage(k, "pair").offline_prompts
    return [_prompt_file(run, which), *([offline] if which == "train" and offline.exists() else [])]


def _given_answers(run: RunFolder, k: int, which: str) -> list[Path]:
    """Files of answers that make pairs among themselves."""
    if which != "train":
        held_out = run.stage(0, "eval").held_out(which)
        return [held_out] if held_out.exists() else []
    folder = run.stage(k, "pair")
    manifest = folder.manifest()
    known = () if manifest is None else manifest.outputs
    return [path for path in (folder.answers, folder.offline) if path.name in known]


def _groups(responses: Path, verdicts: Path) -> dict[str, list[dict[str, Any]]]:
    """The responses of one shard with their verdicts, by prompt."""
    judged = {v["response_id"]: v for v in tables.read(verdicts).to_pylist()} if verdicts.exists() else {}
    columns = ["prompt_id", "response_id", "temperature", "text", "finish_reason"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for response in tables.read(responses, columns).to_pylist():
        member = {**response, "verdict": judged.get(response["response_id"])}
        groups.setdefault(response["prompt_id"], []).append(member)
    return groups


def _prompt_file(run: RunFolder, which: str) -> Any:
    if which not in ("train", "gate", "test"):
        raise UserError(f"--set is train, gate or test, not {which!r}.")
    return run.prompts().path / f"{which}.parquet"


def _pairs(run: RunFolder, k: int) -> dict[str, list[tuple[str, str]]]:
    path = run.stage(k, "pair").pairs
    pairs: dict[str, list[tuple[str, str]]] = {}
    for row in tables.read(path).to_pylist() if path.exists() else []:
        pairs.setdefault(row["prompt_id"], []).append((row["chosen_id"], row["rejected_id"]))
    return pairs


def print_prompts(found: list[dict[str, Any]]) -> None:
    """Print one block per prompt."""
    console = Console(soft_wrap=True, highlight=False)
    if not found:
        console.print("No prompt matches.")
    for prompt in found:
        console.print(Text(f"\n{prompt['prompt_id']}  {prompt['prompt']}", style="bold"))
        console.print(Text(f"  target: {prompt['target']}"))
        numbers = {r["response_id"]: i for i, r in enumerate(prompt["responses"])}
        for response in prompt["responses"]:
            console.print(_line(numbers[response["response_id"]], response))
        if prompt["pairs"]:
            made = ", ".join(f"{_name(numbers, c)}>{_name(numbers, r)}" for c, r in prompt["pairs"])
            console.print(Text(f"  pairs (chosen>rejected): {made}"))


def _name(numbers: dict[str, int], id: str) -> str:
    """A response's number; for one that is not the prompt's own, its origin."""
    if id in numbers:
        return str(numbers[id])
    return id.rpartition("/")[2] if "/" in id else f"iteration {id.partition('-')[0]}"


def _line(number: int, response: dict[str, Any]) -> Text:
    verdict = response["verdict"]
    mark = _mark(verdict, given=response["temperature"] is None)
    style = (
        "green"
        if verdict and verdict["score"] == 1.0
        else "red"
        if verdict and verdict["kind"] == "score"
        else "yellow"
    )
    cut = " [cut off]" if response["finish_reason"] == "length" else ""
    greedy = " (greedy)" if response["temperature"] == 0 else ""
    line = Text(f"  {number}{greedy} ")
    line.append(mark, style=style)
    why = f" ({verdict['why']})" if verdict and verdict["why"] else ""
    return line.append(f"{why}: {' '.join(response['text'].split())}{cut}")


def _mark(verdict: dict[str, Any] | None, *, given: bool) -> str:
    if verdict is None:
        return "given" if given else "not judged"
    return f"{verdict['kind']} {'' if verdict['score'] is None else verdict['score']}"


def collect_cache(run: RunFolder, containing: str | None, limit: int) -> list[dict[str, Any]]:
    """The run's cache and those of its parents, the nearest first: by judge the cost and number of verdicts, and up
    to `limit` verdicts in all whose text has `containing`."""
    found = []
    for path in (run.verdict_cache, *inherited_caches(run)):
        kept = [
            {"key": key, "judge": who, "word": json.loads(text)} for key, text, who in kept_in(path, containing, limit)
        ]
        limit -= len(kept)
        judges = [{"judge": who, "kept": count, **asdict(usage)} for who, count, usage in paid_in(path)]
        found.append({"cache": str(path), "judges": judges, "words": kept})
    return found


def print_cache(found: list[dict[str, Any]]) -> None:
    """Print a block per cache, a line per judge, a line per verdict."""
    console = Console(soft_wrap=True, highlight=False)
    for cache in found:
        console.print(Text(f"\n{cache['cache']}", style="bold"))
        if not cache["judges"]:
            console.print("  nothing was paid for here")
        for one in cache["judges"]:
            tokens = f"{one['prompt_tokens']:,} + {one['completion_tokens']:,} tokens"
            told = f"{one['kept']:,} kept, {one['calls']:,} calls paid for, {tokens}"
            console.print(Text(f"  judge {one['judge'][:12]}: {told}"))
        for one in cache["words"]:
            told = json.dumps(one["word"], ensure_ascii=False)
            console.print(Text(f"  {one['key'][:12]}  judge {one['judge'][:12]}: {told}"))
