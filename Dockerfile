# One image for web, worker and scheduler, without the embedded servers. BASE may be any image that has Python 3.11 or
# newer with its venv module, such as one of your own with the tools that your jobs need.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
# what the build is called; the sources alone do not know the tag
ARG VERSION=
WORKDIR /src
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
RUN python3 -m venv /opt/hostler
COPY requirements.txt ./
RUN /opt/hostler/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps \
    --requirement requirements.txt
COPY pyproject.toml README.md LICENSE Procfile settings.py ./
COPY api api
COPY cli cli
COPY integrations integrations
COPY scheduler scheduler
COPY share share
COPY storage storage
COPY workers workers
RUN if [ -n "${VERSION}" ]; then export SETUPTOOLS_SCM_PRETEND_VERSION_FOR_HOSTLER="${VERSION}"; fi \
    && /opt/hostler/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .
# Four tenths of it are debugging symbols, what venv brought along, and services of AWS that nobody here calls.
RUN (/opt/hostler/bin/pip uninstall --quiet --yes setuptools || true) \
    && find /opt/hostler -name '*.so' -exec strip --strip-unneeded {} + \
    && find /opt/hostler/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
       ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +

FROM ${BASE}
LABEL org.opencontainers.image.title="Hostler" \
      org.opencontainers.image.description="A serverless-style task runner and fleet control plane on Redis queues." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 hostler \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/hostler --shell /usr/sbin/nologin hostler \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/hostler
COPY --from=build /opt/hostler /opt/hostler
ENV PATH=/opt/hostler/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOSTLER_HOST=0.0.0.0 \
    HOSTLER_PORT=8080 \
    HOSTLER_WORK_DIR=/var/lib/hostler
WORKDIR /var/lib/hostler
# /tmp and /var/lib/hostler are all that is written to: the rest may be mounted read-only
USER 10001:10001
EXPOSE 8080
# of the web process; where the image runs as worker or scheduler, the orchestrator's restart policy is the check
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or os.environ['HOSTLER_PORT']) + '/api/health/live', timeout=4)"]
CMD ["gunicorn", "-c", "python:api.gunicorn", "api.asgi:app"]
