"""The reader refuses a damaged or changed folder with one line that names the tensor or the file."""

import json
import os
import shutil
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
from qat_lightning.exporters.packed.untrusted_files import PackedError, sha256
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.convert import QuantizationRule, quantize
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from tests.exporters.students import student
from tests.tiny_models import tiny_model

POOLER = "bert.pooler.dense"
CODES, SCALE = f"{POOLER}.weight.codes", f"{POOLER}.weight.scale"
FILES = ["config.json", "manifest.json", "packed.safetensors", "vocab.txt"]


class Vocabulary:
    """A tokenizer that writes two files."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "vocab.txt").write_text("[PAD]\nwörd\n", encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text('{"model_max_length": 24}')


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "packed"
    model = student("bert", "lsq_w2a8 quantization.weight.bits=3")
    write_packed(model, folder, processor=Vocabulary(), facts={"metric": 0.75})
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "packed"))


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(PackedError, match=message) as caught:
        load_packed(folder)
    assert "\n" not in str(caught.value)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and update its checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest.pop("sha256", None)
    (folder / "manifest.json").write_bytes(canonical(manifest | {"sha256": sha256(canonical(manifest))}))


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json and update its checksum in the manifest."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    change_manifest(
        folder, lambda manifest: manifest["files"].update({"config.json": sha256(json.dumps(config).encode())})
    )


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors and update their entries in the manifest."""
    tensors = load_file(folder / "packed.safetensors")
    change(tensors)
    save_file(tensors, folder / "packed.safetensors", metadata={"format": "pt"})
    kinds = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16"}
    listed = {
        name: {"shape": list(x.shape), "dtype": kinds[x.dtype], "bytes": x.nbytes, "sha256": sha256(x.numpy())}
        for name, x in tensors.items()
    }
    change_manifest(folder, lambda manifest: manifest.update(tensors=listed))


def have_equal_tensors(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_the_whole_folder_is_read(folder: Path) -> None:
    for change in (change_manifest, change_config, change_tensors):
        change(folder, lambda content: None)
    assert have_equal_tensors(load_packed(folder), load_packed(str(folder)))


@settings(max_examples=50)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_mean_nothing(exported: Path, data: st.DataObject) -> None:
    original = load_packed(exported)
    name = data.draw(st.sampled_from(sorted(path.name for path in exported.iterdir())))
    content = (exported / name).read_bytes()
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, min(len(content) - 1, 3000))))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        (exported / name).write_bytes(changed)
        loaded = load_packed(exported)
    except PackedError:
        return
    finally:
        (exported / name).write_bytes(content)
    assert have_equal_tensors(loaded, original)


@settings(max_examples=40)
@given(data=st.data())
def test_cut_files_are_refused(exported: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in exported.iterdir())))
    content = (exported / name).read_bytes()
    # without the newline at its end a file of JSON of which there is no checksum says the same
    length = data.draw(st.integers(0, len(content) - 2))
    try:
        (exported / name).write_bytes(content[:length])
        with pytest.raises(PackedError, match=name.replace(".", r"\.")):
            load_packed(exported)
    finally:
        (exported / name).write_bytes(content)


def test_a_flipped_byte_names_its_tensor(folder: Path) -> None:
    for name in (CODES, SCALE, "classifier.bias"):
        tensors = load_file(folder / "packed.safetensors")
        tensors[name].reshape(-1).view(torch.uint8)[-1] ^= 1
        save_file(tensors, folder / "packed.safetensors", metadata={"format": "pt"})
        assert_refused(folder, "sha256 of ")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_not_a_regular_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert_refused(folder, name)
    (folder / name).unlink()
    assert_refused(folder, name)
    for make, remove in ((os.mkdir, os.rmdir), (os.mkfifo, os.unlink)):
        make(folder / name)
        assert_refused(folder, f"{name} is not a plain file")
        remove(folder / name)
    (folder / name).symlink_to(name)
    assert_refused(folder, name)


def test_a_link_to_the_folder_and_links_inside_it_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").rename(folder / "words.txt")
    (folder / "vocab.txt").symlink_to("words.txt")
    (tmp_path / "link").symlink_to(folder)
    load_packed(tmp_path / "link")


def test_what_is_no_packed_folder(folder: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "is not a folder: give the folder that an export has written")
    assert_refused(folder / "config.json", "is not a folder")
    tiny_model("bert").save_pretrained(tmp_path / "plain")
    assert_refused(tmp_path / "plain", "is a plain transformers folder: read it with from_pretrained")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "config.json")


def test_a_later_format(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(format=2))
    assert_refused(folder, r"is of a later version \(format 2\): update qat-lightning")


def codes_entry(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["tensors"][CODES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["tensors"].pop(CODES), CODES),
        (lambda manifest: manifest["tensors"].update(x={}), "the tensor x"),
        (lambda manifest: codes_entry(manifest).update(dtype="F32"), f"dtype of {CODES}"),
        (lambda manifest: codes_entry(manifest).update(bytes=385), f"bytes of {CODES}"),
        (lambda manifest: codes_entry(manifest).update(sha256="0" * 64), f"sha256 of {CODES}"),
        (lambda manifest: manifest["tensors"].update({CODES: []}), f"of {CODES}"),
        (lambda manifest: manifest["files"].update({"vocab.txt": "0" * 64}), "vocab.txt"),
        (lambda manifest: manifest["files"].pop("config.json"), "config.json"),
        (lambda manifest: manifest["files"].update({"": ""}), "leads out of the folder"),
        (lambda manifest: manifest.pop("tensors"), "lists no tensors and files"),
        (lambda manifest: manifest.update(files=[]), "lists no tensors and files"),
    ],
)
def test_a_manifest_that_disagrees(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change_manifest(folder, change)
    assert_refused(folder, message)


def test_a_manifest_that_was_edited(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("0.75", "0.95"))
    assert_refused(folder, "manifest.json was changed after the export")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a name twice in one object"),
        ('{"a": NaN}', "Out of range float"),
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
    assert_refused(folder, f"{name} .*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({SCALE: tensors[SCALE] * float("nan")}), f"{SCALE} is not finite"),
        (lambda tensors: tensors.update({"classifier.bias": torch.full((3,), float("inf"))}), "bias is not finite"),
        (lambda tensors: tensors.update({SCALE: tensors[SCALE].half()}), "a scale or a zero point of torch.float16"),
        (lambda tensors: tensors.update({SCALE: torch.ones(5)}), r"bert\.pooler\.dense\.weight: "),
        (lambda tensors: tensors.update({SCALE: torch.ones(2, 32, 32)}), r"a scale of shape \(2, 32, 32\)"),
        (lambda tensors: tensors.pop(SCALE), f"the tensor {SCALE} is missing"),
        (lambda tensors: tensors.update({CODES: tensors[CODES][:-1].clone()}), "384 bytes"),
        (lambda tensors: tensors.update({"x.weight.codes": tensors[CODES].clone()}), "x.weight"),
        (lambda tensors: tensors.update({"bert.pooler.dense.weight": torch.ones(32, 32)}), "is not part of a weight"),
        (lambda tensors: tensors.update({"x.bias": torch.ones(3)}), "x.bias is not a tensor of a BertForSequence"),
        (lambda tensors: tensors.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda tensors: tensors.update({"classifier.bias": torch.ones(4)}), r"float32 \(4,\) where the model has"),
        (lambda tensors: tensors.update({"classifier.bias": torch.ones(3).byte()}), r"uint8 \(3,\) where the model"),
        (lambda tensors: tensors.pop(f"{POOLER}.input_quantizer.step_size"), r"input_quantizer\.step_size"),
    ],
)
def test_tensors_that_do_not_go_together(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """Though every checksum holds."""
    change_tensors(folder, change)
    assert_refused(folder, message)


def test_offsets_that_are_missing(tmp_path: Path) -> None:
    model = quantize(tiny_model("bert"), [QuantizationRule("pooler", weight=lambda: AffineQuantizer(4, "per_channel"))])
    write_packed(model, tmp_path / "packed")
    load_packed(tmp_path / "packed")
    change_tensors(tmp_path / "packed", lambda tensors: tensors.pop("bert.pooler.dense.weight.zero_point"))
    assert_refused(tmp_path / "packed", r"the tensor bert\.pooler\.dense\.weight\.zero_point is missing")


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
        change_config(folder, lambda config, key=key: config.update({key: "evil/kernel:run"}))
        assert_refused(folder, f"code of its own|'{key}' is not a field")


def block(config: dict[str, Any]) -> dict[str, Any]:
    return config["quantization_config"]


def weight(config: dict[str, Any]) -> dict[str, Any]:
    return block(config)["weights"][POOLER]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(model_type="t5"), "the model family 't5' has no table of parts"),
        (lambda config: config.update(model_type=["bert"]), "has no table of parts"),
        (lambda config: config.update(architectures=["GPT2LMHeadModel"]), "is not a model of the family bert"),
        (lambda config: config.update(architectures=None), "None is not a model of the family bert"),
        (lambda config: config.update(dtype="load"), "dtype='load' where a packed model is float32"),
        (lambda config: config.update(hidden_size="wide"), "hidden_size"),
        (lambda config: config.update(hidden_act="os.system"), "describes no BertForSequenceClassification"),
        (lambda config: config.update(num_hidden_layers=3), "is missing"),
        (lambda config: config.update(hidden_size=64), "where the model has"),
        (lambda config: config.update(num_attention_heads=5), "describes no BertForSequenceClassification"),
        (lambda config: config.update(quantization_config="x"), "quantization_config is of 'x'"),
        (lambda config: block(config).update(format=2), "the packed format 2 is not 1: update"),
        (lambda config: block(config).pop("eager"), "packed: "),
        (lambda config: block(config).update(weights=[]), "packed: "),
        (lambda config: block(config)["weights"].pop(POOLER), f"{POOLER}.weight.(codes|scale)"),
        (lambda config: block(config)["quantizers"].update(x={"class": "eval", "spec": {}}), "eval"),
        (lambda config: block(config)["inputs"].update({"layers.*": "x"}), "'x' is not described"),
        (lambda config: block(config)["inputs"].update(pooler="x"), "packed: "),
        (lambda config: block(config)["inputs"].update(decoder=block(config)["inputs"]["pooler"]), "decoder"),
        (lambda config: block(config)["attention"].update(forward="x"), "packed: "),
        (lambda config: weight(config).update(quantizer="x"), "packed: "),
        (lambda config: weight(config).update(bits=9), "the description of bert.pooler.dense.weight is not valid"),
        (lambda config: weight(config).update(bits=4), "1024 codes, 4 bits each, take 512 bytes"),
        (lambda config: weight(config).update(packing="zip"), "packed: "),
        (lambda config: weight(config).update(shape=[]), "is not valid"),
        (lambda config: weight(config).update(shape=[-32, -32]), "is not valid"),
        (lambda config: weight(config).update(shape=[2**40, 2**40]), "codes, 3 bits each, take"),
        (lambda config: weight(config).update(shape=[16, 64]), r"\(16, 64\) where the model has"),
        (lambda config: weight(config).update(group_size=5), "is not valid"),
        (lambda config: weight(config).update(zero_point="1"), "is not valid"),
        (lambda config: weight(config).update(zero_point=None), "weight.zero_point is missing"),
        (lambda config: weight(config).update(more=1), "packed: "),
    ],
)
def test_a_configuration_that_makes_no_sense(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Though every checksum holds."""
    change_config(folder, change)
    assert_refused(folder, message)


def test_a_tokenizer_that_names_code(folder: Path) -> None:
    text = '{"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}'
    (folder / "tokenizer_config.json").write_text(text)
    change_manifest(folder, lambda manifest: manifest["files"].update({"tokenizer_config.json": sha256(text.encode())}))
    assert_refused(folder, r"tokenizer_config.json names code of its own \(auto_map\), which is never run")


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
