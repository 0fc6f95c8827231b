"""Drawing the tape: what the Graphviz text says about a graph, and what it refuses."""

import re
import shutil

import numpy as np
import pytest

from minigrad import Function, Tensor, draw
from minigrad import functional as F
from minigrad.nn import BatchNorm2d, Conv2d, Sequential


def labels(text: str, shape: str) -> list[str]:
    """The labels of all nodes of one shape, sorted."""
    return sorted(re.findall(rf'\[shape={shape},[^\]]*label="([^"]*)"\]', text))


def example():
    x, w = Tensor(np.ones((2, 3))), Tensor(np.ones((3, 1)), requires_grad=True)
    return (x @ w).relu().sum(), x, w


def test_operations_leaves_and_shapes():
    y, _, w = example()
    text = draw.graph(y, {"w": w})
    assert labels(text, "ellipse") == ["MatMul", "ReLU", "Sum"]
    assert labels(text, "box") == [r"no gradient\n(2, 3)", r"w\n(3, 1)"]
    assert text.count('[label="(2, 1)"]') == 2  # MatMul -> ReLU -> Sum
    assert text.startswith("digraph") and text.count("{") == text.count("}")


def test_the_last_node_has_the_name_of_y():
    y, _, w = example()
    assert labels(draw.graph(y, {"w": w, "y": y}), "plain") == [r"y\n()"]
    assert labels(draw.graph(y, {"w": w}), "plain") == ["()"]


def test_edges_lead_from_inputs_to_outputs():
    y, _, w = example()
    text = draw.graph(y, {"w": w})
    name = {label: node for node, label in re.findall(r'(n\d+\w*) \[.*label="([^"\\]*)', text)}
    for source, target in (("w", "MatMul"), ("MatMul", "ReLU"), ("ReLU", "Sum")):
        assert f"{name[source]} -> {name[target]}" in text


def test_a_leaf_used_twice_is_one_node():
    x = Tensor([1.0, 2.0], requires_grad=True)
    text = draw.graph((x * x).sum())
    assert labels(text, "box") == [r"leaf\n(2,)"]
    assert len(re.findall(r"n\d+ -> n\d+;", text)) == 2


def test_a_module_names_its_parameters_and_absent_inputs_are_left_out():
    model = Sequential(Conv2d(3, 4, 3, groups=1, bias=False), BatchNorm2d(4))
    y = F.global_avg_pool2d(model(Tensor(np.ones((2, 3, 5, 5), np.float32))))
    text = draw.graph(y, model)
    leaves = [label.split("\\n")[0] for label in labels(text, "box")]
    assert leaves == ["0.weight", "1.bias", "1.weight", "no gradient"]  # the images
    assert "Conv2d" in labels(text, "ellipse") and "BatchNorm" in labels(text, "ellipse")  # the book's names


def test_names_are_quoted():
    x = Tensor([1.0], requires_grad=True)
    assert r'label="a\"b\\c\n(1,)"' in draw.graph(x * 2, {'a"b\\c': x})


def test_what_has_no_graph_is_refused():
    with pytest.raises(ValueError, match="no recorded operation"):
        draw.graph(Tensor([1.0], requires_grad=True))
    y, _, _ = example()
    y.backward()
    with pytest.raises(ValueError, match="backward\\(\\) has freed it"):
        draw.graph(y)


def test_svg_needs_dot(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install the package graphviz"):
        draw.svg(example()[0])


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
def test_svg():
    y, _, w = example()
    picture = draw.svg(y, {"w": w})
    assert picture.lstrip().startswith("<?xml") and "MatMul" in picture and "(3, 1)" in picture


HOSTILE = '"];x[label="</text><script>alert(1)</script>\\N'


def test_names_are_text_whatever_they_hold():
    """Of an operation, a leaf and the result; a parameter's name may come from a file."""
    kind = type(HOSTILE, (Function,), {"forward": lambda self, x: x + 0, "backward": lambda self, dy: dy})
    w = Tensor([1.0], requires_grad=True)
    y = kind.apply(w)
    names: dict = {3: w, HOSTILE: w, HOSTILE + "y": y}
    text = draw.graph(y, names)
    for line in text[len(draw.HEAD) :].splitlines():
        assert line.replace('\\"', "").count('"') % 2 == 0, line  # whatever is quoted is closed
    if shutil.which("dot"):
        picture = draw.svg(y, {HOSTILE: w, HOSTILE + "y": y})
        assert "<script" not in picture and picture.count("&lt;script") == 3
