"""Command `recipes show`: what a shipped recipe is, what differs from its paper, and what it would take to run it."""

import re
from dataclasses import dataclass
from pathlib import Path

from loop.commands.plan import IterationPlan, planned
from loop.commands.plan_sampling import describe_calls
from loop.config.load import RECIPES, load_config, shipped_configs, shipped_recipes
from loop.config.types import did_you_mean
from loop.errors import UserError
from loop.store.run_folder import RunFolder
from loop.view.describe import describe_judge

DIFFERENCES = "What differs from the paper:"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as it is shown. Field names are the keys of `prefloop recipes show NAME --json`."""

    name: str
    about: str
    paper: str
    """Address of the paper."""
    notes: str
    """How it is used beyond `prefloop run`; empty if there is nothing to say."""
    differs: tuple[str, ...]
    """What differs from the paper."""
    model: str
    prompts: str
    judge: str
    iterations: tuple[IterationPlan, ...]
    calls: tuple[str, ...]
    """What paid judges would be asked, and the price if the recipe names prices."""
    file: str


def recipe_of(name: str) -> Recipe:
    """The recipe of that name, with or without `recipes/`. UserError lists the known ones."""
    known = shipped_recipes()
    full = name if name.startswith(RECIPES) else f"{RECIPES}{name}"
    if full not in known:
        names = [one.removeprefix(RECIPES) for one in known]
        near = did_you_mean(name.removeprefix(RECIPES), names) or "."
        raise UserError(f"There is no recipe {name!r}{near} Recipes: {', '.join(names)}.")
    path = shipped_configs()[full]
    loaded = load_config(path)
    plan = planned(RunFolder(Path("runs") / loaded.name), loaded, None)
    notes, differs = read_header(path.read_text(encoding="utf-8"))
    cited = re.search(r"arXiv:(\S+)", known[full])
    return Recipe(
        name=full,
        about=known[full],
        paper=f"https://arxiv.org/abs/{cited[1]}" if cited else "",
        notes=notes,
        differs=differs,
        model=plan.model,
        prompts=plan.prompts,
        judge=describe_judge(plan.judge),
        iterations=tuple(plan.iterations),
        calls=tuple(describe_calls(calls) for calls in (*plan.judge_calls, *plan.eval_judge_calls)),
        file=str(path),
    )


def read_header(text: str) -> tuple[str, tuple[str, ...]]:
    """The comment that a recipe begins with, after its first line: the notes, and the list of differences."""
    lines = []
    for line in text.splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    notes, _, rest = "\n".join(lines).partition(DIFFERENCES)
    return notes.strip("\n"), tuple(" ".join(item.split()) for item in re.split(r"^- ", rest, flags=re.MULTILINE)[1:])


def print_recipe(recipe: Recipe) -> None:
    """The recipe for a person."""
    print(f"{recipe.name}: {recipe.about}\n{recipe.paper}\n")
    if recipe.notes:
        print(f"{recipe.notes}\n")
    print(DIFFERENCES)
    for item in recipe.differs:
        print(f"- {item}")
    print(f"\nmodel    {recipe.model}\nprompts  {recipe.prompts}\njudge    {recipe.judge}")
    for calls in recipe.calls:
        print(f"         {calls}")
    for it in recipe.iterations:
        most = f"at most {it.pairs_at_most:,} {it.makes} and {it.steps_at_most:,} steps" if it.pairs_at_most else ""
        size = f"; {it.responses:,} responses, {most}" if it.responses else ""
        print(f"iteration {it.iteration}: {it.train}{size}")
    print(f"\nfile     {recipe.file}\ntry it   prefloop run {recipe.name} --toy")
