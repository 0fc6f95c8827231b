"""What tensors, networks and nodes show of themselves (minigrad/display.py)."""

import shutil

import numpy as np
import pytest

import minigrad.functional as F
import resnext
from minigrad import Function, Parameter, Tensor, draw, nn
from minigrad.registry import book_only


@pytest.mark.parametrize(
    ("tensor", "shown"),
    [
        (Tensor([1.0, 2.0], requires_grad=True), "(shape=(2,), dtype=float32, requires_grad=True, values=[1., 2.])"),
        (Tensor([[1, 20], [3, 4]]), "(shape=(2, 2), dtype=int64, values=[[1, 20], [3, 4]])"),
        (Tensor(np.array(0.5)), "(shape=(), dtype=float64, values=0.5)"),
        (Tensor([True]), "(shape=(1,), dtype=bool, values=[True])"),
        (Tensor(np.zeros((0, 3))), "(shape=(0, 3), dtype=float64, values=[])"),
        (Tensor(np.arange(100.0)), "(shape=(100,), dtype=float64, values from 0 to 99, mean 49.5)"),
        (Tensor(np.full(100, np.nan)), "(shape=(100,), dtype=float64, values from nan to nan, mean nan)"),
    ],
)
def test_a_tensor_begins_with_its_shape_and_stays_on_a_line(tensor, shown):
    assert repr(tensor) == "Tensor" + shown
    assert repr(Parameter([1.0])).startswith("Parameter(shape=(1,)")


def test_the_values_of_any_tensor_fit_a_line():
    for shape in ((3,), (2, 3, 4), (64, 3, 32, 32), (1, 1, 1, 1)):
        text = repr(Tensor(np.random.default_rng(0).standard_normal(shape) * 1e5))
        assert "\n" not in text
        assert len(text) < 400


def test_f_strings():
    assert f"{Tensor([2.5]):.3f} {Tensor(7):03d}" == "2.500 007"
    assert f"{Tensor(1.0)}" == "Tensor(shape=(), dtype=float32, values=1.)"
    with pytest.raises(ValueError, match=r"'.3f' formats one value, this tensor has shape \(2,\)"):
        format(Tensor([1.0, 2.0]), ".3f")


def test_a_network_shows_its_layers_with_shapes_and_parameters():
    text = repr(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Linear(3, 1000)))
    assert text.splitlines() == [
        "Sequential                                   4,040 parameters",
        "  0: Conv2d  weight (4, 1, 3, 3), bias (4,)     40",
        "  1: ReLU",
        "  2: Linear  weight (1000, 3), bias (1000,)  4,000",
    ]
    lines = repr(resnext.create("resnext11_2x4d")).splitlines()
    assert lines[0].endswith(" 761,290 parameters")
    assert max(map(len, lines)) < 90
    assert repr(nn.ReLU()) == "ReLU"


class Own(Function):
    def forward(self, x):
        return x + 1


def test_a_node_leads_back_to_the_book():
    x, w = Tensor(np.ones((1, 2, 5, 5))), Parameter(np.ones((2, 2, 3, 3)))
    assert repr((w * 2.0).node) == "<Multiply of minigrad/ops/basic.py>"
    assert repr(F.conv2d(x, w).node).startswith("<Conv2d of minigrad/ops/conv.py")
    with book_only():
        assert repr(F.conv2d(x, w).node) == "<Conv2d of minigrad/ops/conv.py>"
    assert repr(Own.apply(w).node).startswith("<Own of ")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (20, 30), (2, 3, 4, 5), (0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_notebooks_get_a_table(shape, dtype):
    html = Tensor(np.ones(shape, dtype))._repr_html_()
    assert html.startswith(f"<div><b>Tensor</b> shape={shape}, dtype={np.dtype(dtype)}")
    assert html.count("<td>") == html.count("</td>") <= 13 * 13
    assert ("<table>" in html) == bool(np.prod(shape) and shape)


@pytest.mark.skipif(shutil.which("dot") is None, reason="draws with Graphviz, which is not installed")
def test_a_drawn_graph_shows_itself():
    picture = draw.svg((Parameter([1.0]) * 2.0).sum())
    assert picture._repr_svg_() == picture
    assert picture.startswith("<?xml")


def test_a_name_is_text_in_a_notebook_s_table():
    t = type("<script>alert(1)</script>", (Tensor,), {})([1.0])
    assert "<script" not in t._repr_html_() and "&lt;script&gt;" in t._repr_html_()
