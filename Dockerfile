# An image with the locked environment, and `ovd` as its command.
#
#     docker build -t ovd .
#     docker run --rm -v "$PWD":/work --user "$(id -u):$(id -g)" ovd predict photo.jpg --vocab "cat, red mug"
#
# BASE is any image whose own Python is 3.10 to 3.12: Debian 12, Ubuntu 22.04 or 24.04. torch's wheels
# bring CUDA along, so `docker run --gpus all` needs only the host's driver; who wants NVIDIA's base:
#
#     docker build --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 -t ovd:cuda .
ARG BASE=debian:12-slim
FROM ${BASE}

# The versions are those of the base.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /work ovd

# The same steps as the Makefile's. Bytecode is compiled now: the user of the image can't write it, and
# without it every start would compile torch anew.
ENV VIRTUAL_ENV=/opt/ovd PATH=/opt/ovd/bin:$PATH
WORKDIR /opt/ovd_d2
COPY requirements requirements
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/uv.txt \
    && uv pip install --no-cache --compile-bytecode --no-deps --require-hashes --build-constraints requirements/build.txt -r requirements/all.txt \
    && uv pip install --no-cache --compile-bytecode --no-deps --require-hashes --python-version 3.10 -r requirements/no-deps.txt

COPY . .
RUN uv pip install --no-cache --compile-bytecode --no-deps --no-build-isolation . && rm -rf build ./*.egg-info

# What is mounted at /work holds the pictures, data sets, results and, in .cache, what was downloaded.
# torch asks for the user's name, and `docker run --user` gives a number that has none.
ENV HOME=/work USER=ovd NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /work
ENTRYPOINT ["ovd"]
CMD ["--help"]
