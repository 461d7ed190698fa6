"""A whole mesh on one machine: hosts as namespaces, networks as bridges, real agents.

``spec`` reads ``lab.yaml`` and ``wiring`` turns it into cables and routes; both are pure.
``box`` is one host as the kernel has it, ``fabric`` the networks between them, ``storage`` what
is written down so that a crash leaves nothing behind. ``lab`` puts these together and is what
tests and ``kgctl lab`` use. What knows of Kilo stands beside it: ``meshdir`` (the mesh's
directory), ``agents``, ``guests`` (the mesh's peers), ``reach`` (who reaches whom) and
``probing`` (is anything lost).
"""
