"""Where the mesh is written down: one package a store, behind the contract in ``base.py``."""
