"""How it was made, in the words of the papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qat_lightning.io import markdown
from qat_lightning.io.markdown import code
from qat_lightning.reports.model_card.formatting import Node, class_of, codes
from qat_lightning.reports.model_card.run_facts import SITES, Facts

INTERVENTIONS = {"attention.projection": "TI-O", "attention.context": "TI-C", "attention.probs": "TI-M"}
"""What the teacher supplies → the name of that intervention in arXiv:2302.11812 §3."""


QUANTIZERS = {
    "TernaryQuantizer": "ternary, −α 0 α (arXiv:1605.04711)",
    "BinaryQuantizer": "binary, −α α (arXiv:1603.05279)",
    "UniformQuantizer": "uniform, symmetric (arXiv:2009.12812)",
    "minmax": "uniform, least to largest value (arXiv:2009.12812)",
    "symmetric": "uniform, ∓ the largest value",
    "mean": "uniform, ∓ the mean of the large values (arXiv:2211.11014)",
    "clip_threshold": "learned threshold (arXiv:2101.05938)",
    "step_size": "learned step (arXiv:1902.08153)",
}
"""The class of a quantizer, its range or its form → what it does."""


def method(facts: Facts) -> Iterator[str]:
    yield "## Method"
    yield "\n".join(f"- {line}" for line in (*_teaching(facts), _intervention(facts)) if line)
    if facts.losses:
        yield "Losses, added with these weights:"
        rows = [[code(name), _loss(loss, facts), f"{loss.get('weight', 1.0):g}"] for name, loss in facts.losses.items()]
        yield markdown.table(["loss", "what", "weight"], rows, left=2)
    if facts.weights or facts.activations:
        yield "Quantizers:"
        rows = [*_quantizer_rows(facts, facts.weights, True), *_quantizer_rows(facts, facts.activations, False)]
        yield markdown.table(["of", "quantizer", "scale", "clip", "bits"], rows, left=4)
        if apart := facts.at("quantization", "bits"):
            told = ", ".join(f"{code(parts)} {width}" for parts, width in apart.items())
            yield f"Weights with bits of their own: {told}."
    else:
        yield "Nothing is quantized."


def _teaching(facts: Facts) -> Iterator[str]:
    steps = (facts.results.get("steps") or {}).get("teacher") or 0
    made = f"fine-tuned for {steps} steps" if steps else "as it was given, not trained further"
    begun = code(facts.model) if facts.base_model else f"{code(facts.model)} with random weights"
    if facts.taught:
        yield f"Teacher: {begun} in full precision, {made}. The student begins from its weights."
    else:
        yield f"No teacher. The student begins from {begun} in full precision, {made}."
    if kept := facts.at("model", "student_layers"):
        yield f"The student is made of the teacher's layers {', '.join(map(str, kept))}, counted from 0."


def _intervention(facts: Facts) -> str:
    """What stood in for the student's signals, and for how long."""
    if not facts.intervened:
        return "No intervention."
    schedule, given = facts.at("intervention_schedule") or {}, facts.at("intervention") or {}
    shares = schedule.get("shares") or {}
    total = sum(shares.values())
    names = [*(shares or schedule.get("names") or given)]
    told = [_supplied(given.get(name) or {}) for name in names]
    if shares:
        order = ", then ".join(f"{what} for {shares[name]}/{total}" for name, what in zip(names, told, strict=True))
        order += " of them" if len(names) > 1 else ""
        order = told[0] if len(names) == 1 else order
    else:
        order = f"drawn at each step among {', '.join(told)}"
    parts = facts.at("stages", "intervene", "target_modules")
    only = f" Only {codes(parts)} were quantized meanwhile." if parts else ""
    return (
        f"Teacher Intervention (arXiv:2302.11812): in the {facts.intervened} steps before training, the teacher's signal"
        f" stood in place of the student's in every layer: {order}.{only}"
    )


def _supplied(intervention: Node) -> str:
    sites = intervention.get("replace") or []
    name = INTERVENTIONS.get(sites[0]) if len(sites) == 1 else None
    layers = intervention.get("at")
    where = f" in layers {', '.join(map(str, layers))} alone" if layers is not None else ""
    return (f"{name} ({codes(sites)})" if name else codes(sites)) + where


def _loss(loss: Node, facts: Facts) -> str:
    """In the papers' words."""
    told = {
        "TaskLoss": "the labels",
        "AttentionMapLoss": "KL divergence of the attention maps, teacher ‖ student (arXiv:2211.11014 §4)",
        "TokenScaledLoss": "soft cross-entropy of the logits, tokens weighted by the teacher's own loss (arXiv:2308.06744 §4.2)",
    }.get(class_of(loss), code(class_of(loss)))
    if class_of(loss) == "FeatureMatchingLoss":
        told = SITES.get(loss["site"], f"distance of {code(loss['site'])}")
    if class_of(loss) == "LogitDistillationLoss":
        told = f"soft cross-entropy with the teacher's logits, {loss.get('classes', 'sum')} over the classes (arXiv:2009.12812)"
        if facts.at("data", "num_labels") == 1:
            told = "MSE of the logits (arXiv:2009.12812)"
    if class_of(loss) == "WeightedPairLoss":
        sides = (("first", loss["gamma"]), ("second", 1 - loss["gamma"]))
        shares = [f"{share * loss[side].get('weight', 1.0):g} · {_loss(loss[side], facts)}" for side, share in sides]
        told = f"{' + '.join(shares)}, with shares that sum to 1 (arXiv:2211.11014 §5)"
    more = {
        f"temperature {loss.get('temperature', 1):g}": loss.get("temperature", 1) != 1,
        f"layers {loss.get('layers')}": loss.get("layers") is not None,
        "padding counts": loss.get("padding") == "include",
    }
    return "; ".join([told, *(words for words, applies in more.items() if applies)])


def _quantizer_rows(facts: Facts, given: Sequence[tuple[str, Node]], weights: bool) -> Iterator[list[str]]:
    """[of, quantizer, scale, clip, bits]; those that are alike in one row."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for place, quantizer in given:
        kind = class_of(quantizer)
        what = {
            "AffineQuantizer": quantizer.get("range", "minmax"),
            "LSQQuantizer": quantizer.get("parametrization", "clip_threshold"),
        }
        name = QUANTIZERS.get(what.get(kind, kind), code(kind))
        width = quantizer.get("bits") or {"TernaryQuantizer": 2, "BinaryQuantizer": 1}.get(kind)
        clip = quantizer.get("clip")
        scale = _scale(quantizer, weights, facts.at("quantization", "calibration_rows"))
        cells = (name, scale, "–" if clip is None else f"±{clip:g}", "–" if width is None else f"{width:g}")
        alike.setdefault(cells, []).append(place)
    for cells, places in alike.items():
        yield [f"weights of {', '.join(places)}" if weights else _inputs_of(places), *cells]


def _inputs_of(places: Sequence[str]) -> str:
    """["`layers.*`", "`pooler`", "query", "key"] → inputs of `layers.*`, `pooler`; attention's query, key."""
    parts, operands = ([place for place in places if place.startswith("`") == coded] for coded in (True, False))
    told = [f"inputs of {', '.join(parts)}"] if parts else []
    return "; ".join([*told, f"attention's {', '.join(operands)}"] if operands else told)


def _scale(quantizer: Node, weights: bool, rows: int | None) -> str:
    """How many there are, and where each comes from."""
    shared = {
        "per_tensor": "one a matrix" if weights else "one a tensor",
        "per_channel": "one a row" if weights else "one a token",
        "per_token": "one a token",
        "per_group": f"one for {quantizer.get('group_size')} neighbours",
    }[quantizer.get("granularity") or "per_tensor"]
    if class_of(quantizer) == "LSQQuantizer":
        return f"{shared}, learned"
    if weights:
        return shared
    if quantizer.get("scale") == "static":
        return f"{shared}, fixed" + (f" (static, from {rows} training rows)" if rows else " (static)")
    return f"{shared}, of the batch at hand (dynamic)"
