"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official binary files: labels and pixels, nothing else.

A record is one label byte (CIFAR-10) or two, coarse then fine (CIFAR-100), and 3,072 pixels: the red, green and blue
planes, row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The md5 of the archives are on that page, those of the
files in them in rai-project/dldataset, `vision/cifar10.go` and `cifar100.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.data.archive import Archive, Member, read, root_of
from regraft.data.augment import Augmentation
from regraft.data.splits import Facts, Normalisation
from regraft.errors import DataError, UsageError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
SITE = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Layout:
    """What a version of CIFAR looks like: its files of each split, and how many values each label byte may have."""

    archive: Archive
    splits: dict[str, tuple[str, ...]]
    labels: tuple[int, ...]


CIFAR10 = Layout(
    Archive(
        "CIFAR-10, the binary version",
        "cifar-10-batches-bin",
        f"{SITE}/cifar-10-binary.tar.gz",
        {
            "data_batch_1.bin": Member(30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            "data_batch_2.bin": Member(30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
            "data_batch_3.bin": Member(30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            "data_batch_4.bin": Member(30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            "data_batch_5.bin": Member(30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
            "test_batch.bin": Member(30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
        },
    ),
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    labels=(10,),
)
CIFAR100 = Layout(
    Archive(
        "CIFAR-100, the binary version",
        "cifar-100-binary",
        f"{SITE}/cifar-100-binary.tar.gz",
        {
            "train.bin": Member(153_700_000, "6172c7755cfe09b2fe270c85cebc1b15"),
            "test.bin": Member(30_740_000, "4499cfba6c016c1be1438163640a0898"),
        },
    ),
    {"train": ("train.bin",), "test": ("test.bin",)},
    labels=(20, 100),
)

CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CROP_AND_FLIP = Augmentation(crop=4, flip=True)  # He et al. 2016, section 4.2

CIFAR10_FACTS = Facts(
    samples=(50_000, 10_000),
    shape=SHAPE,
    classes=10,
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    # The training set's, times 255; as published with many programs (0.4914, 0.4822, 0.4465; 0.2470, 0.2435, 0.2616).
    normal=Normalisation((125.307, 122.950, 113.865), (62.993, 62.089, 66.705)),
    augmentation=CROP_AND_FLIP,
    archive=CIFAR10.archive,
)
CIFAR100_FACTS = Facts(
    samples=(50_000, 10_000),
    shape=SHAPE,
    classes=100,
    names=tuple(CIFAR100_NAMES.split()),
    normal=Normalisation((129.304, 124.070, 112.434), (68.170, 65.392, 70.418)),  # of all 50,000 training images
    augmentation=CROP_AND_FLIP,
    archive=CIFAR100.archive,
)


def cifar10(split: str, seed: int = 0, *, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10: 60,000 photographs of 10 classes, 3 x 32 x 32, from the official binary files.

    `(x, y)` for `train` (50,000) or `test` (10,000): x `[N, 3, 32, 32]` uint8, y `[N]` int64. `folder` holds
    `cifar-10-batches-bin/`. Sizes, md5 and labels are checked at each reading; `seed` changes nothing.

    Raises `DataError` for files that are missing or damaged.
    """
    return images(CIFAR10, split, folder)


def cifar100(split: str, seed: int = 0, *, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-100: 60,000 photographs of 100 classes, 3 x 32 x 32, from the official binary files.

    As `cifar10`, from `cifar-100-binary/`; y is the fine label.
    """
    return images(CIFAR100, split, folder)


def images(layout: Layout, split: str, folder: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the files of one split, in their order; x is a view of the records.

    Raises `DataError` for files that are missing, damaged or of another layout.
    """
    if split not in layout.splits:
        raise UsageError(f"split is {split!r}: give one of {', '.join(layout.splits)}")
    root, record = root_of(folder), len(layout.labels) + PIXELS
    parts = []
    for name in layout.splits[split]:
        content = read(layout.archive, name, root)
        path = root / layout.archive.folder / name
        if len(content) % record or not len(content):
            raise DataError(f"{path} is no file of {layout.archive.title}: not a whole number of {record}-byte records")
        records = content.reshape(-1, record)
        for byte, known in enumerate(layout.labels):
            if (worst := int(records[:, byte].max())) >= known:
                raise DataError(
                    f"{path} is damaged, or of another data set: a label is {worst}, and {known} classes are known: "
                    f"{layout.archive.advice(root)}"
                )
        parts.append(records)
    records = parts[0] if len(parts) == 1 else np.concatenate(parts)
    x = records[:, len(layout.labels) :].reshape(-1, *SHAPE)
    return x, records[:, len(layout.labels) - 1].astype(np.int64)
