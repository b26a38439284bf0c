# CPU:   docker build -t excursions .                                  then: docker run --rm -it excursions make smoke
# CUDA:  docker build -t excursions --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 --build-arg INDEX= .
#        docker run --rm -it --gpus all excursions make test
ARG BASE=python:3.12-slim
FROM ${BASE}

# The index of torch's CPU build, which is 5 GB smaller; empty: the build with CUDA
ARG INDEX=https://download.pytorch.org/whl/cpu

# make and git for the commands of the README; a C++ compiler, which torch.compile and Triton need
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev make git g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /excursions
COPY requirements.txt .
ENV PIP_EXTRA_INDEX_URL=${INDEX} PIP_NO_CACHE_DIR=1
RUN python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
COPY . .
RUN touch .venv/installed-run

CMD ["make", "smoke"]
