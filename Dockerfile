# The agent and kgctl with all that they may call: docker build -t kilo .
#
# BASE is a Debian; tools/image builds on one of its own where no registry can be reached.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates containernetworking-plugins gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Where the index is reached through somebody's own authority: a file of certificates.
ARG PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN python3 -m venv /opt/kilo
WORKDIR /source
# What others have written comes first, and is kept while only our own files change.
COPY pyproject.toml ./
COPY kilo/__init__.py kilo/
RUN touch README.md && /opt/kilo/bin/pip install --quiet --disable-pip-version-check --no-cache-dir \
    '.[all,legacy-iptables]'
COPY README.md LICENSE ./
COPY kilo kilo
RUN /opt/kilo/bin/pip install --quiet --disable-pip-version-check --no-cache-dir \
        --no-deps --force-reinstall . \
    && /opt/kilo/bin/pip uninstall --quiet --yes pip setuptools

FROM ${BASE}
# Rules are written where the host's own are: with nft, or iptables of either kind and ipset.
# wireguard-go is for hosts whose kernel has no WireGuard, graphviz for /graph.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates fonts-dejavu-core graphviz iproute2 ipset iptables nftables python3 \
        wireguard-go wireguard-tools \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf /var/log/apt /var/log/dpkg.log \
    # kgctl and `kg webhook` need no rights: `--user kilo`.
    && echo 'kilo:x:65532:65532::/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'kilo:x:65532:' >>/etc/group
# In the places where manifests that were written for Kilo look for them.
COPY --from=build /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/loopback \
    /usr/lib/cni/portmap /opt/cni/bin/
COPY --from=build /opt/kilo /opt/kilo
RUN mkdir /opt/bin && ln -s /opt/kilo/bin/kg /opt/kilo/bin/kgctl /opt/bin/
ENV PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The user is root: the agent changes the host's network, and capabilities that a container is
# given reach no other user. It needs NET_ADMIN and NET_RAW only.
ENTRYPOINT ["/opt/bin/kg"]
