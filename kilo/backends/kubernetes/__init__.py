"""The Kubernetes backend: for clusters. Comes with a later release."""
