"""The page at ``/``: the mesh as a live picture, drawn by the browser from what ``/status`` tells.

The document is put together from the files beside this one; ``document`` says how.
"""
