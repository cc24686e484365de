"""What works for each family, on random tiny models; docs/families.md shows the same matrix."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn

from qat_lightning.commands.check_model import checks
from qat_lightning.commands.check_model.checks import INTERVENTIONS, check_onnx, run_checks
from qat_lightning.commands.check_model.rows import Result
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.exporters.packed.model_config import read_config
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule, keep_layers, open_attention, quantize
from qat_lightning.models.families import FAMILIES
from qat_lightning.models.module_paths import has_site, layer_config, layer_paths, part_paths, site_paths
from qat_lightning.models.sites import AXES, FACTORS
from qat_lightning.models.size import bits
from qat_lightning.quantization.quantizers import TernaryQuantizer, UniformQuantizer
from tests.exporters.students import student
from tests.tiny_models import (
    CLASSES,
    HEADS,
    IMAGE_FAMILIES,
    LAYERS,
    LENGTHS,
    OTHER_DECODERS,
    OTHER_IMAGES,
    OTHER_TEXTS,
    VOCABULARY,
    WIDTH,
    tiny_batch,
    tiny_model,
    without_labels,
)
from tests.training.runs import small_run

OTHERS = OTHER_TEXTS + OTHER_IMAGES + OTHER_DECODERS
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def logits(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return SignalCapture(model)(tiny_batch(family))["logits"][0]


def make_batch(family: str, seed: int, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return without_labels(tiny_batch(family, seed, lengths))


@cache
def results(family: str) -> dict[str, Result]:
    checks = run_checks(partial(tiny_model, family), partial(make_batch, family), onnx=False)
    return {result.check: result for result in checks}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_passes_every_check(family: str) -> None:
    assert [result for result in results(family).values() if result.status == "failed"] == []
    assert {"equal to eager attention", "sites", "packed", *INTERVENTIONS} <= results(family).keys()


@pytest.mark.parametrize("family", OTHERS)
def test_every_site_has_its_shape_and_the_map_gives_the_context(family: str) -> None:
    model = open_attention(tiny_model(family))
    sites = [site for site in AXES if has_site(model, site)]
    with torch.no_grad():
        signals = SignalCapture(model, [*sites, *FACTORS])(tiny_batch(family))
    tokens = signals["hidden"][0].shape[1]
    heads = layer_config(model).num_attention_heads
    sizes = {"B": len(LENGTHS), "N": tokens, "M": tokens, "H": heads, "D": WIDTH // heads, "E": WIDTH}
    counts = dict.fromkeys(AXES, LAYERS) | {"hidden": LAYERS + 1}
    narrow = getattr(model.config, "num_key_value_heads", heads) * WIDTH // heads
    for site in sites:
        shape = tuple(sizes.get(axis, 0) for axis in AXES[site])
        if site in ("attention.key", "attention.value"):
            shape = (*shape[:2], narrow)
        if site != "logits":
            assert [tensor.shape for tensor in signals[site]] == [shape] * counts[site], site
    words = VOCABULARY if family in OTHER_DECODERS else CLASSES
    assert signals["logits"][0].shape[-1] == words
    for layer in range(LAYERS):
        query, key, mask = (signals[name][layer] for name in FACTORS)
        scores = query @ key.repeat_interleave(heads // key.shape[1], 1).transpose(2, 3) + mask
        torch.testing.assert_close(scores.softmax(-1), signals["attention.probs"][layer])
        merged = signals["attention.context"][layer].transpose(1, 2).flatten(2)
        project = model.get_submodule(site_paths(model, "attention.projection")[layer])
        assert torch.equal(signals["attention.projection"][layer], project(merged))


@pytest.mark.parametrize(
    "family",
    [family if family in ("modernbert", "dinov2") else pytest.param(family, marks=pytest.mark.slow)
     for family in OTHER_TEXTS + OTHER_IMAGES],
)  # fmt: skip
def test_onnx_file_computes_what_the_student_computes(family: str) -> None:
    assert check_onnx(partial(tiny_model, family), partial(make_batch, family)) is None


PATCH = QuantizationRule("embeddings.patch", partial(TernaryQuantizer, "per_channel"), UniformQuantizer)


@pytest.mark.parametrize("family", IMAGE_FAMILIES + OTHER_IMAGES)
def test_a_patch_embedding_is_quantized_where_a_rule_names_it(family: str, tmp_path: Path) -> None:
    plain, model = tiny_model(family), quantize(tiny_model(family), [PATCH])
    assert (bits(plain)["embeddings.patch"], bits(model)["embeddings.patch"]) == (32, 2)
    assert not torch.equal(logits(model, family), logits(plain, family))
    write_packed(model, tmp_path / "packed")
    assert torch.equal(logits(load_packed(tmp_path / "packed"), family), logits(model, family))
    SignalCapture(model)(tiny_batch(family))["logits"][0].sum().backward()
    assert model.get_parameter(f"{part_paths(model)['embeddings.patch']}.weight").grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_onnx_file_has_the_packed_patch_embedding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "RULES", (PATCH, *checks.RULES))
    assert check_onnx(partial(tiny_model, family), partial(make_batch, family)) is None


def test_the_rule_of_embeddings_can_name_the_patch_embedding() -> None:
    override = "quantization.rules.embedding.target_modules=embeddings.patch"
    assert bits(student("vit", "ternary_w2a8", override))["embeddings.patch"] == 2
    assert bits(student("vit", "ternary_w2a8"))["embeddings.patch"] == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"share_att_key": False},
        {"pos_att_type": ["c2p"]},
        {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"},
        {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
    ],
)
def test_every_kind_of_disentangled_attention_is_opened_and_packed(changes: dict[str, object], tmp_path: Path) -> None:
    """DeBERTa-v2's configuration has keys that its class does not declare; padding has no gradient in its attention."""
    results = []
    for model in (tiny_model("deberta-v2", **changes), open_attention(tiny_model("deberta-v2", **changes))):
        torch.manual_seed(1)
        signals = SignalCapture(model.train(), ["hidden"])(tiny_batch("deberta-v2"))
        signals["hidden"][-1].square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([*signals["hidden"], *gradients])
    assert len(results[0]) > LAYERS + 1
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    write_packed(tiny_model("deberta-v2", **changes), tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    assert {name: getattr(loaded.config, name) for name in changes} == changes
    assert torch.equal(logits(loaded, "deberta-v2"), logits(tiny_model("deberta-v2", **changes), "deberta-v2"))


@pytest.mark.parametrize("opened", [False, True])
def test_signals_and_stops_are_of_tokens_where_a_projection_reads_relative_positions_too(opened: bool) -> None:
    model = tiny_model("deberta-v2")
    model = open_attention(model) if opened else model
    intervention, batch = INTERVENTIONS["TI-O"], tiny_batch("deberta-v2")
    capture = SignalCapture(model, ["attention.query", "attention.projection"])
    teacher = capture(batch)
    assert [signal.shape for signal in teacher["attention.query"]] == [(*batch["input_ids"].shape, WIDTH)] * LAYERS
    with intervention.apply(model, teacher):
        capture(batch)["attention.query"][1].square().sum().backward()
    assert model.deberta.encoder.layer[0].output.dense.weight.grad is None
    projected = model.deberta.encoder.layer[1].attention.self
    assert projected.query_proj.weight.grad is not None
    with intervention.apply(model, teacher):
        (bias,) = SignalCapture(open_attention(model), ["attention.mask"])(batch)["attention.mask"][:1]
        bias.clamp(min=-100).sum().backward()
    assert model.deberta.encoder.rel_embeddings.weight.grad is not None


def test_an_intervention_in_one_layer_counts_the_calls_of_a_shared_one() -> None:
    teacher, model = (open_attention(tiny_model("albert", seed, num_hidden_layers=3)) for seed in (1, 2))
    sites, batch = ["attention.context", "attention.projection", "hidden"], tiny_batch("albert")
    signals = SignalCapture(teacher, sites)(batch)
    chosen = Intervention(["attention.context"], ["attention.query", "attention.key", "attention.value"], at=[1])
    project = model.get_submodule(part_paths(model)["layers.0.attention.projection"])
    for _ in range(2):
        with chosen.apply(model, signals):
            received = SignalCapture(model, sites)(batch)
            contexts = [context.transpose(1, 2).flatten(2) for context in received["attention.context"]]
            contexts[1] = signals["attention.context"][1].transpose(1, 2).flatten(2)
        for projection, context in zip(received["attention.projection"], contexts, strict=True):
            assert torch.equal(projection, project(context))
    assert len(layer_paths(model)) == len(received["hidden"]) - 1 == 3
    (through,) = torch.autograd.grad(
        received["attention.context"][1].sum(), received["hidden"][0], allow_unused=True, retain_graph=True
    )
    assert through is None
    (through,) = torch.autograd.grad(received["attention.context"][2].sum(), received["hidden"][1])
    assert through.abs().max() > 0


def test_groups_of_shared_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_hidden_groups=2"):
        layer_paths(tiny_model("albert", num_hidden_groups=2))


@pytest.mark.parametrize("family", ["albert", "clip", "gemma3_text", "modernbert"])
def test_a_student_of_fewer_layers_describes_itself(family: str, tmp_path: Path) -> None:
    model = keep_layers(tiny_model(family), [0] if family == "modernbert" else [1])
    write_packed(model, tmp_path / "packed")
    assert torch.equal(logits(load_packed(tmp_path / "packed"), family), logits(model, family))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("model=deberta_v3_base", "activation_checkpointing=true"), ("model=albert_base", "quantization=lsq_w2a8")],
)
def test_a_whole_run_of_a_family_with_a_mechanism_of_its_own(words: tuple[str, ...], tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 64}
    sizes |= {"num_attention_heads": HEADS}
    tiny = [f"model.architecture.{name}={value}" for name, value in sizes.items()]
    run = small_run(tmp_path / "run", *words, "model.path=null", "model.pretrained=false", *tiny)
    assert run["student"] is not None


def test_a_model_that_interpolates_positions_takes_other_image_sizes(tmp_path: Path) -> None:
    words = (
        "model=dinov2_small",
        "data=random_images",
        "model.path=null",
        "model.pretrained=false",
        "export.packed=false",
    )
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "patch_size": 8,
        "image_size": 16,
    }
    tiny = [f"model.architecture.{name}={value}" for name, value in sizes.items()]
    short = ("stages.teacher.max_steps=1", "stages.intervene.max_steps=1", "stages.train.max_steps=2")
    small_run(tmp_path / "run", *words, *tiny, *short, "data.size=24")
    with pytest.raises(ValueError, match=r"data\.size=20 .* patch_size=8: set data\.size=16"):
        small_run(tmp_path / "wrong", *words, *tiny, *short, "data.size=20")


def test_a_first_layer_that_differs_from_the_others_stays_the_first() -> None:
    with pytest.raises(ValueError, match=r"layers=\[1\]"):
        keep_layers(tiny_model("modernbert"), [1])


def test_a_nested_configuration_of_a_packed_folder_takes_only_known_fields(tmp_path: Path) -> None:
    write_packed(student("clip", "ternary_w2a8"), tmp_path / "packed")
    place = tmp_path / "packed" / "config.json"
    content = json.loads(place.read_text())
    assert "attn_implementation" not in json.dumps(content)
    content["vision_config"]["attn_implementation"] = "someone/kernel"
    with pytest.raises(ValueError, match="attn_implementation"):
        read_config(content)


def matrix() -> str:
    """The matrix of docs/families.md."""
    rows = ["| `model_type` | " + " | ".join(INTERVENTIONS) + " | packed | ONNX |", "| :-- |" + " :-: |" * 5]
    for family in FAMILIES:
        words = {"passed": "✓", "refused": "fused"}
        cells = [words[results(family)[name].status] for name in (*INTERVENTIONS, "packed")]
        cells.append("decoder" if FAMILIES[family].causal else "✓")
        rows.append(f"| `{family}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def test_the_page_shows_this_matrix() -> None:
    assert matrix() in PAGE.read_text(encoding="utf-8"), f"docs/families.md must show:\n{matrix()}"
