"""Models by name and by path."""

from __future__ import annotations

import pytest
from torch import nn

from regraft.errors import UsageError
from regraft.models import MODELS, SpikingNetwork, build


def test_every_name_builds_with_the_settings_of_a_recipe() -> None:
    for name in MODELS:
        model = build(name, classes=3, channels=2, size=32, steps=2, static=True)
        assert model.input_shape == (2, 32, 32)


def test_a_path_leads_to_somebodys_own_function() -> None:
    assert isinstance(build("torch.nn:Linear", in_features=2, out_features=3), nn.Linear)
    assert isinstance(build("regraft.models.vgg:tiny_vgg", classes=4), SpikingNetwork)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet_19", {}, "did you mean 'resnet19'"),
        ("no_such_package:f", {}, "cannot import 'no_such_package'"),
        ("torch.nn:Lineer", {}, "did you mean 'Linear'"),
        ("torch.nn:functional", {}, "must be a function"),
        ("builtins:dict", {}, "must return an nn.Module"),
        ("tiny_vgg", {"klasses": 3}, "'klasses'; it takes classes, channels"),
        ("torch.nn:Linear", {}, "in_features"),
    ],
)
def test_what_cannot_be_built_is_refused(name, settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **settings)
