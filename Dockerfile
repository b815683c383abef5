# The lessons and the kit in JupyterLab, with the versions that the tests run with (constraints.txt):
#   docker build --tag sims_kit . && docker run --rm --publish 8888:8888 sims_kit    (then open the printed address)
# TORCH_INDEX chooses the build of PyTorch: the address of PyTorch's index of CPU builds, or of those for a CUDA version,
# from the installation page of PyTorch. Empty takes the build of the default index, which runs on CPUs and, with
# `docker run --gpus all`, on CUDA, and is several gigabytes larger.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/learner/sims_kit

COPY constraints.txt ./
RUN sed -n '/^torch==/p' constraints.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt

COPY . .
RUN pip install --constraint constraints.txt --editable '.[lab,r]' \
    && useradd --uid 1000 --home-dir /home/learner learner \
    && chown --recursive learner:learner /home/learner

USER 1000
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--LabApp.default_url=/lab/tree/learner/00_ten_minutes.ipynb"]
