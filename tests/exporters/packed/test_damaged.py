"""A damaged or changed folder is refused with one line that names the tensor or the file."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from qat_lightning.exporters.packed.manifest import canonical
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.untrusted_files import LARGEST_JSON, PackedError, sha256
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.convert import QuantizationRule, quantize
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from tests.exporters.students import student
from tests.tiny_models import tiny_model

CODES = "bert.pooler.dense.weight.codes"
SCALE = "bert.pooler.dense.weight.scale"


class Vocabulary:
    """Stands in for a tokenizer."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "vocab.txt").write_text("[PAD]\nwörd\n", encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text('{"model_max_length": 24}')


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "packed"
    write_packed(
        student("bert", "lsq_w2a8 quantization.weight.bits=3"), folder, processor=Vocabulary(), facts={"metric": 0.75}
    )
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "packed"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(PackedError, match=message) as caught:
        load_packed(folder)
    assert "\n" not in str(caught.value)


def sealed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and give it the checksum that it would have: one that only its contents can betray."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest.pop("sha256", None)
    (folder / "manifest.json").write_bytes(canonical(manifest | {"sha256": sha256(canonical(manifest))}))


def configured(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json, and the manifest so that it agrees."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sealed(folder, lambda manifest: manifest["files"].update({"config.json": sha256(json.dumps(config).encode())}))


def stored(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors, and the manifest so that it agrees."""
    tensors = load_file(folder / "packed.safetensors")
    change(tensors)
    save_file(tensors, folder / "packed.safetensors", metadata={"format": "pt"})
    kinds = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16"}
    listed = {
        name: {
            "shape": list(tensor.shape),
            "dtype": kinds[tensor.dtype],
            "bytes": tensor.nbytes,
            "sha256": sha256(tensor.numpy()),
        }
        for name, tensor in tensors.items()
    }
    sealed(folder, lambda manifest: manifest.update(tensors=listed))


def header(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "packed.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(folder: Path, entries: dict[str, Any], body: bytes) -> None:
    text = json.dumps(entries).encode()
    (folder / "packed.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_the_whole_folder_is_read(folder: Path) -> None:
    for change in (sealed, configured, stored):
        change(folder, lambda content: None)
    assert same(load_packed(folder), load_packed(str(folder)))


@settings(max_examples=50)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_mean_nothing(whole: Path, data: st.DataObject) -> None:
    original = load_packed(whole)
    name = data.draw(st.sampled_from(sorted(path.name for path in whole.iterdir())))
    content = (whole / name).read_bytes()
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, min(len(content) - 1, 3000))))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        (whole / name).write_bytes(changed)
        loaded = load_packed(whole)
    except PackedError:
        return
    finally:
        (whole / name).write_bytes(content)
    assert same(loaded, original)


@settings(max_examples=40)
@given(data=st.data())
def test_cut_files_are_refused(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in whole.iterdir())))
    content = (whole / name).read_bytes()
    # without the newline at its end a file of JSON of which there is no checksum says the same
    length = data.draw(st.integers(0, len(content) - 2))
    try:
        (whole / name).write_bytes(content[:length])
        with pytest.raises(PackedError, match=name.replace(".", r"\.")):
            load_packed(whole)
    finally:
        (whole / name).write_bytes(content)


def test_a_flipped_byte_names_its_tensor(folder: Path) -> None:
    entries, body = header(folder)
    for name in (CODES, SCALE, "classifier.bias"):
        changed = bytearray(body)
        changed[entries[name]["data_offsets"][1] - 1] ^= 1
        write(folder, entries, bytes(changed))
        refused(folder, f"sha256 of {re.escape(name)}")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "packed.safetensors", "vocab.txt"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, rf"{name} cannot be read \(No such file or directory\): export again, or copy")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "packed.safetensors", "vocab.txt"])
def test_an_empty_file_a_folder_and_a_pipe(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    refused(folder, name)
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} is not a file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    refused(folder, f"{name} is not a file")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "packed.safetensors", "vocab.txt"])
def test_links_out_of_the_folder(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, f"{name} is a link out of the folder: copy the file itself")


def test_a_link_to_itself(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to("vocab.txt")
    refused(folder, "vocab.txt cannot be read")


def test_a_link_to_the_folder_and_links_inside_it_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").rename(folder / "words.txt")
    (folder / "vocab.txt").symlink_to("words.txt")
    (tmp_path / "link").symlink_to(folder)
    load_packed(tmp_path / "link")


def test_what_is_no_packed_folder(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is not a folder: give the folder that an export has written")
    refused(folder / "config.json", "is not a folder")
    tiny_model("bert").save_pretrained(tmp_path / "plain")
    refused(tmp_path / "plain", "is a plain transformers folder, not a packed one: read it with AutoModel")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json cannot be read")


def test_a_later_format(folder: Path) -> None:
    sealed(folder, lambda manifest: manifest.update(format=2))
    refused(folder, r"was written by a later version \(format 2\): update qat-lightning")


def first(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["tensors"][CODES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["tensors"].pop(CODES), f"has the tensor {CODES}, which manifest.json does not list"),
        (lambda manifest: manifest["tensors"].update(x={}), "lacks the tensor x, which manifest.json lists"),
        (
            lambda manifest: first(manifest).update(shape=[32, 12]),
            f"shape of {CODES}",
        ),
        (lambda manifest: first(manifest).update(dtype="F32"), f"dtype of {CODES}"),
        (lambda manifest: first(manifest).update(bytes=385), f"bytes of {CODES}"),
        (lambda manifest: first(manifest).update(sha256="0" * 64), f"sha256 of {CODES}"),
        (lambda manifest: manifest["tensors"].update({CODES: []}), f"of {CODES}"),
        (
            lambda manifest: manifest["files"].update({"vocab.txt": "0" * 64}),
            "vocab.txt is not the file that was exported",
        ),
        (lambda manifest: manifest["files"].pop("config.json"), "manifest.json does not know config.json"),
        (lambda manifest: manifest["files"].update({"../x.json": ""}), r"'\.\./x\.json' leads out of the folder"),
        (lambda manifest: manifest["files"].update({"/etc/x.json": ""}), r"'/etc/x\.json' leads out of the folder"),
        (lambda manifest: manifest["files"].update({"a\\x.json": ""}), "leads out of the folder"),
        (lambda manifest: manifest["files"].update({"": ""}), "leads out of the folder"),
        (lambda manifest: manifest["files"].update({"code.py": ""}), "code.py is not a file of a packed folder"),
        (lambda manifest: manifest.pop("tensors"), "lists no tensors and files"),
        (lambda manifest: manifest.update(files=[]), "lists no tensors and files"),
    ],
)
def test_a_manifest_that_disagrees(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    sealed(folder, change)
    refused(folder, message)


def test_a_manifest_that_was_edited(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("0.75", "0.95"))
    refused(folder, "manifest.json was changed after the export")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a name twice in one object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "JSON"),
        ('{"a": "\\ud800"}', "JSON"),
        ("[" * 200_000, "JSON"),
        ("[]", "JSON"),
        ("", "JSON"),
        (b"\xff\xfe", "JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_no_json(folder: Path, name: str, text: str | bytes, message: str) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, f"{name} .*{message}")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, LARGEST_JSON + 1, 10**6])
def test_absurd_lengths_of_the_header(folder: Path, length: int) -> None:
    data = (folder / "packed.safetensors").read_bytes()
    (folder / "packed.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])
    refused(folder, "packed.safetensors")


ENTRIES: list[dict[str, Any]] = [
    {"dtype": "F64"}, {"dtype": ["F32"]}, {"shape": [-384]}, {"shape": [384.0]}, {"shape": [True, 384]}, {"shape": 384},
    {"shape": [2**62, 2**62]}, {"data_offsets": [0]}, {"data_offsets": [384, 0]}, {"data_offsets": None},
    {"data_offsets": [1, 385]},
]  # fmt: skip


@pytest.mark.parametrize("entry", [*ENTRIES, {}], ids=str)
def test_a_header_that_does_not_fit_the_bytes(folder: Path, entry: dict[str, Any]) -> None:
    entries, body = header(folder)
    entries[CODES] |= entry
    write(folder, entries, body if entry else body + b"more")
    refused(folder, "packed.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({SCALE: tensors[SCALE] * float("nan")}), f"{SCALE} is not finite"),
        (lambda tensors: tensors.update({"classifier.bias": torch.full((3,), float("inf"))}), "bias is not finite"),
        (lambda tensors: tensors.update({SCALE: tensors[SCALE].half()}), "a scale or a zero point of torch.float16"),
        (lambda tensors: tensors.update({SCALE: torch.ones(5)}), r"bert\.pooler\.dense\.weight: "),
        (lambda tensors: tensors.update({SCALE: torch.ones(2, 32, 32)}), r"a scale of shape \(2, 32, 32\)"),
        (lambda tensors: tensors.pop(SCALE), f"the tensor {SCALE} is missing"),
        (
            lambda tensors: tensors.update({CODES: tensors[CODES][:-1].clone()}),
            "1024 codes, 3 bits each, take 384 bytes",
        ),
        (
            lambda tensors: tensors.update({"x.weight.codes": tensors[CODES].clone()}),
            "is not part of a weight",
        ),
        (lambda tensors: tensors.update({"bert.pooler.dense.weight": torch.ones(32, 32)}), "is not part of a weight"),
        (lambda tensors: tensors.update({"x.bias": torch.ones(3)}), "x.bias is not a tensor of a BertForSequence"),
        (lambda tensors: tensors.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda tensors: tensors.update({"classifier.bias": torch.ones(4)}), r"float32 \(4,\) where the model has"),
        (lambda tensors: tensors.update({"classifier.bias": torch.ones(3).byte()}), r"uint8 \(3,\) where the model"),
        (
            lambda tensors: tensors.pop("bert.pooler.dense.input_quantizer.step_size"),
            r"pooler\.dense\.input_quantizer\.step_size is missing",
        ),
    ],
)
def test_tensors_that_do_not_go_together(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """Though every checksum holds."""
    stored(folder, change)
    refused(folder, message)


def test_offsets_that_are_missing(tmp_path: Path) -> None:
    model = quantize(tiny_model("bert"), [QuantizationRule("pooler", weight=lambda: AffineQuantizer(4, "per_channel"))])
    write_packed(model, tmp_path / "packed")
    load_packed(tmp_path / "packed")
    stored(tmp_path / "packed", lambda tensors: tensors.pop("bert.pooler.dense.weight.zero_point"))
    refused(tmp_path / "packed", r"the tensor bert\.pooler\.dense\.weight\.zero_point is missing")


KEYS = (
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "fusion_config",
    "distributed_config", "per_layer_config", "kernel_config", "use_kernels", "transformers_weights",
    "custom_generate", "trust_remote_code", "_name_or_path", "torch_dtype",
)  # fmt: skip


def test_keys_that_could_name_code_or_a_kernel(folder: Path) -> None:
    original = (folder / "config.json").read_bytes()
    for key in KEYS:
        (folder / "config.json").write_bytes(original)
        configured(folder, lambda config, key=key: config.update({key: "evil/kernel:run"}))
        refused(folder, f"code of its own|'{key}' is not a field")


def block(config: dict[str, Any]) -> dict[str, Any]:
    return config["quantization_config"]


def weight(config: dict[str, Any]) -> dict[str, Any]:
    return block(config)["weights"]["bert.pooler.dense"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(model_type="t5"), "the model family 't5' has no table of parts"),
        (lambda config: config.update(model_type=["bert"]), "has no table of parts"),
        (
            lambda config: config.update(architectures=["GPT2LMHeadModel"]),
            "is not a model of the family bert; known: Bert",
        ),
        (lambda config: config.update(architectures=["os.system"]), "is not a model of the family bert"),
        (lambda config: config.update(architectures=None), "None is not a model of the family bert"),
        (lambda config: config.update(dtype="load"), "dtype='load' where a packed model is float32"),
        (lambda config: config.update(hidden_size="wide"), "config.json cannot be read"),
        (lambda config: config.update(hidden_act="os.system"), "describes no BertForSequenceClassification"),
        (lambda config: config.update(num_hidden_layers=3), "is missing"),
        (lambda config: config.update(hidden_size=64), "where the model has"),
        (lambda config: config.update(num_attention_heads=5), "describes no BertForSequenceClassification"),
        (lambda config: config.update(quantization_config="x"), "quantization_config is of 'x'"),
        (lambda config: block(config).update(quant_method="gptq"), "is of 'gptq', not of 'qat_lightning'"),
        (lambda config: block(config).update(format=2), "the packed format 2 is not 1: update"),
        (lambda config: block(config).pop("eager"), "cannot be read"),
        (lambda config: block(config).update(weights=[]), "cannot be read"),
        (
            lambda config: block(config)["weights"].pop("bert.pooler.dense"),
            "bert.pooler.dense.weight.(codes|scale) is not part of a weight",
        ),
        (lambda config: block(config)["quantizers"].update(x={"class": "eval", "spec": {}}), "eval"),
        (lambda config: block(config)["inputs"].update({"layers.*": "x"}), "'x' is not described"),
        (lambda config: block(config)["inputs"].update(pooler="x"), "cannot be read"),
        (lambda config: block(config)["inputs"].update(decoder=block(config)["inputs"]["pooler"]), "do not fit"),
        (lambda config: block(config)["attention"].update(forward="x"), "cannot be read"),
        (lambda config: weight(config).update(quantizer="x"), "cannot be read"),
        (lambda config: weight(config).update(bits=9), "the description of bert.pooler.dense.weight is not valid"),
        (lambda config: weight(config).update(bits=4), "1024 codes, 4 bits each, take 512 bytes"),
        (lambda config: weight(config).update(packing="zip"), "cannot be read"),
        (lambda config: weight(config).update(shape=[]), "is not valid"),
        (lambda config: weight(config).update(shape=[-32, -32]), "is not valid"),
        (lambda config: weight(config).update(shape=[2**40, 2**40]), "codes, 3 bits each, take"),
        (lambda config: weight(config).update(shape=[16, 64]), r"\(16, 64\) where the model has"),
        (lambda config: weight(config).update(group_size=5), "is not valid"),
        (lambda config: weight(config).update(zero_point="1"), "is not valid"),
        (lambda config: weight(config).update(zero_point=None), "weight.zero_point is missing"),
        (lambda config: weight(config).update(more=1), "cannot be read"),
    ],
)
def test_a_configuration_that_makes_no_sense(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Though every checksum holds."""
    configured(folder, change)
    refused(folder, message)


def test_a_tokenizer_that_names_code(folder: Path) -> None:
    text = '{"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}'
    (folder / "tokenizer_config.json").write_text(text)
    sealed(folder, lambda manifest: manifest["files"].update({"tokenizer_config.json": sha256(text.encode())}))
    refused(folder, r"tokenizer_config.json names code of its own \(auto_map\), which is never run")


def test_files_that_nobody_listed_are_not_read(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('run')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    (folder / "adapter_config.json").write_text("not read")
    load_packed(folder)


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(tmp_path):
    """snapshots/REVISION/packed/FILE → ../../../blobs/DIGEST; a link to anywhere else is refused."""
    packed = tmp_path / "snapshots" / "abc" / "packed"
    write_packed(student("bert", "ternary_w2a8"), packed)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(packed.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("../../../blobs") / str(number))
    assert load_packed(packed)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "blobs" / "0").rename(tmp_path / "elsewhere" / "0")
    (packed / "config.json").unlink()
    (packed / "config.json").symlink_to("../../../elsewhere/0")
    with pytest.raises(PackedError, match="link out of the folder"):
        load_packed(packed)
