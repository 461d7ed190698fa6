"""The etcd backend: the mesh as keys of an etcd cluster, for fleets of any kind of machine."""
