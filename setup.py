"""clsp-plugin: synthetic positives for self-supervised learning, on the solo-learn contract."""

import shutil
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "clsp_plugin" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]


class BuildWithScripts(build_py):
    """The configurations live in scripts/, where solo-learn's users look for them; in an
    installed package the same folder is clsp_plugin/scripts."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "clsp_plugin" / "scripts"
            for file in (ROOT / "scripts").rglob("*.yaml"):
                copy = target / file.relative_to(ROOT / "scripts")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


setup(
    name="clsp-plugin",
    version=VERSION,
    description="Contrastive learning with synthetic positives, as a plugin and on its own.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords="self-supervised-learning contrastive-learning diffusion synthetic-data solo-learn",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2408.16965"},
    python_requires=">=3.10",
    # hydra_plugins is a namespace that Hydra searches in every application. This package_dir
    # makes an editable install a plain path, without which Hydra does not find it.
    packages=[
        *find_packages(include=["clsp_plugin*"]),
        *find_namespace_packages(include=["hydra_plugins.*"]),
    ],
    package_dir={"": "."},
    package_data={"clsp_plugin": ["py.typed"], "clsp_plugin.tables": ["published/*.csv"]},
    cmdclass={"build_py": BuildWithScripts},
    install_requires=[
        # older ones run code of TorchScript files even with weights_only (CVE-2025-32434)
        "torch>=2.6",
        "torchvision>=0.21",
        "lightning>=2.4",  # ends with the code of SIGTERM, where older ones look like Ctrl-C
        "hydra-core>=1.3",
        "omegaconf>=2.3",
        "diffusers>=0.33",
        "timm>=1.0.12",  # the backbones, LARS
        "scikit-learn>=1.3",
        # the t-test of tables; torchvision reads the labels of Flowers-102 and Cars with it
        "scipy>=1.10",
        "matplotlib>=3.7",
        "numpy>=1.24",
        "pydantic>=2.7",  # the types of what is read from JSON: records, manifests, args.json
        "pillow>=10.1",
        "torchmetrics>=0.11.4",  # the Frechet distance; solo-learn's kNN needs one below 0.12
        "tqdm>=4.64",  # progress of work that is not training
    ],
    extras_require={
        "fid": ["torch-fidelity"],  # the Inception network of `clsp inspect --fid`
        # loggers of a training; metrics.csv needs none
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "trackio": ["trackio"],
        "pandas": ["pandas", "pyarrow"],  # clsp_plugin.read_records, `clsp embed --table`
        "transformers": ["transformers"],  # encoders that are named hf:NAME
        # images of the Hugging Face hub, and stores for it; older ones run what a data set brings,
        # or do not read every Arrow file
        "datasets": ["datasets>=3"],
        # `clsp export --format onnx`, and what runs it
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        # mkdocs.yml; the last two run a notebook of docs/tutorials anew
        "docs": [*DOCS, "ipykernel", "nbclient"],
        "test": [
            *DOCS,
            "pytest>=8",
            "hypothesis>=6.100",  # tests whose inputs are many
            "pytest-xdist>=3",
            "ruff>=0.6",
            "mypy>=1.11",
            "import-linter>=2",
            "torch-fidelity",  # see fid
            "tensorboard",
            "wandb",
            "mlflow-skinny",  # mlflow without its server
            "trackio",
            "pandas",
            "pyarrow",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "transformers",  # reads exported backbones; encoders
            "datasets",  # Hugging Face's, whose objects and files are taken as images
            # docs/loops.md; stable-pretraining is tested where it is installed, because it adds
            # callbacks to every Trainer of an environment
            "lightly",
            "setuptools>=70.1",  # from which on it builds wheels alone; installations are tested
        ],
    },
    entry_points={"console_scripts": ["clsp=clsp_plugin.cli:main"]},
)
