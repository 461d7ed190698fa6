"""The etcd backend: for hybrid fleets. Comes with a later release."""
