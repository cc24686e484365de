"""The figures along each axis."""

import pytest

from qat_lightning.commands.bench.scaling import measure_scaling
from qat_lightning.commands.bench.training import BASELINE
from tests.commands.bench.configurations import composed

EMPTY = ("bench.lengths=[]", "bench.rows=[]", "bench.layers=[]", "bench.processes=[]", "bench.repeats=1")


def test_each_point_has_both_rows_and_larger_points_take_more_memory():
    axes = ("bench.lengths=[8,32]", "bench.rows=[2]", "bench.layers=[1,2]", "model.architecture.num_hidden_layers=2")
    with composed("scaling", *EMPTY, *axes, "bench.variant=qat") as config:
        points = measure_scaling(config, lambda line: None)["axes"]
    assert {axis: list(row) for axis, row in points.items()} == {
        "lengths": ["8", "32"], "rows": ["2"], "layers": ["1", "2"],
    }  # fmt: skip
    for point in (point for row in points.values() for point in row.values()):
        own, plain = point["qat"], point[BASELINE]
        assert own["ratio"] == pytest.approx(own["seconds"]["median"] / plain["seconds"]["median"])
        assert own["peak"] > plain["peak"]
    for axis, smaller, larger in (("lengths", "8", "32"), ("layers", "1", "2")):
        for name in (BASELINE, "qat"):
            assert points[axis][smaller][name]["peak"] < points[axis][larger][name]["peak"]
    plain = points["rows"]["2"][BASELINE]
    assert plain["samples_per_second"] == pytest.approx(2 / plain["seconds"]["median"])


@pytest.mark.slow
def test_two_processes_train_together():
    with composed("scaling", *EMPTY, "bench.processes=[2]", "bench.variant=ti_map") as config:
        (row,) = measure_scaling(config, lambda line: None)["axes"]["processes"].values()
    assert row["ti_map"]["samples_per_second"] == pytest.approx(2 * 3 / row["ti_map"]["seconds"]["median"])
    assert row[BASELINE]["ratio"] == 1
