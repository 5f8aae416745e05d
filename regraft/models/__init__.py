"""Networks of the spiking literature, as functions that return an `nn.Module`."""

from regraft.models.dvsgesture import dvsgesture
from regraft.models.network import SpikingNetwork
from regraft.models.registry import MODELS, build
from regraft.models.resnet import resnet19, resnet_small
from regraft.models.vgg import tiny_vgg, vgg16

__all__ = ["MODELS", "SpikingNetwork", "build", "dvsgesture", "resnet19", "resnet_small", "tiny_vgg", "vgg16"]
