"""A packed folder gives back the student: the same predictions to the last bit, in a plain model of transformers."""

import copy
import hashlib
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from qat_lightning import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, open_attention, quantize
from qat_lightning.models.quantized_model import calibrate, switch_on
from qat_lightning.models.size import quantized_weights, size
from qat_lightning.quantization.modules.layers import QuantConv1D, QuantLinear
from qat_lightning.quantization.packing.bit_packing import unpack
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.exporters.students import METHODS, logits, student
from tests.tiny_models import DECODERS, FAMILIES, tiny_batch, tiny_model

TERNARY = [QuantizationRule("layers.*", weight=TernaryQuantizer)]
WORDS = QuantizationRule("embeddings.word", weight=TernaryQuantizer)


def quantizers(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Quantizer)}


def round_trip(model: torch.nn.Module, folder: Path, **options: object) -> PreTrainedModel:
    write_packed(model, folder)
    return load_packed(folder, **options)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


EVERYTHING = [(family, method) for family in (*FAMILIES, *DECODERS) for method in METHODS]
ASYMMETRIC = [(family, "uniform_w8a8_asymmetric") for family in ("bert", "vit", "gpt2")]
STATIC = [
    (family, f"{method} quantization.activation.scale=static")
    for family in ("bert", "vit", "gpt2")
    for method in ("ternary_w2a8", "uniform_w8a8_asymmetric")
]


@pytest.mark.parametrize(("family", "method"), EVERYTHING + ASYMMETRIC + STATIC)
def test_predicts_exactly_what_the_student_predicts(family: str, method: str, tmp_path: Path) -> None:
    model = student(family, method)
    loaded = round_trip(model, tmp_path / "packed")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits(loaded, family), logits(model, family))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize(
    "make",
    [
        TernaryQuantizer,
        BinaryQuantizer,
        partial(UniformQuantizer, 3),
        partial(AffineQuantizer, 4, range="mean"),
        AffineQuantizer,
        partial(LSQQuantizer, 4, parametrization="step_size"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_of_every_granularity(make, granularity: str, family: str, tmp_path: Path) -> None:
    """Without quantizers of activations the model is plain, its weights are the student's quantized ones."""
    made = partial(make, granularity=granularity, group_size=8 if granularity == "per_group" else None)
    model = quantize(
        tiny_model(family), [QuantizationRule("layers.*", weight=made), QuantizationRule("embeddings.*", weight=made)]
    )
    calibrate(model, [])
    loaded = round_trip(model, tmp_path / "packed")
    assert not quantizers(loaded)
    plain = tiny_model(family)
    assert {name: type(module) for name, module in loaded.named_modules()} == {
        name: type(module) for name, module in plain.named_modules()
    }
    for path, module in model.named_modules():
        if isinstance(getattr(module, "weight_quantizer", None), Quantizer):
            expected = module.weight_quantizer(module.quantized_weight)
            turned = expected.t() if isinstance(module, QuantConv1D) else expected
            assert torch.equal(loaded.get_submodule(path).weight, turned), path
    assert torch.equal(logits(loaded, family), logits(model, family))


def test_without_activations_all_layers_are_plain(tmp_path: Path) -> None:
    model = student("bert", "lsq_w2a8 quantization.weight.bits=3")
    loaded = round_trip(model, tmp_path / "packed", activations=False)
    assert not quantizers(loaded)
    assert not any(isinstance(module, QuantLinear) for module in loaded.modules())
    switch_on(model, [])
    for _, quantizer in quantized_weights(model):
        quantizer.enabled = True
    torch.testing.assert_close(logits(loaded, "bert"), logits(model, "bert"))


def test_full_precision_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = open_attention(tiny_model("bert"))
    manifest = write_packed(model, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    assert loaded.config._attn_implementation == "eager"  # as opened attention computes
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))
    assert manifest["bytes"]["float32"] == manifest["bytes"]["packed"] == manifest["bytes"]["full_precision"]


@pytest.mark.parametrize("kind", [BertForQuestionAnswering, BertModel])
def test_other_heads(kind, tmp_path: Path) -> None:
    model = quantize(kind(tiny_model("bert", num_labels=2).config).eval(), TERNARY)
    loaded, batch = round_trip(model, tmp_path / "packed"), tiny_batch("bert")
    assert type(loaded) is kind
    with torch.no_grad():
        assert torch.equal(loaded(batch["input_ids"])[0], model(batch["input_ids"])[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_table_is_there_as_each_reader_reads_it(family: str, tmp_path: Path) -> None:
    model = quantize(tiny_model(family, tie_word_embeddings=True), [*TERNARY, WORDS])
    loaded = round_trip(model, tmp_path / "packed")
    assert not loaded.config.tie_word_embeddings
    table, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight)
    assert len(table.unique()) <= 3
    assert torch.equal(logits(loaded, family), logits(model, family))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_table_in_full_precision_is_there_once(family: str, tmp_path: Path) -> None:
    model = quantize(tiny_model(family, tie_word_embeddings=True), TERNARY)
    manifest = write_packed(model, tmp_path / "packed")
    tables = [name for name, tensor in manifest["tensors"].items() if tensor["shape"] == [80, 32]]
    loaded = load_packed(tmp_path / "packed")
    assert len(tables) == 1
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.equal(logits(loaded, family), logits(model, family))


def test_codes_and_bytes_are_what_the_manifest_and_the_size_say(tmp_path: Path) -> None:
    model = student("bert", "ternary_w2a8")
    manifest = write_packed(model, tmp_path / "packed")
    assert manifest == json.loads((tmp_path / "packed/manifest.json").read_text())
    listed, counted = manifest["bytes"], size(model)
    assert (listed["packed"], listed["float32"]) == (counted.packed, counted.float32)
    assert listed["ratio"] == round(counted.ratio, 3)
    assert sum(tensor["bytes"] for tensor in manifest["tensors"].values()) == listed["packed"]
    file = (tmp_path / "packed/packed.safetensors").read_bytes()
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == listed["packed"]
    # 2 layers of 4·32·32 + 2·32·48, a pooler of 32·32 and 80 words of 32, 2 bits each; 13 scales, and one for each word
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 48) + 32 * 32 + 80 * 32
    assert listed["bits_per_weight"] == round(2 + 32 * (13 + 80) / weights, 4)
    name = "bert.pooler.dense.weight.codes"
    expected = {"shape": [256], "dtype": "U8", "bits": 2, "bytes": 256}
    assert {key: value for key, value in manifest["tensors"][name].items() if key != "sha256"} == expected
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    begin, end = (8 + int.from_bytes(file[:8], "little") + place for place in header[name]["data_offsets"])
    codes = unpack(torch.frombuffer(bytearray(file[begin:end]), dtype=torch.uint8), 2, 32 * 32)
    module = model.bert.pooler.dense
    assert torch.equal(codes.view(32, 32).int() - 1, module.weight_quantizer(module.weight).sign().int())
    assert manifest["tensors"][name]["sha256"] == hashlib.sha256(file[begin:end]).hexdigest()


def test_trits_and_half_precision(tmp_path: Path) -> None:
    model = student("bert", "ternary_w2a8")
    manifest = write_packed(model, tmp_path / "base3", ternary_encoding="base3")
    assert manifest["tensors"]["bert.pooler.dense.weight.codes"]["bits"] == 1.6
    assert manifest["tensors"]["bert.pooler.dense.weight.codes"]["bytes"] == math.ceil(32 * 32 / 5)
    assert torch.equal(logits(load_packed(tmp_path / "base3"), "bert"), logits(model, "bert"))

    manifest = write_packed(model, tmp_path / "half", unquantized_dtype="float16")
    assert {tensor["dtype"] for name, tensor in manifest["tensors"].items() if name.endswith("scale")} == {"F32"}
    halved = manifest["bytes"]
    total = size(model).packed
    assert halved["full_precision"] == (total - (halved["packed"] - halved["full_precision"])) / 2
    loaded = load_packed(tmp_path / "half", activations=False)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    kept, own = dict(loaded.named_parameters()), dict(model.named_parameters())
    assert torch.equal(kept["classifier.weight"], own["classifier.weight"].half().float())


def test_the_same_model_gives_the_same_bytes_over_what_was_there(tmp_path: Path) -> None:
    model, folder = student("bert", "lsq_w2a8 quantization.weight.bits=3"), tmp_path / "packed"
    write_packed(model, folder, facts={"metric": 0.75, "names": ("a", "b"), "counts": {2: 1, 10: 2}})
    first = digests(folder)
    write_packed(tiny_model("bert"), folder)
    assert digests(folder) != first
    write_packed(copy.deepcopy(model), folder, facts={"counts": {2: 1, 10: 2}, "names": ["a", "b"], "metric": 0.75})
    assert digests(folder) == first
    load_packed(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert json.loads((folder / "manifest.json").read_text())["facts"]["metric"] == 0.75


def test_a_failed_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    write_packed(tiny_model("bert"), folder)
    before = digests(folder)

    class Broken:
        def save_pretrained(self, place: Path) -> None:
            (Path(place) / "tokenizer.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_packed(student("bert", "ternary_w2a8"), folder, processor=Broken())
    model, rename = student("bert", "ternary_w2a8"), Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError("no rename")
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="no rename"):
            write_packed(model, folder)
    assert digests(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    """Killed while it wrote, and between the two renames: the old folder comes back even where the new export fails."""
    folder = tmp_path / "packed"
    write_packed(tiny_model("bert"), folder)
    before = digests(folder)
    folder.rename(tmp_path / f".packed.{'1' * 16}.old")
    (tmp_path / f".packed.{'2' * 16}.partial").mkdir()
    (tmp_path / ".packed.mine.old").mkdir()
    with pytest.raises(ValueError, match="has no place"):
        write_packed(student("bert", "ternary_w2a8"), folder, processor=Writes("model.bin", "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".packed.mine.old", "packed"]
    assert digests(folder) == before


class Writes:
    """A processor that writes one file."""

    def __init__(self, name: str, content: str) -> None:
        self.name, self.content = name, content

    def save_pretrained(self, place: Path) -> None:
        (Path(place) / self.name).write_text(self.content)


@pytest.mark.parametrize("name", ["notes.txt", "mine/notes.txt", ".hidden", "link"])
def test_a_users_files_in_a_packed_folder_are_never_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "packed"
    write_packed(tiny_model("bert"), folder)
    before = digests(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path) if name == "link" else (folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds something else, which would be lost, {name}: name a new"):
        write_packed(tiny_model("bert"), folder)
    (folder / name).unlink()
    if "/" in name:
        (folder / name).parent.rmdir()
    assert digests(folder) == before


@pytest.mark.parametrize("manifest", [None, "{", "[]", "{}", '{"files": ["x"]}', '{"files": {"model.bin": ""}}'])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, manifest: str | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "thesis.txt").write_text("four years")
    before = digests(tmp_path)
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        write_packed(tiny_model("bert"), tmp_path)
    assert digests(tmp_path) == before


def test_tokenizer_and_image_processor_lie_beside_the_weights(tmp_path: Path) -> None:
    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    manifest = write_packed(tiny_model("bert"), tmp_path / "text", processor=tokenizer)
    assert manifest["files"].keys() == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path / "text", local_files_only=True)
    assert read("good bad")["input_ids"] == [2, 1]
    manifest = write_packed(tiny_model("vit"), tmp_path / "images", processor=ViTImageProcessor())
    assert manifest["files"].keys() == {"config.json", "preprocessor_config.json"}
    load_packed(tmp_path / "text")
    load_packed(tmp_path / "images")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "writes config.json, which has no place"),
        ("tokenizer.py", "print()", "writes tokenizer.py"),
        ("vocabulary.pkl", "", "writes vocabulary.pkl"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "a.B"}}', "code of its own"),
        ("tokenizer_config.json", '{"\\u0061uto_map": {"AutoTokenizer": "a.B"}}', "code of its own"),
    ],
)
def test_a_processor_that_writes_what_could_run(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_packed(tiny_model("bert"), tmp_path / "packed", processor=Writes(name, content))
    assert not list(tmp_path.iterdir())


def test_keys_that_could_name_code_are_not_written(tmp_path: Path) -> None:
    model = quantize(tiny_model("bert"), TERNARY)
    expected = logits(model, "bert")
    model.config.auto_map = {"AutoModel": "evil.Model"}
    model.config.fusion_config = {"patch_embeddings": True}
    model.config._name_or_path = "/somewhere/private"
    write_packed(model, tmp_path / "packed")
    written = json.loads((tmp_path / "packed/config.json").read_text())
    assert not [
        key for key in written if key.startswith("_") or "implementation" in key or key in ("auto_map", "fusion_config")
    ]
    assert "private" not in json.dumps(written)
    assert torch.equal(logits(load_packed(tmp_path / "packed"), "bert"), expected)


def quantize_one_layer_alone(model: torch.nn.Module) -> None:
    quantize(model, [], AttentionQuantization(query=UniformQuantizer))
    model.bert.encoder.layer[1].attention.self.core.query_quantizer = torch.nn.Identity()


def derive_a_class_of_the_same_name(model: torch.nn.Module) -> None:
    model.__class__ = type("BertForSequenceClassification", (type(model),), {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: quantize(model, [QuantizationRule("layers.*", input=torch.nn.Tanh)]), "input_quantizer"),
        (quantize_one_layer_alone, "attention.query"),
        (lambda model: setattr(model, "dropout", torch.nn.Sequential(UniformQuantizer())), r"dropout\.0"),
        (lambda model: switch_on(quantize(model, TERNARY), ["layers.0.*"]), r"layer\.1\.\S*weight_quantizer"),
        (lambda model: torch.nn.init.constant_(model.classifier.bias, float("nan")), r"classifier\.bias"),
        (derive_a_class_of_the_same_name, "own class"),
    ],
)
def test_a_model_that_cannot_be_read_again_is_refused(spoil, message: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    spoil(model)
    with pytest.raises(ValueError, match=message):
        write_packed(model, tmp_path / "packed")
    for facts in ({"metric": float("nan")}, {"model": torch.nn.Identity()}):
        with pytest.raises(ValueError, match="facts"):
            write_packed(tiny_model("bert"), tmp_path / "packed", facts=facts)
    assert not list(tmp_path.iterdir())


def test_a_student_in_bfloat16_is_read_in_float32(tmp_path: Path) -> None:
    model = quantize(tiny_model("bert").bfloat16(), TERNARY)
    loaded = dict(round_trip(model, tmp_path / "packed").named_parameters())
    layer = "bert.encoder.layer.0.intermediate.dense"
    assert {parameter.dtype for parameter in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["classifier.weight"], model.classifier.weight.float())
    assert torch.equal(loaded[f"{layer}.weight"], TernaryQuantizer()(model.get_submodule(layer).weight.float()))


def test_transformers_itself_refuses_the_folder(tmp_path):
    """It knows no such method, would only warn, and go on with random weights, were there a file of the usual name."""
    write_packed(student("bert", "ternary_w2a8"), tmp_path / "packed")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
