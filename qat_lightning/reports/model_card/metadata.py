"""The block that the hub reads."""

from __future__ import annotations

import math

from huggingface_hub import EvalResult, ModelCardData

from qat_lightning.io.markdown import one_line
from qat_lightning.reports.model_card.run_facts import Facts
from qat_lightning.reports.summary import student_kind

PIPELINES = {
    "text_classification": "text-classification",
    "image_classification": "image-classification",
    "question_answering": "question-answering",
    "causal_language_model": "text-generation",
}
"""Head → the hub's name of the task."""


def metadata(facts: Facts) -> ModelCardData:
    """The block that the hub reads; what is not known is left out, the license with it."""
    base, data, student = facts.base_model, facts.at("data", "path"), facts.results.get("student")
    name, metric = facts.at("data", "name"), one_line(facts.results["metric"])
    quantized = student_kind(facts.results.get("bits")).partition(" ")[0]
    tags = ["quantization", quantized] if facts.weights or facts.activations else []
    tags += ["distillation"] if facts.taught else []
    tags += ["qat_lightning", *(name.lower().replace(" ", "-") for name in facts.methods)]
    result = EvalResult(
        task_type=PIPELINES[facts.head],
        dataset_type=one_line(facts.data),
        dataset_name=one_line(facts.results["task"]),
        dataset_config=name and one_line(name),
        dataset_split=one_line(facts.split("validation")),
        metric_type=metric,
        metric_value=student,
    )
    return ModelCardData(
        library_name="qat_lightning",  # what AutoModel cannot read, the hub must not say it can
        pipeline_tag=PIPELINES[facts.head],
        tags=tags,
        base_model=base if base and facts.is_hub_id(base) else None,
        datasets=[data] if data and facts.is_hub_id(data) else None,
        metrics=[metric],
        model_name=one_line(facts.results["experiment"]),
        eval_results=[result] if student is not None and math.isfinite(student) else None,
    )
