"""The Kubernetes backend: for clusters. Comes with its own issue; choosing it is refused until then."""
