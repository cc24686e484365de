"""What is timed along the axes."""

import json

import pytest

from qat_lightning.commands.bench.run import run_bench
from qat_lightning.commands.bench.scaling import measure_scaling
from qat_lightning.commands.bench.training_step import BASELINE
from tests.commands.bench.configurations import of_steps

ONE = ("bench.lengths=[]", "bench.rows=[]", "bench.layers=[]", "bench.processes=[]", "bench.repeats=1")


def test_every_point_has_both_rows_and_more_tokens_take_more_memory(tmp_path, capsys):
    output = tmp_path / "scaling.json"
    axes = ("bench.lengths=[8,32]", "bench.rows=[2]", "bench.layers=[1,2]", "model.architecture.num_hidden_layers=2")
    with of_steps(*ONE, *axes, "bench.variant=qat", f"output={output}", bench="scaling") as config:
        run_bench(config, ["bench=scaling"])
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert {axis: list(points) for axis, points in results["axes"].items()} == {
        "lengths": ["8", "32"], "rows": ["2"], "layers": ["1", "2"],
    }  # fmt: skip
    for points in results["axes"].values():
        for point in points.values():
            own, plain = point["qat"], point[BASELINE]
            assert own["ratio"] == pytest.approx(own["seconds"]["median"] / plain["seconds"]["median"])
            assert own["peak"] > plain["peak"]
    for axis, smaller, larger in (("lengths", "8", "32"), ("layers", "1", "2")):
        for name in (BASELINE, "qat"):
            assert results["axes"][axis][smaller][name]["peak"] < results["axes"][axis][larger][name]["peak"]
    assert results["axes"]["rows"]["2"][BASELINE]["samples_per_second"] == pytest.approx(
        2 / results["axes"]["rows"]["2"][BASELINE]["seconds"]["median"]
    )
    assert "lengths 32" in printed


@pytest.mark.slow
def test_two_processes_train_together():
    with of_steps(*ONE, "bench.processes=[2]", "bench.variant=ti_map", bench="scaling") as config:
        (row,) = measure_scaling(config, lambda line: None)["axes"]["processes"].values()
    assert row["ti_map"]["samples_per_second"] == pytest.approx(2 * 3 / row["ti_map"]["seconds"]["median"])
    assert row[BASELINE]["ratio"] == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("bench.lengths=[0]", r"bench\.lengths=\[0\] must be a list of whole numbers, 1 or more"),
        ("bench.rows=4", r"bench\.rows=4 must be a list"),
        ("bench.layers=[2]", r"bench\.layers holds 2, and the model has 1"),
        ("bench.lengths=[65]", r"bench\.lengths holds 3×65, too long"),
        ("bench.variant=everthing", "did you mean 'everything'"),
        ("bench.compiled=both", r"bench\.compiled=both is for bench=training"),
    ],
)
def test_a_mistake_is_told_in_words(override, told):
    with of_steps(*ONE, override, bench="scaling") as config, pytest.raises(ValueError, match=told):
        measure_scaling(config, lambda line: None)
