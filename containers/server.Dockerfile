# The server of a deployment, from the repository's root: docker build -f containers/server.Dockerfile -t fedprompt-server .
FROM python:3.11-slim-bookworm AS build
# PyTorch without CUDA, which a server does not need
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/fedprompt && \
    /opt/fedprompt/bin/pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" \
        '.[flower,metrics,privacy]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin fedprompt && \
    install --directory --owner=fedprompt --group=fedprompt /deployment
COPY --from=build /opt/fedprompt /opt/fedprompt
ENV PATH=/opt/fedprompt/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
WORKDIR /deployment
ENTRYPOINT ["fedprompt"]
CMD ["server", "up", "/deployment"]
