# PruneGPT, for a CPU and for NVIDIA GPUs. TORCH_INDEX chooses another build of PyTorch: the index of its CPU builds makes a
# much smaller image, that of another CUDA release fits older drivers. PyTorch's "Get started" lists them.
FROM python:3.12-slim-bookworm

ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=""

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install "torch==${TORCH_VERSION}"

COPY pyproject.toml README.md LICENSE /source/
COPY prunegpt /source/prunegpt
RUN pip install /source && rm -rf /source

# Results and the hub's cache are in the mounted folder, and belong to who runs the container.
RUN useradd --create-home --uid 1000 prunegpt && mkdir /work && chown 1000 /work
USER 1000
WORKDIR /work
ENV HOME=/work HF_HOME=/work/.cache/huggingface

EXPOSE 8000
ENTRYPOINT ["prunegpt"]
CMD ["--help"]
