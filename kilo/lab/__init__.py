"""A whole mesh on one machine: hosts as namespaces, networks as bridges, real agents.

``spec`` reads ``lab.yaml`` and ``wiring`` turns it into cables and routes; both are pure.
``box`` is one host as the kernel has it, ``fabric`` the networks between them, ``storage`` what
is written down so that a crash leaves nothing behind. ``lab`` puts these together and is what
tests and ``kgctl lab`` use. What knows of Kilo stands beside it: ``meshdir`` (the mesh's
directory), ``guests`` (the mesh's peers), ``reach`` (who reaches whom) and ``probing`` (is
anything lost).

``stores`` is the seam to where the mesh is written down, and ``openstore`` the list of what can
stand behind it: a directory; with ``cluster`` a real API server on a machine of the lab's own
(``boxedplane`` is its life, ``clusterobjects`` what it is filled with); with ``etcdstore`` a real
etcd of one or more members, a machine each (``boxedetcd``, ``etcdfiles``). ``storewiring`` places
these machines, ``boxedprogram`` runs on them. ``controlplane`` is an API server on this machine,
for tests; ``planefiles``, ``certificates`` and ``apicalls`` serve both.
"""
