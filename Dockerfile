# The service for Linux on x86_64, with torch's build for CUDA and without weights: those are on a volume.
#
#   docker build --tag registry.example.com/svd-serve:0.1.0 .
#
# The base is named by its exact tag. Where your registry tells its digest, write python:...@sha256:... in both places.
FROM docker.io/library/python:3.11.14-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/svd-serve
ENV PATH=/opt/svd-serve/bin:$PATH

WORKDIR /source
COPY requirements/production.txt constraints.txt ./
# What is installed is what was hashed; ffmpeg comes from Debian, so the wheel's own is left out below.
RUN pip install --require-hashes --requirement production.txt

COPY pyproject.toml README.md LICENSE ./
COPY deployments deployments
# What builds our own wheel is of the tested version, too, and stays behind in this stage.
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-deps --wheel-dir /dist . \
 && pip install --no-deps /dist/*.whl \
 && rm -f /opt/svd-serve/lib/python3.11/site-packages/imageio_ffmpeg/binaries/ffmpeg-*

FROM docker.io/library/python:3.11.14-slim-bookworm

# gcc and libc6-dev are for `tuning.compile`: Triton builds what launches its kernels as it goes.
# Debian keeps no old versions that could be named, so the base's date is what fixes these.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates ffmpeg gcc libc6-dev libseccomp2 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 svd && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin svd

COPY --from=build /opt/svd-serve /opt/svd-serve
ENV PATH=/opt/svd-serve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp

WORKDIR /srv/svd-serve
COPY serve_config.yaml ./

USER 10001:10001
EXPOSE 8000
# By itself it serves the small networks on one machine. On Kubernetes, KubeRay says what is started instead, and probes
# are the pods' own.
ENV SVD_DATA_DIR=/tmp/svd-serve
HEALTHCHECK --interval=10s --timeout=6s --start-period=3m \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=5)"]
CMD ["svd-serve", "serve", "--host", "0.0.0.0"]
