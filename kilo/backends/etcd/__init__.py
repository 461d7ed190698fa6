"""The etcd backend: for hybrid fleets. Comes with its own issue; choosing it is refused until then."""
