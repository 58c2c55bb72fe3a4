# fakedet serve in a container, with the pinned packages of requirements.lock: docs/serving.md.
# PyTorch's package brings CUDA's libraries along, so that the default base serves CPUs and, with NVIDIA's container
# toolkit, GPUs; BASE=nvidia/cuda:13.2.0-runtime-ubuntu24.04 is for places that ask for NVIDIA's own base.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
RUN command -v python3 || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)

WORKDIR /fakedet
COPY Makefile requirements.lock pyproject.toml README.md LICENSE ./
COPY conf conf
COPY fakedet fakedet
COPY experiments/wide/detector.safetensors experiments/wide/detector.md experiments/wide/
RUN UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 make setup

RUN useradd --create-home --uid 10001 fakedet
USER fakedet
ENV PATH=/fakedet/.venv/bin:$PATH NO_ALBUMENTATIONS_UPDATE=1 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["fakedet", "serve", "host=0.0.0.0", "port=7860"]
