"""A whole mesh on one machine: hosts as namespaces, networks as bridges, real agents.

``spec`` reads ``lab.yaml`` and ``wiring`` turns it into cables and routes; both are pure.
``box`` is one host as the kernel has it, ``fabric`` the networks between them, ``storage`` what
is written down so that a crash leaves nothing behind. ``lab`` puts these together and is what
tests and ``kgctl lab`` use. What knows of Kilo stands beside it: ``meshdir`` (the mesh's
directory), ``guests`` (the mesh's peers), ``reach`` (who reaches whom) and ``probing`` (is
anything lost).

``stores`` is the seam to where the mesh is written down: a directory, or with ``cluster`` a real
API server on a machine of the lab's own (``storewiring`` places it, ``boxedplane`` is its life,
``clusterobjects`` what it is filled with). ``controlplane`` is one on this machine, for tests;
``planefiles``, ``certificates`` and ``apicalls`` serve both.
"""
