"""Every operation as a function of tensors: `import minigrad.functional as F`, as PyTorch users know it."""

from .ops import *
from .ops import __all__ as __all__
