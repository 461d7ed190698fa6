"""The Kubernetes backend: the mesh as the objects of a cluster."""
