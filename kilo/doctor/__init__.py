"""What is wrong with a host that is, or is to be, part of a mesh: `kgctl doctor`.

``probing_*`` look and change nothing, ``judging_*`` make findings of what was seen: values in,
values out. Every finding has a code, which stays what it is (docs/doctor.md).
"""
