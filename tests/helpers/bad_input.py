"""Bad input for the command line: a folder full of it, and a call of the command inside the test's process."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.cli.main import main
from tests.helpers import tiny
from tests.helpers.campaigns import Ended
from tests.helpers.made_runs import Made, make_run


@dataclass(frozen=True, slots=True)
class BadInput:
    """A command line that must be refused, and words that its refusal must hold."""

    args: tuple[str, ...]
    words: tuple[str, ...] = ()
    code: int = 2
    env: dict[str, str] = field(default_factory=dict)
    hidden: str = ""
    """A file or folder that may not be read meanwhile."""

    @property
    def name(self) -> str:
        """The name of its test."""
        given = [*(f"{key}={value}" for key, value in self.env.items()), *self.args, *filter(None, [self.hidden])]
        text = " ".join(arg if len(arg) < 60 else f"{arg[:20]}...{len(arg)}" for arg in given)
        return ascii(text)[1:-1].replace("/", "|").replace("::", ": :")


def call(args: tuple[str, ...], patch: pytest.MonkeyPatch) -> tuple[Ended, float]:
    """`prefloop ARGS` in this process, and its seconds; an exception that it lets through is a failed test."""
    patch.setattr(sys, "argv", ["prefloop", *args])
    out, err, started = StringIO(), StringIO(), time.monotonic()
    code: Any = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Ended(code, out.getvalue(), err.getvalue()), time.monotonic() - started


def digests(folder: Path) -> dict[str, str]:
    """The content of all files of the finished runs and of those beside them; locks say who has worked there last."""
    inside = [path for name in ("made", "other") for path in (folder / "runs" / name).rglob("*")]
    files = [path for path in (*folder.glob("*"), *inside) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def hidden(path: Path) -> Iterator[None]:
    """Nobody may read or enter `path`, not even root, who gives up that right meanwhile."""
    mode = path.stat().st_mode
    path.chmod(0)
    rights = _Capabilities() if os.geteuid() == 0 else None
    try:
        if rights is not None:
            rights.drop()
        yield
    finally:
        if rights is not None:
            rights.restore()
        path.chmod(mode)


class _Capabilities:
    """The capabilities of this thread (capget and capset of Linux): those that ignore file modes can be dropped."""

    VERSION, IGNORE_MODES = 0x20080522, 0b110
    """Of the interface; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.before = self._call("capget", (ctypes.c_uint32 * 6)())

    def _call(self, name: str, data: Any) -> Any:
        header = (ctypes.c_uint32 * 2)(self.VERSION, 0)
        assert getattr(self.libc, name)(header, data) == 0, os.strerror(ctypes.get_errno())
        return data

    def drop(self) -> None:
        left = (ctypes.c_uint32 * 6)(*self.before)
        left[0] &= ~self.IGNORE_MODES
        self._call("capset", left)

    def restore(self) -> None:
        self._call("capset", self.before)


CONFIGS: dict[str, bytes] = {
    "empty": b"",
    "only-comments": b"# nothing\n# here\n",
    "list": b"- prompts\n- judge\n",
    "number": b"42\n",
    "text": b"just a text\n",
    "null": b"null\n",
    "tabs": b"prompts:\n\tsource: file\n",
    "open-bracket": b"prompts: [1, 2\njudge: {name: exact}\n",
    "open-quote": b"judge: {name: 'exact}\n",
    "colon": b"prompts: source: file\n",
    "indent": b"prompts:\n   source: file\n  path: x\n",
    "twice": b"iterations: 1\niterations: 2\n",
    "twice-inside": b"prompts: {source: file, source: hub}\n",
    "alias": b"prompts: *nowhere\n",
    "tag": b"judge: !!python/object/apply:os.system [ls]\n",
    "own-tag": b"judge: !mine {name: exact}\n",
    "documents": b"iterations: 1\n---\niterations: 2\n",
    "date": b"seed: 2024-13-45\n",
    "latin-1": "judge: {name: exact}  # gr\u00fc\u00dfe\n".encode("latin-1"),
    "utf-16": "iterations: 1\n".encode("utf-16"),
    "bytes": bytes(range(128, 256)),
    "nul": b"iterations: 1\0\n",
    "escape": b"iterations: \x1b[31m1\n",
    "deep": b"prompts: " + b"[" * 3000 + b"]" * 3000,
    "list-key": b"? [a, b]\n: 1\n",
    "mapping-key": b"{{a: b}: 1}\n",
    "merge": b"<<: 5\niterations: 1\n",
    "laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (65 + i, 65 + i, b",".join([b"*%c" % (64 + i if i else 97)] * 9)) for i in range(9)),
    "recursive": b"prompts: &p {source: file, path: *p}\n",
    "cyclic": b"prompts: &p\n  few_shot: *p\n",
}
"""Files that are no config, by name."""

PROMPTS: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n  \n",
    "no-json.jsonl": b"question one\nquestion two\n",
    "cut.jsonl": b'{"prompt": "a", "target": "1"}\n{"prompt": "b", "tar',
    "list-rows.jsonl": b'["a", "1"]\n["b", "2"]\n',
    "numbers.jsonl": b"1\n2\n3\n",
    "null-row.jsonl": b'{"prompt": "a", "target": "1"}\nnull\n',
    "other-columns.jsonl": b'{"question": "a", "answer": "1"}\n' * 3,
    "empty-prompts.jsonl": b'{"prompt": "", "target": "1"}\n' * 3,
    "null-prompts.jsonl": b'{"prompt": null, "target": "1"}\n' * 3,
    "struct-prompts.jsonl": b'{"prompt": {"en": "a"}, "target": "1"}\n' * 3,
    "number-prompts.jsonl": b'{"prompt": 5, "target": "1"}\n' * 3,
    "list-prompts.jsonl": b'{"prompt": ["a", "b"], "target": "1"}\n' * 3,
    "bad-role.jsonl": b'{"prompt": [{"role": "wizard", "content": "a"}], "target": "1"}\n' * 3,
    "no-content.jsonl": b'{"prompt": [{"role": "user"}], "target": "1"}\n' * 3,
    "ends-assistant.jsonl": b'{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],'
    b' "target": "1"}\n',
    "no-target.jsonl": b"".join(
        b'{"prompt": "q%d", "target": %s}\n' % (i, b"null" if i == 30 else b'"1"') for i in range(64)
    ),
    "nan-target.jsonl": b"".join(
        b'{"prompt": "q%d", "target": %s}\n' % (i, b"NaN" if i == 30 else b"1.5") for i in range(64)
    ),
    "few.jsonl": b'{"prompt": "a", "target": "1"}\n{"prompt": "b", "target": "2"}\n',
    "same.jsonl": b'{"prompt": "a", "target": "1"}\n' * 64,
    "columns.json": b'{"prompt": ["a", "b"], "target": ["1", "2"]}',
    "under-data.json": b'{"data": [{"prompt": "a", "target": "1"}]}',
    "one-object.json": b'{\n "prompt": "a",\n "target": "1"\n}',
    "scalar.json": b"5",
    "cut.json": b'[{"prompt": "a"},',
    "deep.json": b"[" * 100000,
    "latin-1.jsonl": '{"prompt": "gr\u00fc\u00dfe", "target": "1"}\n'.encode("latin-1"),
    "utf-16.jsonl": '{"prompt": "a", "target": "1"}\n'.encode("utf-16"),
    "ragged.csv": b"prompt,target\na,1\nb\n",
    "twice.csv": b"prompt,prompt\na,1\n",
    "header.csv": b"prompt,target\n",
    "quote.csv": b'prompt,target\n"a,1\n',
    "text.parquet": b"prompt,target\na,1\n",
    "cut.parquet": b"PAR1" + b"\0" * 20,
    "prompts.txt": b"a\nb\n",
    "prompts.xlsx": b"PK\3\4",
    "prompts": b"a\n",
    "long.jsonl": b"".join(b'{"prompt": "%s %d", "target": "1"}\n' % (b"word " * 200, i) for i in range(64)),
}
"""Files of prompts that no campaign can use."""

UNFIT = ("empty.jsonl", "cut.jsonl", "list-rows.jsonl", "other-columns.jsonl", "latin-1.jsonl", "prompts.txt")
"""Some of them, which have a config of their own."""

LABELLED: dict[str, bytes] = {
    "l-empty.jsonl": b"",
    "l-no-json.jsonl": b"right\n",
    "l-list.jsonl": b"[1, 2]\n",
    "l-no-prompt.jsonl": b'{"response": "a", "label": "right"}\n',
    "l-no-label.jsonl": b'{"prompt": "a", "response": "a"}\n',
    "l-both.jsonl": b'{"prompt": "a", "response": "a", "label": "right", "score": 1}\n',
    "l-label.jsonl": b'{"prompt": "a", "response": "a", "label": "perhaps"}\n',
    "l-score.jsonl": b'{"prompt": "a", "response": "a", "score": "high"}\n',
    "l-nan.jsonl": b'{"prompt": "a", "response": "a", "score": NaN}\n',
    "l-huge.jsonl": b'{"prompt": "a", "response": "a", "score": 1e999}\n',
    "l-mixed.jsonl": b'{"prompt": "a", "chosen": "a", "rejected": "b", "label": "right"}\n',
    "l-half.jsonl": b'{"prompt": "a", "chosen": "a"}\n',
    "l-finish.jsonl": b'{"prompt": "a", "response": "a", "label": "right", "finish_reason": "tired"}\n',
    "l-struct.jsonl": b'{"prompt": {"a": 1}, "response": "a", "label": "right"}\n',
    "l-number.jsonl": b'{"prompt": "a", "response": 5, "label": "right"}\n',
    "l-ragged.csv": b"prompt,response,label\na,b\n",
    "l-quote.csv": b'prompt,response,label\n"a,b,right\n',
    "l-text.parquet": b"no parquet",
    "l-latin.csv": "prompt,response,label\ngr\u00fc\u00dfe,b,right\n".encode("latin-1"),
    "l-utf-16.jsonl": '{"prompt": "a"}\n'.encode("utf-16"),
    "l-other.txt": b"a",
}
"""Labelled examples that no judge can be tried on."""

PAIRS: dict[str, bytes] = {
    "p-empty.jsonl": b"",
    "p-columns.jsonl": b'{"prompt": "a", "good": "b", "bad": "c"}\n',
    "p-equal.jsonl": b'{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
    "p-blank.jsonl": b'{"prompt": "a", "chosen": "", "rejected": ""}\n',
    "p-null.jsonl": b'{"prompt": "a", "chosen": null, "rejected": null}\n',
    "p-number.jsonl": b'{"prompt": "a", "chosen": 1, "rejected": 2}\n',
    "p-struct.jsonl": b'{"prompt": "a", "chosen": {"x": 1}, "rejected": {"x": 2}}\n',
    "p-cut.jsonl": b'{"prompt": "a", "cho',
    "p-role.jsonl": b'{"prompt": [{"role": "sage", "content": "a"}], "chosen": "b", "rejected": "c"}\n',
    "p-text.parquet": b"none",
    "p.txt": b"a b c",
}
"""Preference data without a pair."""

JUDGES = {
    "j_syntax": "def broken(:\n",
    "j_import": "import nothing_of_this_name\n",
    "j_exit": "raise SystemExit(3)\n",
    "j_interrupts": "1 / 0\n",
    "j_other": "Other = 1\n",
    "j_number": "Mine = 5\n",
    "j_function": "def Mine(prompt, response):\n    return 1.0\n",
    "j_plain": "class Mine:\n    pass\n",
    "j_abstract": "from judges import PointwiseJudge\n\n\nclass Mine(PointwiseJudge):\n    pass\n",
    "j_pairwise": "from judges import PairwiseJudge\n\n\nclass Mine(PairwiseJudge):\n    pass\n",
    "j_tabs": "class Mine:\n\tone = 1\n        two = 2\n",
    "j_field": "from judges import PointwiseJudge\n\n\nclass Mine(PointwiseJudge):\n    needed: int\n\n"
    "    def one(self, prompt, response):\n        return None\n",
    "j_examples": "from judges import Example, PointwiseJudge, Verdict\n\n\nclass Mine(PointwiseJudge):\n"
    '    examples = (Example.on("a", "a", 1.0),)\n\n    def one(self, prompt, response):\n'
    "        return Verdict.of(0.0)\n",
}
"""Judges that cannot be built, or fail their own examples."""

TEMPLATES = {
    "t-syntax": "{% for m in messages %}{{ m['content'] }",
    "t-name": "{{ messages[0].content | no_such_filter }}",
    "t-none": "the same for all",
    "t-raises": "{{ raise_exception('no system messages, please') }}",
    "t-index": "{{ messages[7]['content']['x'] }}",
    "t-drops": "{% for m in messages %}{{ m['role'] }}\n{% endfor %}",
}
"""Chat templates that cannot render a prompt."""


def make_folder(folder: Path) -> None:
    """Good configs, runs and a model, and everything that is bad."""
    tiny.save_model(folder / "model")
    tiny.save_prompts(folder / "prompts.jsonl")
    (folder / "parity.py").write_text(tiny.PARITY, encoding="utf-8")
    good = tiny.settings(folder / "model", folder / "prompts.jsonl", folder / "parity.py")
    write_config(folder / "ok.yaml", good)
    labelled = {"prompt": "a", "response": "b", "label": "right", "target": "a"}
    (folder / "l-good.jsonl").write_text(json.dumps(labelled), encoding="utf-8")
    pairs = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    write_config(
        folder / "rm.yaml",
        {"base": str(folder / "model"), "data": {"source": "file", "path": str(folder / "pairs.jsonl")}, "out": "rm"},
    )
    for name in ("made", "other"):
        make_run(folder / "runs" / name, Made())
    for name, content in CONFIGS.items():
        (folder / f"c-{name}.yaml").write_bytes(content)
    for name, content in (PROMPTS | LABELLED | PAIRS).items():
        (folder / name).write_bytes(content)
    for name in UNFIT:
        write_config(folder / f"d-{name}.yaml", good | {"prompts": good["prompts"] | {"path": str(folder / name)}})
    for name, source in JUDGES.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    make_bad_runs(folder)
    make_bad_models(folder)


def write_config(path: Path, values: dict[str, Any]) -> None:
    """As YAML."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def make_bad_runs(folder: Path) -> None:
    """Things that are no run of this version."""
    runs = folder / "runs"
    (folder / "a-file").write_text("a file\n", encoding="utf-8")
    (folder / "a-folder").mkdir()
    (runs / "file").write_text("a file\n", encoding="utf-8")
    (runs / "empty").mkdir()
    (runs / "circle").symlink_to("circle")
    for name, about in (("unmarked", None), ("future", '{"format": 99}'), ("broken", "{"), ("list", "[1]")):
        shutil.copytree(runs / "made", runs / name)
        (runs / name / "run.json").unlink()
        if about is not None:
            (runs / name / "run.json").write_text(about, encoding="utf-8")


def make_bad_models(folder: Path) -> None:
    """Copies of the model, each with one fault."""

    def change(name: str, file: str, **values: Any) -> None:
        path = _copied(folder, name) / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

    change("m-vocab", "config.json", vocab_size=100)
    change("m-hidden", "config.json", hidden_size=32)
    change("m-layers", "config.json", num_hidden_layers=3)
    change("m-type", "config.json", model_type="no_such_type")
    change("m-short", "config.json", max_position_embeddings=16)
    change("m-stops", "generation_config.json", eos_token_id=[257, 300, -1])
    change("m-stop-text", "generation_config.json", eos_token_id="</s>")
    change("m-quantised", "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    for name, file, content in (
        ("m-config", "config.json", "{"),
        ("m-config-list", "config.json", "[]"),
        ("m-tokenizer", "tokenizer.json", "{"),
        ("m-cut", "model.safetensors", "{}"),
        ("m-pointer", "model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        ("m-generation", "generation_config.json", "[]"),
        *((name.replace("t-", "m-t-"), "chat_template.jinja", text) for name, text in TEMPLATES.items()),
    ):
        path = _copied(folder, name) / file
        path.unlink(missing_ok=True)
        path.write_text(content, encoding="utf-8")
    for name, gone in (
        ("m-no-config", "config.json"),
        ("m-no-weights", "model.safetensors"),
        ("m-no-tokenizer", "tokenizer.json"),
    ):
        (_copied(folder, name) / gone).unlink()
    (_copied(folder, "m-adapter") / "config.json").rename(folder / "m-adapter" / "adapter_config.json")
    (folder / "fake.gguf").write_bytes(b"GGML")
    (folder / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")


def _copied(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder / "model", folder / name, copy_function=_linked))


def _linked(source: str, target: str) -> None:
    """The weights of all copies are one file."""
    (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, target)
