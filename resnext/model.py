"""The networks: a first convolution, stages of blocks, a mean over the image, one linear layer.

Two shapes, both from the paper. CIFAR (Appendix A): images of 32x32, a 3x3 convolution, three stages at 32, 16 and 8
pixels. ImageNet (Table 1): images of 224x224, a 7x7 convolution and a max pooling that divide by four, four stages at
56, 28, 14 and 7 pixels. From stage to stage the image halves, in the first block's 3x3, and all widths double.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minigrad import Tensor
from minigrad import functional as F
from minigrad.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from minigrad.ops.arguments import as_list, as_size, check_tensors

from .blocks import EXPANSION, Bottleneck


class ResNeXt(Module):
    """A ResNeXt with `blocks[i]` blocks in stage i, of C = `cardinality` paths, d = `width` wide in the first stage.

    (N, 3, H, W) -> logits (N, num_classes). `imagenet` chooses the first layers; `form` and `residual` are those of the
    blocks; C = 1 and d = 64 make it a ResNet. The paper's networks begin with `stem` = 64 channels, and four times as
    many leave the first stage; fewer make a network for experiments of minutes. State-dict keys are torchvision's:
    conv1, bn1, layer1.0.conv1, ..., fc.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        cardinality: int,
        width: int,
        num_classes: int = 10,
        imagenet: bool = False,
        form: str = "c",
        residual: bool = True,
        stem: int = 64,
    ):
        sizes = {"cardinality": cardinality, "width": width, "num_classes": num_classes, "stem": stem}
        cardinality, width, num_classes, stem = (as_size(value, name) for name, value in sizes.items())
        blocks = [as_size(count, "the blocks of a stage") for count in as_list(blocks, "blocks for each stage")]
        self.imagenet = imagenet
        self.input_size = 224 if imagenet else 32
        self.conv1 = (
            Conv2d(3, stem, 7, 2, padding=3, bias=False) if imagenet else Conv2d(3, stem, 3, padding=1, bias=False)
        )
        self.bn1 = BatchNorm2d(stem)
        channels = stem
        for stage, count in enumerate(blocks):
            out_channels = stem * EXPANSION * 2**stage
            stage_blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                stage_blocks.append(
                    Bottleneck(channels, out_channels, cardinality, width * 2**stage, stride, form, residual)
                )
                channels = out_channels
            setattr(self, f"layer{stage + 1}", Sequential(*stage_blocks))
        self.stages = len(blocks)
        self.fc = Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("ResNeXt", x=x)
        first = self.conv1  # of 3 channels, or what somebody put in its place
        if isinstance(first, Conv2d) and x.ndim == 4 and x.shape[1] != (C := first.weight.shape[1] * first.groups):
            raise ValueError(f"the network expects images with {C} channels (N, {C}, H, W), got shape {x.shape}")
        x = self.bn1(first(x), relu=True)
        if self.imagenet:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        # The mean in float32 after bfloat16: these are few numbers, and the class depends on them.
        return self.fc(F.global_avg_pool2d(x, "float32" if x.dtype.itemsize == 2 else None))

    def bottlenecks(self) -> Iterator[Bottleneck]:
        """Yield the blocks in the order of the forward pass."""
        return (module for module in self.modules() if isinstance(module, Bottleneck))


def cifar(
    depth: int,
    cardinality: int,
    width: int,
    num_classes: int = 10,
    form: str = "c",
    residual: bool = True,
    stem: int = 64,
) -> ResNeXt:
    """The CIFAR network of a depth 9n + 2: three stages of n blocks of three layers, plus the first and the last layer.

    Raises ValueError for any other depth.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"a CIFAR network has depth 9n + 2 (11, 20, 29, 38, ...), got {depth}")
    return ResNeXt([(depth - 2) // 9] * 3, cardinality, width, num_classes, False, form, residual, stem)


def imagenet(
    depth: int, cardinality: int = 1, width: int = 64, num_classes: int = 1000, form: str = "c", residual: bool = True
) -> ResNeXt:
    """The ImageNet network of depth 50, 101, 152 or 200 (Table 1; He et al., CVPR 2016). ValueError otherwise."""
    counts = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
    if depth not in counts:
        raise ValueError(f"an ImageNet network has depth {', '.join(map(str, counts))}, got {depth}")
    return ResNeXt(counts[depth], cardinality, width, num_classes, True, form, residual)
