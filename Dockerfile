# tuneleak with everything it needs; what it names itself at the versions that were tested (constraints.txt).
#     docker build --tag tuneleak .
#     docker run --rm --volume "$PWD/results:/tuneleak/results" tuneleak make reproduce PRESET=smoke
# PyTorch comes with CUDA (docker run --gpus all ...). For its much smaller CPU build pass the index that PyTorch's install page names as a further one:
#     docker build --build-arg TORCH_OPTIONS="--extra-index-url ..." --tag tuneleak .
# Pictures of your own: --volume "$PWD/data:/tuneleak/data". A run that is to go on later needs Snakemake's notes: --volume "$PWD/.snakemake:/tuneleak/.snakemake".
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        git latexmk make texlive-fonts-recommended texlive-latex-recommended \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /tuneleak
ARG TORCH_OPTIONS=
COPY constraints.txt ./
RUN python -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir $TORCH_OPTIONS torch torchvision --constraint constraints.txt

COPY . .
# whoever runs it, not root alone (Apptainer, --user), may write what Snakemake and LaTeX leave in this folder
RUN make setup && .venv/bin/tuneleak --help > /dev/null && chmod a+rwx .
ENV PATH=/tuneleak/.venv/bin:$PATH
CMD ["make", "help"]
