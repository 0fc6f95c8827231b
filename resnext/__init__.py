"""ResNeXt: residual networks whose blocks aggregate many transformations (Xie et al., CVPR 2017, arXiv:1611.05431).

`create("resnext29_8x64d")` builds a network by name; `names()` lists the names.
"""

from .blocks import Bottleneck, convert, convert_network
from .model import ResNeXt
from .zoo import create, names

__all__ = ["Bottleneck", "ResNeXt", "convert", "convert_network", "create", "names"]
