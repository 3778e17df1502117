"""Networks of torchvision and timm that look at a picture in the place of our own, without what they classify with.

Axes: B pictures, C channels, Y × X places of the grid, H pixels of a side.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from charrnn.config import CNNConfig
from charrnn.errors import UserError, did_you_mean, short
from charrnn.layers.vision import DEVIATION, MEAN, MOMENTUM

HEADS = ("fc", "classifier", "head", "heads")  # what torchvision's networks call what they classify with …
ASIDES = ("aux1", "aux2", "AuxLogits")  # … and what helps them to learn that
PROBED = 224  # pixels of a side, for which most networks are made
# What a package raises that cannot be imported, and a network of what it cannot read.
BROKEN = (AttributeError, ImportError, OSError, RuntimeError)
UNREADABLE = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class Made(NamedTuple):
    """A network as its package makes it, and what its pictures are to be brought to."""

    network: nn.Module
    mean: Sequence[float]
    deviation: Sequence[float]


class Backbone(nn.Module):
    """Pictures to the last grid of features of a foreign network; what pools it and classifies by it is cut off.

    Running means that the network keeps (batch normalisation's) become parameters that no loss moves: so they are stored, averaged and
    resumed with the weights that they belong to, as those of Standardization are. Where a picture is alone in a batch, it is looked at
    as after training, for one picture has no variance.

    Nothing is downloaded where one is built: `begin` is for that. Raises UserError, naming model.cnn.backbone, where its package is not
    installed or cannot be imported, has no such network, or that makes no grid of places of pictures of `size` pixels a side.
    """

    def __init__(self, config: CNNConfig, size: int = PROBED) -> None:
        super().__init__()
        assert config.backbone is not None
        self.config = config
        self._package, self._name = _resolved(config)
        meta = torch.empty(0).is_meta
        with torch.device("cpu"):  # some networks compute with numbers while they are made
            made = self._made(pretrained=False)
        self._tokens = int(getattr(made.network, "num_prefix_tokens", 0))
        self._hooked = self._last_grid(made.network) if self._package == "torchvision" else None
        self.network = made.network
        self.mean, self.deviation = (nn.Parameter(torch.tensor(numbers), requires_grad=False) for numbers in made[1:])
        self.channels, self.places, self._numbers = self._probe(size)
        # Pixels of a side for each place: where halving a side some times gives as many places, that, for it is how most are made.
        self.reduction = next((r for r in (1 << k for k in range(13)) if self.places in (size // r, -(-size // r))), size // self.places)
        for part in self.network.modules():
            # MobileNet's running means are slow, for hundreds of thousands of steps; here they would long be what they began with.
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum is not None:
                part.momentum = max(part.momentum, MOMENTUM)
        _keep_buffers(self.network)
        if config.frozen:
            self.network.requires_grad_(False)
        if meta:
            self.to("meta")
        self.train()

    def side(self, pixels: int) -> int:
        """Places of a side of the grid; of pictures of the size that it was made for."""
        return self.places

    @property
    def unlearned(self) -> set[str]:
        """Names of the parameters that no step moves."""
        return self._still | ({name for name, _ in self.named_parameters()} if self.config.frozen else set())

    def described(self) -> str:
        """What it is, for a person."""
        begun = "" if self.config.weights.casefold() == "none" else f" with weights {self.config.weights}"
        return f"{self.config.backbone}{begun}, {self.channels:,} channels" + (", frozen" if self.config.frozen else "")

    def numbers_kept(self, pictures: torch.Size) -> int:
        """About how many numbers backward needs of pictures (B, 3, H, H): what its layers give; none where it is frozen."""
        return pictures.numel() + (0 if self.config.frozen else self._numbers * pictures[0])

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.config.frozen:
            self.network.eval()
        return self

    def check(self) -> None:
        """Raises UserError where the package does not have the weights that are asked for. Downloads nothing."""
        _weights(self._package, self._name, self.config)

    @torch.no_grad()
    def begin(self) -> None:
        """Take up the weights that are asked for, which the package downloads. Raises UserError where they cannot be had."""
        if self.config.weights.casefold() == "none":
            return
        device = self.mean.device
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            made = self._made(pretrained=True)
        found = made.network.state_dict()
        for name, parameter in self.network.named_parameters():
            parameter.copy_(found[name])
        self.mean.copy_(torch.tensor(made.mean, device=device))
        self.deviation.copy_(torch.tensor(made.deviation, device=device))

    def forward(self, pictures: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, H) in 0..1 -> (B, C, Y, X). `generator`: of what the network drops while it learns."""
        mean, deviation = (numbers.view(3, 1, 1) for numbers in (self.mean, self.deviation))
        x = ((pictures - mean) / deviation).contiguous(memory_format=torch.channels_last)
        if not self.training or self.config.frozen:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
                return self._grid(x)
        with _drawing(generator), _alone(self.network, len(x) == 1):
            return self._grid(x)

    def _grid(self, x: Tensor) -> Tensor:
        if self._hooked is None:
            return self._as_grid(self.network.forward_features(x))  # type: ignore[operator]
        found: list[Tensor] = []
        hook = self.network.get_submodule(self._hooked).register_forward_hook(lambda _, __, output: found.append(output))
        try:
            self.network(x)
        finally:
            hook.remove()
        return found[-1]

    def _as_grid(self, features: Tensor | Sequence[Any]) -> Tensor:
        """What timm's networks give, (B, C, Y, X), (B, Y, X, C) or (B, S, C), as the first of these."""
        wide = self.network.num_features
        if not isinstance(features, Tensor):  # several scales, or several networks
            raise self._no_grid()
        if features.dim() == 3 and features.size(2) == wide:  # a transformer's, behind what is no place
            places = features[:, self._tokens :].transpose(1, 2)  # (B, C, S)
            side = round(places.size(2) ** 0.5)
            if side * side != places.size(2):
                raise self._no_grid()
            return places.reshape(*places.shape[:2], side, side)
        if features.dim() == 4 and features.size(1) != wide and features.size(3) == wide:
            return features.permute(0, 3, 1, 2)
        return features

    def _made(self, *, pretrained: bool) -> Made:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how torchvision's would rather be asked, which the user cannot mend
                return MAKERS[self._package](self._name, _weights(self._package, self._name, self.config) if pretrained else None)
        except UserError:
            raise
        except Exception as error:  # whatever the client of another's server raises
            if not pretrained:
                raise
            fact = f"its weights cannot be downloaded ({_reason(error)})"
            remedy = "try again with a network, or set weights: none to begin without"
            raise UserError(f"model.cnn.weights: {self.config.weights} of {self.config.backbone}: {fact}; {remedy}") from error

    def _last_grid(self, network: nn.Module) -> str:
        """The name of the part that gives the last grid of places."""
        shapes: list[tuple[str, torch.Size]] = []
        probed, handles = copy.deepcopy(network).to("meta").eval(), []
        for name, part in probed.named_modules():
            if name and not isinstance(part, nn.AdaptiveAvgPool2d):

                def heard(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, Tensor) and output.dim() == 4:
                        shapes.append((name, output.shape))

                handles.append(part.register_forward_hook(heard))
        with self._foreign(PROBED), torch.no_grad():
            probed(torch.empty(1, 3, PROBED, PROBED, device="meta"))
        grids = [name for name, shape in shapes if 1 < shape[2] == shape[3] < PROBED]
        if not grids:
            raise self._no_grid()
        return grids[-1]

    def _probe(self, size: int) -> tuple[int, int, int]:
        """Channels of the grid, places of its sides, and the numbers of a picture that its layers give. What does not enter the grid
        learns nothing.
        """
        own, numbers = self.network, 0

        def count(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal numbers
            numbers += output.numel() if isinstance(output, Tensor) else 0

        self.network = copy.deepcopy(own).to("meta").eval()  # shapes without numbers
        for part in self.network.modules():
            if not any(part.children()):
                part.register_forward_hook(count)
        learned = dict(self.network.named_parameters())
        with self._foreign(size):
            grid = self._grid(torch.empty(1, 3, size, size, device="meta"))
            if grid.dim() != 4 or not 1 < grid.size(2) == grid.size(3) <= size:
                shape = tuple(grid.shape[1:])
                raise self._no_grid(f"of {size} × {size} pixels it makes {shape}; raise data.images.size, or ")
            gradients = torch.autograd.grad(grid.sum(), list(learned.values()), allow_unused=True)
        unused = [name for (name, _), gradient in zip(own.named_parameters(), gradients) if gradient is None]
        if unused and self._hooked is not None:  # what comes after the grid and classifies has been cut off, so there is more
            raise self._no_grid()
        for name in unused:
            own.get_parameter(name).requires_grad_(False)
        buffers = {name for name in own.state_dict() if name not in learned}
        self._still = {"mean", "deviation", *(f"network.{name}" for name in (*unused, *buffers))}
        self.network = own
        return grid.size(1), grid.size(2), numbers

    def _no_grid(self, fact: str = "") -> UserError:
        return UserError(f"model.cnn.backbone: {self.config.backbone} does not end in a grid of places; {fact}name another")

    @contextmanager
    def _foreign(self, size: int) -> Iterator[None]:
        """What the network says of pictures that it cannot read, as a line."""
        try:
            yield
        except UserError:
            raise
        except UNREADABLE as error:
            fact = f"{self.config.backbone} cannot read pictures of {size} × {size} pixels ({_reason(error)})"
            raise UserError(f"model.cnn.backbone: {fact}; set data.images.size to what it reads, or name another") from error


def _resolved(config: CNNConfig) -> tuple[str, str]:
    """The package, and what it calls the network: timm with the tag of its weights behind a dot, if any. Raises UserError."""
    assert config.backbone is not None
    package, _, name = config.backbone.partition("/")
    module = _imported(package)
    known = module.models.list_models(module=module.models) if package == "torchvision" else module.list_models()
    architecture, _, tag = name.partition(".") if package == "timm" else (name, "", "")
    if architecture not in known:
        hint = did_you_mean(architecture, known) or f"; `{package}`'s list_models() tells them"
        raise UserError(f"model.cnn.backbone: {package} has no network {short(architecture)}; expected one of its {len(known):,}{hint}")
    named = package == "timm" and config.weights.casefold() not in ("none", "default")
    if tag and named and config.weights != tag:
        fact = f"{config.weights} are asked of {config.backbone}, which names others"
        raise UserError(f"model.cnn.weights: {fact}; leave out weights, or what stands behind the dot of backbone")
    tag = tag or (config.weights if named else "")
    if tag and tag not in _tags(architecture):
        raise _strange("timm", tag, architecture, _tags(architecture))
    return package, f"{architecture}.{tag}" if tag else architecture


def _imported(package: str) -> ModuleType:
    """Raises UserError where it is not installed, or where it is and cannot be imported."""
    try:
        return importlib.import_module(package)
    except BROKEN as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise UserError(f"model.cnn.backbone: needs {package}, which is not installed; pip install {package}") from None
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        remedy = f"pip install {absent}" if absent else f"install the {package} that is made for torch {torch.__version__}"
        raise UserError(f"model.cnn.backbone: {package} is installed and cannot be imported ({_reason(error)}); {remedy}") from error


def _weights(package: str, name: str, config: CNNConfig) -> Any:
    """What the package calls the weights that are asked for; None for none. Raises UserError where it does not have them."""
    wanted = config.weights.casefold()
    if wanted == "none":
        return None
    if package == "timm":
        if not _tags(name.partition(".")[0]):
            raise _strange(package, config.weights, name, [])
        return name
    members = _imported(package).models.get_model_weights(name)
    for spelled, member in members.__members__.items():  # with DEFAULT, which is another name of one of them
        if spelled.casefold() == wanted:
            return member
    raise _strange(package, config.weights, name, [member.name for member in members])


def _tags(architecture: str) -> list[str]:
    """What timm calls the weights that it has for a network."""
    return [name.partition(".")[2] for name in _imported("timm").list_models(f"{architecture}.*", pretrained=True)]


def _strange(package: str, wanted: str, architecture: str, known: Sequence[str]) -> UserError:
    fact = f"model.cnn.weights: {package} has no weights {short(wanted)} for {architecture}"
    if not known:
        return UserError(f"{fact}, and no others; set weights: none to begin without, or name another backbone")
    return UserError(f"{fact}; expected default, none, {', '.join(known)}{did_you_mean(wanted, known)}")


def _of_torchvision(name: str, weights: Any) -> Made:
    models = _imported("torchvision").models
    network: nn.Module = models.get_model(name, weights=weights)
    for part in (*HEADS, *ASIDES):
        if isinstance(getattr(network, part, None), nn.Module):
            setattr(network, part, nn.Identity() if part in HEADS else None)
    if not hasattr(network, "transform_input"):
        return Made(network, MEAN, DEVIATION)
    # With weights of Google's, those networks turn what is normalised for ImageNet into -1..1: here it is brought to that at once.
    turns = bool(network.transform_input)
    network.transform_input = False  # type: ignore[assignment]
    return Made(network, (0.5,) * 3, (0.5,) * 3) if turns else Made(network, MEAN, DEVIATION)


def _of_timm(name: str, weights: Any) -> Made:
    network: nn.Module = _imported("timm").create_model(name, pretrained=weights is not None, num_classes=0)
    known: Any = network.pretrained_cfg
    return Made(network, known.get("mean", MEAN), known.get("std", DEVIATION))


MAKERS: dict[str, Callable[[str, Any], Made]] = {"torchvision": _of_torchvision, "timm": _of_timm}


def _keep_buffers(network: nn.Module) -> None:
    """Make parameters that no loss moves of what is to be stored with the weights and is none of them."""
    for part in network.modules():
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and name not in part._non_persistent_buffers_set:
                delattr(part, name)
                part.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


@contextmanager
def _drawing(generator: torch.Generator | None) -> Iterator[None]:
    """Have what draws from torch's own generator draw from this one."""
    if generator is None:
        yield
        return
    device = generator.device
    seed = int(torch.randint(1 << 62, (), generator=generator, device=device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _alone(network: nn.Module, alone: bool) -> Iterator[None]:
    """A picture that is alone is looked at as after training."""
    if alone:
        network.eval()
    try:
        yield
    finally:
        network.train()


def _reason(error: Exception) -> str:
    """Its kind and its first line."""
    told = (str(error) or type(error).__name__).splitlines()[0]
    return told if len(told) <= 200 else f"{told[:200]}…"
