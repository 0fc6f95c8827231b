"""Draw the guide's pictures: `python docs/draw_pictures.py [NAME...]` writes docs/images/guide_NAME.svg.

The numbers in them come from minigrad. Each picture is plain SVG text, put together by `pictures.canvas.Picture`. The
picture of the tape needs Graphviz's `dot` and is left as it is without it.
"""

from __future__ import annotations

import sys

from pictures import graphs, windows

PICTURES = {
    "tape": graphs.tape,
    "walk": graphs.walk,
    "convolution": windows.convolution,
    "channels": windows.channels,
    "window": windows.window,
    "im2col": windows.im2col_matrix,
    "col2im": windows.col2im_sum,
    "groups": windows.groups,
    "batch_norm": graphs.batch_norm,
    "block": graphs.block,
    "network": graphs.network,
    "training": graphs.training,
}

if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in PICTURES]
    if unknown:
        sys.exit(f"there is no picture {unknown[0]!r}: choose from {', '.join(PICTURES)}")
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
