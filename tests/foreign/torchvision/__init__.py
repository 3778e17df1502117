"""What stands for torchvision where it is not installed: small networks behind the functions of its own that charrnn calls."""

from . import models as models
