"""The host's network: drivers that read and change the kernel, behind ``base.py``'s contract."""
