"""What notebook 02 says of the network's readings and costs can be had from the code."""

import inspect

import pytest
import torch

from thyroid_lib import network
from thyroid_lib.common.templates import render
from thyroid_lib.inspection import probes, readings, structure
from thyroid_lib.plots import network as figures

SMALL = {"width": 0.02, "middle_blocks": 1}


def test_each_open_point_names_a_switch_that_takes_the_other_reading_at_the_stated_cost():
    ours, switches = network.optimized_xception(4, 1, **SMALL), inspect.signature(network.Xception).parameters
    for reading in (r for r in readings.load("readings") if "otherwise" in r):
        switch = reading["switch"].split(" = ")[0]
        assert switch in {*switches} & {*reading["otherwise"]}, reading["open point"]
        assert network.optimized_xception(4, 1, **SMALL, **reading["otherwise"]).config != ours.config
    dense, dilation, *_ = readings.table(299)["otherwise costs"]
    assert dense.startswith("dense: +13.26 M parameters, +3.79 GMACs") and dilation == "2: the same"


def test_dilated_convolutions_cost_an_eighth_more_multiplications_at_every_size():
    both = {name: readings.load("variants")[name] for name in ("original", "optimized (our choices)")}
    for size in (96, 128, 299):
        original, ours = structure.costs(both, size, num_classes=4).gmacs
        assert ours / original == pytest.approx(1.13, abs=0.01)


def test_gradient_coverage_is_that_of_the_lattice():
    two, three = (probes.gradient_coverage("separable", d, 15) for d in (2, 3))
    assert (two[::2, ::2] > 0).all() and two.sum() == two[::2, ::2].sum()
    assert (three > 0).all()
    assert probes.gradient_coverage("max_pool", 1, 15).sum() == 8 * 8  # one winner for each output


def test_findings_and_figures_say_in_words_what_they_show():
    costs = structure.costs(readings.load("variants"), 96, num_classes=4, in_chans=1)
    numbers = {"costs": costs.set_index("variant").to_dict("index"), "unread_pixels": 0}
    text = render("inspection/findings.md.j2", size=96, timm=None, identity_difference=0.0, **numbers)
    assert "24.12 million parameters (+16% on the original's 20.81)" in text
    assert "no gradient: 0" in text and "left out" in text
    models = network.xception(4, 1, **SMALL), network.optimized_xception(4, 1, **SMALL)
    literal = network.optimized_xception(4, 1, **SMALL, second_connection="three_way", fusion="widen")
    shapes = [structure.map_shapes(model, 96) for model in (*models, literal)]
    drawn = {
        "G1 24×6×6": figures.architectures(shapes[0], shapes[1], models[1].config),
        "G2 48×6×6": figures.architectures(shapes[0], shapes[2], literal.config),
        "max-pooling; right": figures.blocks(models[1].config),
        "25% of the pixels": figures.coverage({"2": probes.gradient_coverage("separable", 2, 8)}),
        "F2: F2, G2": figures.wiring(probes.wiring(models[1], torch.zeros(1, 1, 64, 64))),
        "24.12 million": figures.costs(costs),
    }
    for words, figure in drawn.items():
        assert words in figure.alt
        figure.canvas.draw()
        figure.clear()
