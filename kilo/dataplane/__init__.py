"""The host's network: drivers that read and change the kernel, behind the contract in ``base.py``."""
